"""What is told about jobs while it happens, and what can be asked afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import anyio
import asyncpg
import pytest
from structlog.testing import capture_logs

from pgqueuetopia import (
    DatabaseUnavailable,
    Discard,
    Err,
    Event,
    EventKind,
    Job,
    Launched,
    Misconfigured,
    Move,
    NewJob,
    Queuetopia,
    Repo,
    Snooze,
    Topic,
)
from tests.conftest import in_database
from tests.proxy import a_proxy
from tests.support import DEADLINE, Recorder, an_app, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

K = EventKind
LISTENERS = """
select pid from pg_stat_activity
where datname = current_database() and application_name = 'pgqueuetopia-events'
"""
LOSE = f"select pg_terminate_backend(pid) from ({LISTENERS}) l"


class Told:
    """What one subscriber has been told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, job: Job | int) -> list[EventKind]:
        """What a job has gone through."""
        number = job if isinstance(job, int) else job.id
        return [event.kind for event in self.events if event.job == number]

    async def reach(self, job: Job | int, *kinds: EventKind) -> None:
        """Wait until a job has gone through just this."""
        await eventually(lambda: self.of(job) == list(kinds))

    def last(self, kind: EventKind) -> Event:
        return next(event for event in reversed(self.events) if event.kind is kind)

    def has(self, kind: EventKind) -> bool:
        return any(event.kind is kind for event in self.events)


@asynccontextmanager
async def told(app: Queuetopia, *arguments: Any, **options: Any) -> AsyncIterator[Told]:
    """Listens, and reads."""
    heard = Told()
    async with app.events(*arguments, **options) as events, anyio.create_task_group() as tasks:

        async def read() -> None:
            async for event in events:
                heard.events.append(event)

        tasks.start_soon(read)
        yield heard
        tasks.cancel_scope.cancel()


async def is_in(app: Queuetopia, job: Job, state: str) -> bool:
    return (await app.get_job(job)).state == state


async def reaches(app: Queuetopia, job: Job, state: str, *, within: float = DEADLINE) -> None:
    await eventually(lambda: is_in(app, job, state), within=within)


# What is told


async def test_a_job_that_succeeds(dsn: str) -> None:
    topics = [Topic("good")]
    async with an_app(dsn, Recorder(), topics=topics) as app, told(app) as heard, app.running():
        before = datetime.now(UTC)
        job = await app.create_job("good", "a")
        queued = await app.create_job("a queue", "a")
        for one in (job, queued):
            await heard.reach(one, K.INSERTED, K.STARTED, K.COMPLETED)
        first, *_, last = [event for event in heard.events if event.job == job.id]
    assert (first.scope, first.queue, first.attempt, first.detail) == ("Test", "good", 0, None)
    assert last.attempt == 1
    assert timedelta(seconds=-1) < first.at - before < timedelta(seconds=DEADLINE)
    assert first.at.tzinfo is not None
    assert first.at < last.at


async def test_a_job_that_fails_and_is_discarded(dsn: str) -> None:
    topics = [Topic("bad", backoff=lambda job: 0.01, max_attempts=2)]
    performer = Recorder(lambda job: Err(f"no {job.attempts}"))
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        job = await app.create_job("bad", "a")
        once = [K.STARTED, K.FAILED]
        expected = [K.INSERTED, *once, K.RETRY_SCHEDULED, *once, K.DISCARDED]
        await eventually(lambda: heard.of(job) == expected)
        failures = [event for event in heard.events if event.kind is K.FAILED]
        assert [(event.attempt, event.detail) for event in failures] == [(1, "no 1"), (2, "no 2")]
        retry = heard.last(K.RETRY_SCHEDULED)
        assert isinstance(retry.detail, datetime)
        assert timedelta(0) <= retry.detail - retry.at + timedelta(seconds=0.01) < timedelta(seconds=1)
        assert heard.last(K.DISCARDED).detail == "abandoned"


async def test_a_job_that_its_worker_gives_up(dsn: str) -> None:
    topics = [Topic("given up")]
    performer = Recorder(lambda job: Discard("never"))
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        job = await app.create_job("given up", "a")
        await heard.reach(job, K.INSERTED, K.STARTED, K.FAILED, K.DISCARDED)
        assert heard.last(K.FAILED).detail == "never"


async def test_a_job_that_is_moved_by_its_failure(dsn: str) -> None:
    topics = [Topic("moving")]
    performer = Recorder(lambda job: Err("no") if job.queue == "moving" else None)
    modes = {"moving": Move("spare")}
    async with (
        an_app(dsn, performer, topics=topics, failure_modes=modes) as app,
        told(app) as heard,
        app.running(),
    ):
        job = await app.create_job("moving", "a")
        await heard.reach(job, K.INSERTED, K.STARTED, K.FAILED, K.DISCARDED)
        assert heard.last(K.DISCARDED).detail == "moved"
        await eventually(lambda: heard.has(K.COMPLETED))
        [moved] = await app.get_jobs("spare")
        assert heard.of(moved) == [K.INSERTED, K.STARTED, K.COMPLETED]


async def test_a_job_that_snoozes_and_one_that_is_interrupted(dsn: str) -> None:
    performer = Recorder(lambda job: Snooze(3600) if job.action == "snooze" else anyio.sleep_forever())
    topics = [Topic("waiting", parallelism=2)]
    async with an_app(dsn, performer, topics=topics, shutdown=0) as app, told(app) as heard:
        async with app.running():
            snoozing = await app.create_job("waiting", "snooze")
            endless = await app.create_job("waiting", "endless")
            await heard.reach(snoozing, K.INSERTED, K.STARTED, K.RETRY_SCHEDULED)
            assert heard.last(K.RETRY_SCHEDULED).attempt == 0, "the attempt is given back"
            await eventually(lambda: len(performer.performed) == 2)
        await heard.reach(endless, K.INSERTED, K.STARTED, K.RETRY_SCHEDULED)


async def test_a_job_that_waits_for_an_operator(dsn: str) -> None:
    topics = [Topic("operated", max_attempts=1)]
    performer = Recorder(lambda job: Err("no"))
    async with (
        an_app(dsn, performer, topics=topics, on_exhausted="block") as app,
        told(app) as heard,
        app.running(),
    ):
        await app.create_job("operated", "a")
        await eventually(lambda: heard.has(K.RETRY_SCHEDULED))
        assert heard.last(K.RETRY_SCHEDULED).detail is None


async def test_a_job_that_has_launched_something(dsn: str) -> None:
    topics = [Topic("long")]
    performer = Recorder(lambda job: Launched(asyncio.sleep(0.01)))
    expected = [K.INSERTED, K.STARTED, K.LAUNCHED, K.PROCESS_COMPLETED, K.COMPLETED]
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        job = await app.create_job("long", "a")
        await eventually(lambda: heard.of(job) == expected)


@pytest.mark.parametrize("queue", ["crashing", "a queue"])
async def test_a_job_whose_session_is_ended_and_whose_node_does_not_report(
    dsn: str, connection: Connection, queue: str
) -> None:
    release = anyio.Event()

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await release.wait()
        await release.wait()

    performer = Recorder(lambda job: stubborn() if job.attempts == 1 else None)
    topics = [Topic("crashing")]
    async with (
        an_app(dsn, performer, topics=topics) as app,
        an_app(dsn, performer, topics=topics) as other,
        told(app) as heard,
        app.running(),
    ):
        job = await app.create_job(queue, "a")
        await eventually(lambda: performer.performed)
        node = (await app.get_job(job)).attempted_by
        await connection.execute("select pg_terminate_backend(pid) from pgqueuetopia.nodes")
        async with other.running():
            expected = [K.INSERTED, K.STARTED, K.CRASHED, K.STARTED, K.COMPLETED]
            await eventually(lambda: heard.of(job) == expected)
        release.set()
        crashed = heard.last(K.CRASHED)
    assert (crashed.detail, crashed.queue, crashed.attempt) == (node, queue, 1)


async def test_a_job_whose_session_is_ended_and_whose_node_reports(dsn: str, connection: Connection) -> None:
    performer = Recorder(lambda job: anyio.sleep_forever() if job.claim == 1 else None)
    topics = [Topic("reporting")]
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        job = await app.create_job("reporting", "a")
        await eventually(lambda: performer.performed)
        await connection.execute("select pg_terminate_backend(pid) from pgqueuetopia.nodes")
        once = [K.STARTED, K.RETRY_SCHEDULED]
        await heard.reach(job, K.INSERTED, *once, K.STARTED, K.COMPLETED)


async def test_a_job_of_a_dead_node_is_told_as_crashed(dsn: str, connection: Connection) -> None:
    """As a node leaves it that was killed: started, and nobody holds its lock."""
    topics = [Topic("dead")]
    performer = Recorder()
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard:
        job = await app.create_job("dead", "a")
        await connection.execute(
            "update pgqueuetopia.jobs "
            "set claim = 1, attempts = 1, attempted_at = now(), attempted_by = 'gone'"
        )
        async with app.running():
            await heard.reach(job, K.INSERTED, K.CRASHED, K.STARTED, K.COMPLETED)
        crashed = heard.last(K.CRASHED)
    assert (crashed.detail, crashed.queue, crashed.attempt) == ("gone", "dead", 1)
    assert performer.performed[0].attempts == 2


@pytest.mark.parametrize(
    ("by_hand", "outcome"),
    [
        (lambda app, job: app.cancel(job), "cancelled"),
        (lambda app, job: app.abandon(job), "abandoned"),
        (lambda app, job: app.move(job, "elsewhere"), "moved"),
    ],
)
async def test_a_job_that_is_ended_by_hand(
    dsn: str, by_hand: Callable[[Queuetopia, Job], Any], outcome: str
) -> None:
    async with an_app(dsn, topics=[Topic("by hands")]) as app, told(app) as heard:
        job = await app.create_job("by hands", "a")
        await by_hand(app, job)
        await heard.reach(job, K.INSERTED, K.DISCARDED)
        assert heard.last(K.DISCARDED).detail == outcome


async def test_a_running_job_that_is_killed(dsn: str) -> None:
    performer = Recorder(lambda job: anyio.sleep_forever())
    topics = [Topic("killed by hand")]
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        job = await app.create_job("killed by hand", "a")
        await eventually(lambda: performer.performed)
        await app.cancel(job, kill=True)
        await heard.reach(job, K.INSERTED, K.STARTED, K.DISCARDED)
        assert heard.last(K.DISCARDED).detail == "cancelled"


async def test_suspension_is_told_whoever_suspends(dsn: str, connection: Connection) -> None:
    everybody = "update pgqueuetopia.job_configs set value = $1 where scope = '*' and key = 'suspended'"
    async with an_app(dsn) as app, told(app) as heard:
        await app.suspend()
        await app.suspend()
        await app.resume()
        await app.suspend("q")
        await app.configs.delete("q_suspended")
        await connection.execute(everybody, "true")
        await connection.execute(everybody, "false")
        await app.configs.set("other", "true")
        await eventually(lambda: len(heard.events) >= 6)
    assert [(event.kind, event.queue, event.scope, event.job) for event in heard.events] == [
        (K.SUSPENDED, None, "Test", None),
        (K.RESUMED, None, "Test", None),
        (K.SUSPENDED, "q", "Test", None),
        (K.RESUMED, "q", "Test", None),
        (K.SUSPENDED, None, "*", None),
        (K.RESUMED, None, "*", None),
    ]


async def test_an_error_of_any_length_is_told(dsn: str) -> None:
    """A notification holds 8,000 bytes; an error's 2,000 characters may take four or, escaped, six each."""
    topics = [Topic("loud", parallelism=4, max_attempts=1)]
    texts = {"wide": "\N{GRINNING FACE}", "control": "\x01", "quotes": '"', "plain": "x"}
    performer = Recorder(lambda job: Err(texts[job.action] * 5000))
    async with an_app(dsn, performer, topics=topics) as app, told(app) as heard, app.running():
        jobs = [await app.create_job("loud", action) for action in texts]
        for job in jobs:
            await reaches(app, job, "discarded", within=3)
            await heard.reach(job, K.INSERTED, K.STARTED, K.FAILED, K.DISCARDED)
    assert [job.attempts for job in performer.performed] == [1] * 4


async def test_a_job_of_the_longest_names_is_told(dsn: str) -> None:
    name, scope = "\N{GRINNING FACE}" * 255, "\N{GRINNING CAT FACE WITH SMILING EYES}" * 255
    topics = [Topic(name, parallelism=30)]
    async with an_app(dsn, Recorder(), topics=topics, scope=scope) as app, told(app) as heard, app.running():
        jobs = await app.create_jobs(NewJob(name, "a") for _ in range(30))
        for job in jobs:
            await heard.reach(job, K.INSERTED, K.STARTED, K.COMPLETED)


async def test_jobs_that_are_created_at_once_are_told_each(dsn: str) -> None:
    async with an_app(dsn, topics=[Topic("many")]) as app, told(app) as heard:
        jobs = await app.create_jobs(NewJob("many", "a") for _ in range(1_000))
        await eventually(lambda: len(heard.events) == 1_000)
    assert [event.job for event in heard.events] == [job.id for job in jobs]


# When


async def test_what_is_told_can_be_read(dsn: str) -> None:
    topics = [Topic("readable", parallelism=10, backoff="none", max_attempts=2)]
    performer = Recorder(lambda job: Err("no") if job.id % 2 and job.attempts == 1 else "done")
    jobs = 20
    async with an_app(dsn, performer, topics=topics) as app, app.events() as events, app.running():
        await app.create_jobs(NewJob("readable", "a") for _ in range(jobs))
        completed = 0
        with anyio.fail_after(DEADLINE):
            async for event in events:
                assert event.job is not None
                job = await app.get_job(event.job)
                match event.kind:
                    case EventKind.STARTED:
                        assert job.attempts >= event.attempt
                    case EventKind.FAILED:
                        assert job.errors[event.attempt - 1]["error"] == event.detail
                    case EventKind.COMPLETED:
                        assert (job.state, job.result) == ("succeeded", "done")
                        completed += 1
                if completed == jobs:
                    break


async def test_a_change_that_is_rolled_back_is_not_told(dsn: str, connection: Connection) -> None:
    async with an_app(dsn, topics=[Topic("rolled back")]) as app, told(app) as heard:
        transaction = connection.transaction()
        await transaction.start()
        gone = await app.create_job("rolled back", "a", conn=connection)
        await transaction.rollback()
        async with connection.transaction():
            kept = await app.create_job("rolled back", "a", conn=connection)
            assert heard.events == []
        await eventually(lambda: heard.of(kept))
        assert heard.of(gone) == []


# To whom


async def test_a_subscriber_hears_of_one_topic_alone_if_it_says_so(dsn: str) -> None:
    topics = [Topic("heard"), Topic("unheard")]
    async with (
        an_app(dsn, Recorder(), topics=topics) as app,
        told(app) as everything,
        told(app, "heard") as some,
        app.running(),
    ):
        other = await app.create_job("unheard", "a")
        job = await app.create_job("heard", "a")
        await everything.reach(other, K.INSERTED, K.STARTED, K.COMPLETED)
        await some.reach(job, K.INSERTED, K.STARTED, K.COMPLETED)
        await app.suspend("unheard")
        await app.suspend()
        await eventually(lambda: some.has(K.SUSPENDED))
        assert {event.queue for event in some.events} == {"heard", None}
        assert {event.queue for event in everything.events} == {"heard", "unheard", None}


async def test_other_scopes_are_not_told(dsn: str) -> None:
    topics = [Topic("scoped")]
    async with (
        an_app(dsn, topics=topics) as app,
        an_app(dsn, topics=topics, scope="Other") as other,
        told(app) as heard,
        told(other) as there,
    ):
        await other.create_job("scoped", "a")
        await app.create_job("scoped", "a")
        await eventually(lambda: heard.events and there.events)
    assert [event.scope for event in heard.events] == ["Test"]
    assert [event.scope for event in there.events] == ["Other"]


async def test_events_of_other_instances_are_told(dsn: str) -> None:
    topics = [Topic("distant")]
    async with (
        an_app(dsn, topics=topics) as app,
        an_app(dsn, Recorder(), topics=topics) as other,
        told(app) as heard,
        other.running(),
    ):
        job = await other.create_job("distant", "a")
        await heard.reach(job, K.INSERTED, K.STARTED, K.COMPLETED)


async def test_a_slow_subscriber_loses_the_oldest_and_holds_nobody_up(dsn: str) -> None:
    topics = [Topic("slow", parallelism=5)]
    async with (
        an_app(dsn, Recorder(), topics=topics) as app,
        app.running(),
        app.events(most=4) as slow,
        told(app) as heard,
    ):
        jobs = await app.create_jobs(NewJob("slow", "a") for _ in range(10))
        await eventually(lambda: len(heard.events) == 30)
        assert slow.lost == 26
        newest = [await anext(slow) for _ in range(4)]
        assert newest == heard.events[-4:]
        assert all([await is_in(app, job, "succeeded") for job in jobs])
        # Whoever reads again loses nothing.
        await app.create_job("slow", "a", scheduled_at=timedelta(hours=1))
        with anyio.fail_after(DEADLINE):
            assert (await anext(slow)).kind is K.INSERTED
        assert slow.lost == 26


async def test_nobody_is_told_what_came_before(dsn: str) -> None:
    async with an_app(dsn, topics=[Topic("late")]) as app:
        await app.create_job("late", "a")
        async with told(app) as heard:
            job = await app.create_job("late", "a")
            await eventually(lambda: heard.events)
            assert [event.job for event in heard.events] == [job.id]


async def test_subscribers_share_a_connection_and_the_last_one_ends_it(
    dsn: str, connection: Connection
) -> None:
    async def listeners() -> int:
        return len(await connection.fetch(LISTENERS))

    async def is_quiet() -> bool:
        return await listeners() == 0

    async with an_app(dsn, topics=[Topic("shared")]) as app:
        async with told(app) as first:
            async with told(app) as second:
                assert await listeners() == 1
                job = await app.create_job("shared", "a")
                await eventually(lambda: first.of(job) and second.of(job))
            assert await listeners() == 1
            other = await app.create_job("shared", "a")
            await eventually(lambda: first.of(other))
            assert second.of(other) == []
        await eventually(is_quiet)
        # Nobody listens, so nobody notifies.
        assert not await connection.fetchval("select pgqueuetopia.is_listened_to('Test')")
        async with told(app) as again:
            await app.create_job("shared", "a")
            await eventually(lambda: again.events)


async def test_many_who_subscribe_at_once_share_a_connection(dsn: str, connection: Connection) -> None:
    done = anyio.Event()
    async with an_app(dsn, topics=[Topic("crowded")]) as app, anyio.create_task_group() as tasks:
        heard: list[Told] = []

        async def listen() -> None:
            async with told(app) as one:
                heard.append(one)
                await done.wait()

        for _ in range(5):
            tasks.start_soon(listen)
        await eventually(lambda: len(heard) == 5)

        async def is_one() -> bool:
            return len(await connection.fetch(LISTENERS)) == 1

        await eventually(is_one)
        await app.create_job("crowded", "a")
        await eventually(lambda: all(len(one.events) == 1 for one in heard))
        done.set()


# Faults


async def is_listened_to(connection: Connection) -> bool:
    return bool(await connection.fetchval("select pgqueuetopia.is_listened_to('Test')"))


async def test_a_lost_connection_is_counted_and_events_go_on(dsn: str, connection: Connection) -> None:
    topics = [Topic("interrupted")]
    async with an_app(dsn, topics=topics) as app, app.events() as events, told(app) as heard:
        assert events.interruptions == 0
        await connection.execute(LOSE)
        await eventually(lambda: events.interruptions == 1)
        await eventually(lambda: is_listened_to(connection))
        job = await app.create_job("interrupted", "a")
        await heard.reach(job, K.INSERTED)
        assert (await anext(events)).job == job.id
        assert (events.interruptions, events.lost) == (1, 0)


async def test_who_subscribes_while_the_connection_is_lost_knows_what_is_missing(
    dsn: str, connection: Connection
) -> None:
    """What is committed after `events()` has returned is told, or counts as interrupted."""
    async with (
        a_proxy(dsn) as (proxy, through),
        an_app(dsn, repo=Repo(dsn, session_dsn=through), topics=[Topic("outage")]) as app,
        app.events(),
    ):
        await proxy.cut()

        async def is_lost() -> bool:
            return not await connection.fetch(LISTENERS)

        await eventually(is_lost)
        await anyio.wait_all_tasks_blocked()
        with suppress(DatabaseUnavailable):
            async with app.events() as events:
                missed = await app.create_job("outage", "a")
                proxy.heal()
                await eventually(lambda: is_listened_to(connection))
                await app.create_job("outage", "a")
                with anyio.fail_after(DEADLINE):
                    first = await anext(events)
                assert first.job == missed.id or events.interruptions


async def test_without_a_database_nobody_can_subscribe(server_dsn: str) -> None:
    async with an_app(in_database(server_dsn, "is_not_there")) as app:
        with pytest.raises(DatabaseUnavailable):
            async with app.events():
                pass


async def test_close_ends_the_connection_of_those_who_listen(dsn: str, connection: Connection) -> None:
    ended = anyio.Event()

    async def read(events: AsyncIterator[Event]) -> None:
        async for _ in events:
            pass
        ended.set()

    async with an_app(dsn) as app, app.events() as events, anyio.create_task_group() as tasks:
        tasks.start_soon(read, events)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(DEADLINE):
            await app.close()

        async def is_quiet() -> bool:
            return not await connection.fetch(LISTENERS)

        await eventually(is_quiet)
        # Whoever reads would wait for ever.
        await eventually(ended.is_set, within=1)


# What can be asked afterwards


async def test_utilisation_counts_what_runs_by_node(dsn: str) -> None:
    release = anyio.Event()
    performer = Recorder(lambda job: Launched(release.wait()) if job.action == "launch" else release.wait())
    topics = [Topic("used", parallelism=5), Topic("unused", parallelism=2)]
    async with an_app(dsn, performer, topics=topics, shutdown=0) as app, app.running():
        launched = await app.create_job("used", "launch")
        await app.create_job("used", "work")
        await app.create_job("a queue", "work")
        await eventually(lambda: len(performer.performed) == 3)
        await reaches(app, launched, "launched")
        now = await app.utilisation("used")
        [node] = (await app.status()).nodes
        assert (now.topic, now.parallelism, now.running, now.launched) == ("used", 5, 2, 1)
        assert now.nodes == {node: (2, 1)}
        idle = await app.utilisation("unused")
        assert (idle.parallelism, idle.running, idle.launched, idle.nodes) == (2, 0, 0, {})
        await app.configs.set("unused_parallelism", "9")
        assert (await app.utilisation("unused")).parallelism == 9


async def test_utilisation_is_of_topics_alone(dsn: str) -> None:
    async with an_app(dsn, topics=[Topic("one"), Topic("two")]) as app:
        with pytest.raises(Misconfigured, match="'a queue' is none of the topics of Test: one, two"):
            await app.utilisation("a queue")


async def test_stats_count_what_has_ended_by_queue_and_action(dsn: str) -> None:
    def answer(job: Job) -> Any:
        if job.action == "fail":
            return Err("no")
        return Err("not yet") if job.action == "again" and job.attempts == 1 else anyio.sleep(0.02)

    topics = [Topic("figures", parallelism=10, backoff="none", max_attempts=2)]
    async with an_app(dsn, Recorder(answer), topics=topics) as app:
        assert await app.stats() == []
        for action, times in (("work", 3), ("fail", 1), ("again", 2)):
            await app.create_jobs([NewJob("figures", action)] * times)
        await app.create_job("a queue", "work", scheduled_at=timedelta(seconds=-100))
        cancelled = await app.create_job("figures", "never", scheduled_at=timedelta(hours=1))
        await app.cancel(cancelled)
        async with app.running():
            await eventually(lambda: is_idle(app))
        found = await app.stats()
        assert [(one.queue, one.action, one.done, one.failed, one.retried) for one in found] == [
            ("a queue", "work", 1, 0, 0),
            ("figures", "again", 2, 0, 2),
            ("figures", "fail", 0, 1, 1),
            ("figures", "work", 3, 0, 0),
        ]
        late = found[0]
        assert timedelta(seconds=100) <= late.wait.median <= late.wait.p99 < timedelta(seconds=100 + DEADLINE)
        for one in (found[0], found[1], found[3]):
            assert timedelta(seconds=0.02) <= one.run.median <= one.run.p99 < timedelta(seconds=DEADLINE)
        assert timedelta(0) <= found[3].wait.median <= found[3].wait.p99


async def is_idle(app: Queuetopia) -> bool:
    return not (await app.status()).count


async def test_stats_are_of_a_time(dsn: str, connection: Connection) -> None:
    async with an_app(dsn, Recorder(), topics=[Topic("times")]) as app:
        async with app.running():
            old = await app.create_job("times", "old")
            await app.create_job("times", "new")
            await eventually(lambda: is_idle(app))
        await connection.execute(
            "update pgqueuetopia.jobs set done_at = now() - interval '2 hours' where id = $1", old.id
        )
        assert [one.action for one in await app.stats()] == ["new", "old"]
        assert [one.action for one in await app.stats(3600)] == ["new"]
        assert [one.action for one in await app.stats(timedelta(hours=3))] == ["new", "old"]
        now = datetime.now(UTC)
        assert [one.action for one in await app.stats(now - timedelta(hours=1))] == ["new"]
        assert await app.stats(now + timedelta(hours=1)) == []


async def test_get_jobs_and_count_jobs_are_of_a_topic_or_a_queue(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pages.
    monkeypatch.setattr("pgqueuetopia.reporting.PAGE", 3)
    topics = [Topic("listed"), Topic("empty")]
    async with an_app(dsn, topics=topics) as app, an_app(dsn, scope="Other") as other:
        jobs = await app.create_jobs(NewJob("listed", "a", {"n": n}) for n in range(7))
        await app.create_job("a queue", "a")
        await other.create_job("listed", "a")
        await app.cancel(jobs[0])
        found = await app.get_jobs("listed")
        assert [job.params["n"] for job in found] == list(range(7))
        assert (found[0].state, found[1].state) == ("cancelled", "ready")
        assert await app.get_jobs("empty") == []
        assert [await app.count_jobs(queue) for queue in ("listed", "a queue", "empty", None)] == [7, 1, 0, 8]
        await app.create_jobs(NewJob("empty", "a") for _ in range(3))
        assert len(await app.get_jobs("empty")) == 3


async def test_outdated_jobs_are_deleted(dsn: str, connection: Connection) -> None:
    topics = [Topic("outdated", max_attempts=1)]
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer, topics=topics) as app, an_app(dsn, scope="Other") as other:
        others = await other.create_job("q", "a")
        await other.cancel(others)
        waiting = await app.create_job("outdated", "a", scheduled_at=timedelta(hours=1))
        async with app.running():
            old = [await app.create_job("outdated", action) for action in ("work", "fail")]
            young = await app.create_job("a queue", "work")

            async def has_ended() -> bool:
                return (await app.status()).count == 1

            await eventually(has_ended)
        await connection.execute(
            "update pgqueuetopia.jobs set done_at = now() - interval '1 hour' where id = any ($1)",
            [job.id for job in old],
        )
        assert await app.delete_outdated_jobs(7200) == 0
        assert await app.delete_outdated_jobs(timedelta(minutes=30)) == 2
        assert {job.id for job in await app.list_jobs()} == {waiting.id, young.id}
        assert await app.delete_outdated_jobs() == 1
        assert [job.id for job in await app.list_jobs()] == [waiting.id]
        assert await is_in(other, others, "cancelled")


async def test_a_time_that_cannot_be_is_refused(dsn: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(Misconfigured, match="since has no time zone"):
            await app.stats(datetime(2026, 1, 1))
        for bad in (-1, timedelta(days=-1), "1 day"):
            with pytest.raises(Misconfigured, match="must be seconds or a timedelta"):
                await app.delete_outdated_jobs(bad)  # type: ignore[arg-type]
            with pytest.raises(Misconfigured, match="must be seconds or a timedelta"):
                await app.stats(bad)  # type: ignore[arg-type]


async def test_there_are_no_orphans_to_rescue(dsn: str) -> None:
    performer = Recorder(lambda job: anyio.sleep_forever())
    async with an_app(dsn, performer, topics=[Topic("orphans")], shutdown=0) as app, app.running():
        job = await app.create_job("orphans", "a")
        await eventually(lambda: performer.performed)
        with capture_logs() as logs:
            assert await app.rescue_orphaned_jobs("orphans") == 0
        assert [line["event"] for line in logs] == ["nothing_to_rescue"]
        assert await is_in(app, job, "executing")


async def test_wake_up_has_the_nodes_of_this_instance_look(dsn: str, connection: Connection) -> None:
    """A change that no trigger tells of."""
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("woken")], poll_interval=3600) as app:
        assert not app.wake_up()
        async with app.running():
            await connection.execute("set session_replication_role = replica")
            await connection.execute(
                "insert into pgqueuetopia.jobs (scope, queue, action, topic) "
                "values ('Test', 'woken', 'a', true)"
            )
            assert app.wake_up()
            await eventually(lambda: performer.performed)
