"""Topics and their workers: what may be declared, which job is next, how many run, what they come to."""

import asyncio
import os
import sys
import threading
from asyncio.subprocess import PIPE
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import anyio
import asyncpg
import pytest
from pydantic import BaseModel

from pgqueuetopia import (
    Abandon,
    Cancelled,
    Discard,
    Err,
    Event,
    InvalidJob,
    Job,
    Launched,
    Misconfigured,
    Move,
    NewJob,
    Ok,
    Performer,
    Queuetopia,
    Repo,
    Retrying,
    Snooze,
    Topic,
    TopicWorker,
)
from tests.support import DEADLINE, Recorder, an_app, eventually
from tests.test_docs import program

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOW = datetime.now(UTC)
JOB = Job(
    id=1, scope="S", queue="q", action="a", params={}, scheduled_at=NOW, inserted_at=NOW, updated_at=NOW,
    attempts=1, topic=True,
)  # fmt: skip
SECOND = timedelta(seconds=1)
SET = """
insert into pgqueuetopia.job_configs (scope, key, value) values ($1, $2, $3)
on conflict (scope, key) do update set value = excluded.value
"""


class Held(Performer):
    """Each job runs until it is let go, but for those that only show that the node has looked."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self.gates: defaultdict[int, anyio.Event] = defaultdict(anyio.Event)

    async def perform(self, job: Job) -> None:
        if job.action == "look":
            return
        self.running.append(job.id)
        try:
            await self.gates[job.id].wait()
        finally:
            self.running.remove(job.id)

    def let_go(self, ids: Iterable[int]) -> None:
        for one in ids:
            self.gates[one].set()


class Crowd(Performer):
    """Counts how many jobs run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def perform(self, job: Job) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(0.01)
        self.now -= 1


async def is_in(app: Queuetopia, job: Job, state: str) -> bool:
    return (await app.get_job(job)).state == state


async def reaches(app: Queuetopia, job: Job, state: str, *, within: float = DEADLINE) -> None:
    await eventually(lambda: is_in(app, job, state), within=within)


async def is_done(app: Queuetopia) -> bool:
    return not (await app.status()).count


async def has_looked(app: Queuetopia) -> None:
    """The only node has asked what there is to do, since this was called."""
    job = await app.create_job("look", "look")
    await reaches(app, job, "succeeded")


async def waits(app: Queuetopia, job: Job) -> timedelta:
    """How long a job that has failed waits for its next attempt."""
    found = await app.get_job(job)
    assert found.next_attempt_at is not None
    return found.next_attempt_at - found.updated_at


# What may be declared


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": ""}, "its name"),
        ({"name": "x" * 256}, "its name"),
        ({"name": None}, "its name"),
        ({"parallelism": 0}, "parallelism"),
        ({"parallelism": 1.5}, "parallelism"),
        ({"parallelism": True}, "parallelism"),
        ({"parallelism": 2**31}, "parallelism"),
        ({"per_node": 0}, "per_node"),
        ({"per_node": "2"}, "per_node"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 2**31}, "max_attempts"),
        ({"priority": 1.0}, "priority"),
        ({"priority": False}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"backoff": "quadratic"}, "none, linear, exponential"),
        ({"backoff": 15}, "backoff"),
        ({"backoff": ["none"]}, "backoff"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"jitter": "0.5"}, "jitter"),
    ],
)
def test_a_topic_that_cannot_be_is_refused(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault):
        Topic(**{"name": "refused", **arguments})


def test_everything_that_is_wrong_with_a_topic_is_said_at_once() -> None:
    with pytest.raises(Misconfigured, match=r"'wrong'.*parallelism.*per_node.*backoff.*jitter"):
        Topic("wrong", parallelism=0, per_node=0, backoff="no", jitter=2)


@pytest.mark.parametrize("topics", ["transcode", ["transcode"], {"transcode": Topic("declared")}, None, 5])
def test_topics_that_are_none_are_refused(topics: object) -> None:
    with pytest.raises(Misconfigured, match="topics must be a list of Topic"):
        Queuetopia(repo=Repo("postgresql://nowhere"), topics=topics)


def test_a_topic_that_is_declared_twice_is_refused() -> None:
    class Twice(Queuetopia):
        repo = Repo("postgresql://nowhere")
        topics = (Topic("twice"), Topic("once"), Topic("twice", parallelism=2))

    with pytest.raises(Misconfigured, match="topics has 'twice' 2 times"):
        Twice()


# How long a job that has failed waits


@pytest.mark.parametrize(
    ("strategy", "seconds"),
    [("none", [0, 0, 0]), ("linear", [15, 30, 45]), ("exponential", [16, 31, 96, 271, 640])],
)
def test_a_strategy_grows_with_the_attempts(strategy: str, seconds: list[int]) -> None:
    topic = Topic("strategies", backoff=strategy)
    delays = [topic.delay(replace(JOB, attempts=n)) for n in range(1, len(seconds) + 1)]
    assert delays == [timedelta(seconds=n) for n in seconds]


def test_the_default_is_exponential_without_jitter() -> None:
    assert {Topic("default").delay(JOB) for _ in range(20)} == {timedelta(seconds=16)}


@pytest.mark.parametrize(
    ("answer", "delay"),
    [(2.5, timedelta(seconds=2.5)), (timedelta(minutes=1), timedelta(minutes=1)), (-3, timedelta(0))],
)
def test_a_strategy_may_be_a_function_of_the_job(answer: float | timedelta, delay: timedelta) -> None:
    asked: list[Job] = []

    def backoff(job: Job) -> float | timedelta:
        asked.append(job)
        return answer

    assert Topic("function", backoff=backoff).delay(JOB) == delay
    assert asked == [JOB]


@pytest.mark.parametrize("jitter", [0.0, 0.25])
def test_no_job_waits_longer_than_its_max_backoff(jitter: float) -> None:
    limited = replace(JOB, attempts=9, max_backoff=timedelta(seconds=100))
    delays = [Topic("limited", jitter=jitter).delay(limited) for _ in range(50)]
    assert max(delays) <= timedelta(seconds=100)
    assert min(delays) >= timedelta(seconds=100) * (1 - jitter)


def test_jitter_shortens_the_wait_by_up_to_its_part() -> None:
    topic = Topic("jitter", backoff=lambda job: 1000, jitter=0.5)
    delays = [topic.delay(JOB).total_seconds() for _ in range(200)]
    assert all(500 <= delay <= 1000 for delay in delays)
    assert max(delays) - min(delays) > 250


# Classes of workers


def test_a_worker_without_a_topic_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r'Homeless needs a topic: class Homeless\(TopicWorker, topic="..."\)'
    ):

        class Homeless(TopicWorker):
            pass


@pytest.mark.parametrize("topic", ["never declared", 5])
def test_a_worker_of_an_unknown_topic_is_refused(topic: Any) -> None:
    with pytest.raises(TypeError, match="Lost: there is no Topic"):

        class Lost(TopicWorker, topic=topic):
            pass


def test_a_topic_that_was_refused_is_not_known() -> None:
    with pytest.raises(Misconfigured):
        Topic("half declared", parallelism=0)
    with pytest.raises(TypeError, match="there is no Topic"):

        class Half(TopicWorker, topic="half declared"):
            pass


def test_a_second_worker_of_the_same_name_is_refused() -> None:
    Topic("names")
    Topic("other names")

    def named(topic: str) -> type[TopicWorker]:
        class Same(TopicWorker, topic=topic):
            pass

        return Same

    class Same(TopicWorker, topic="names"):
        pass

    with pytest.raises(TypeError, match="'names' has a worker Same already"):
        named("names")
    assert named("other names").topic == "other names"
    assert Same.new().action == "Same"


def test_a_worker_that_is_made_again_takes_the_place_of_the_first() -> None:
    Topic("again")

    def made() -> type[TopicWorker]:
        class Again(TopicWorker, topic="again"):
            pass

        return Again

    assert made() is not made()


def test_an_option_that_a_worker_cannot_have_is_refused() -> None:
    Topic("options")
    with pytest.raises(TypeError, match="Odd has unknown options: colour, reply"):

        class Odd(TopicWorker, topic="options", reply=True, colour="red", priority=1):
            pass


def test_a_worker_that_is_refused_is_not_known() -> None:
    Topic("refusals")
    with pytest.raises(TypeError):

        class Refused(TopicWorker, topic="refusals", colour="red"):
            pass

    def elsewhere() -> type[TopicWorker]:
        class Refused(TopicWorker, topic="refusals"):
            pass

        return Refused

    assert elsewhere().topic == "refusals"


async def test_a_worker_inherits_topic_options_and_methods(dsn: str) -> None:
    Topic("parents")
    topic = Topic("heirs")

    class Parent(TopicWorker, topic="parents", max_attempts=7, priority=1):
        async def perform(self, job: Job, args: dict[str, Any]) -> str:
            return type(self).__name__

    class Child(Parent, priority=2):
        pass

    class Elsewhere(Parent, topic="heirs"):
        pass

    assert (Child.topic, Child.options) == ("parents", {"max_attempts": 7, "priority": 2})
    assert Elsewhere.options == {"max_attempts": 7, "priority": 1}
    async with an_app(dsn, topics=[topic]) as app, app.running():
        job = await Elsewhere.new().insert(app, reply=True)
        assert await app.reply(job) == Ok("Elsewhere")


# Their jobs


async def test_a_jobs_options_go_before_its_workers_and_those_before_the_topics(dsn: str) -> None:
    topic = Topic("ranks", max_attempts=50, priority=9)

    class Bare(TopicWorker, topic="ranks"):
        pass

    class Full(TopicWorker, topic="ranks", max_attempts=7, priority=3, timeout=5, max_backoff=60):
        pass

    async with an_app(dsn, topics=[topic]) as app:
        bare = await Bare.new().insert(app)
        full = await Full.new({}).insert(app)
        own = await Full.new({}, priority=0, timeout=1).insert(app, max_attempts=2, timeout=2)
        plain = await app.create_job("ranks", "anything")
        queue = await app.create_job("a queue", "anything")
        kept = [await app.get_job(one) for one in (bare, full, own, plain, queue)]
    assert [(one.max_attempts, one.priority, one.timeout.seconds, one.topic) for one in kept] == [
        (50, 9, 60, True),
        (7, 3, 5, True),
        (2, 0, 2, True),
        (50, 9, 60, True),
        (20, 0, 60, False),
    ]
    assert (full.queue, full.action, full.max_backoff) == ("ranks", "Full", timedelta(seconds=60))


async def test_create_jobs_gives_each_job_its_topics_defaults(dsn: str) -> None:
    topics = [Topic("many", max_attempts=3, priority=4), Topic("others")]
    async with an_app(dsn, topics=topics) as app:
        await app.create_jobs(
            [
                NewJob("many", "a"),
                {"queue": "many", "action": "a", "priority": 0, "max_attempts": 1},
                NewJob("others", "a"),
                NewJob("a queue", "a"),
            ]
        )
        kept = await app.list_jobs()
    assert [(one.max_attempts, one.priority, one.topic) for one in kept] == [
        (3, 4, True),
        (1, 0, True),
        (20, 0, True),
        (20, 0, False),
    ]


async def test_an_option_that_cannot_be_is_refused_when_the_job_is_inserted(dsn: str) -> None:
    topic = Topic("wrong options")

    class Never(TopicWorker, topic="wrong options", max_attempts=0):
        pass

    async with an_app(dsn, topics=[topic]) as app:
        with pytest.raises(InvalidJob, match="max_attempts"):
            await Never.new().insert(app)
        assert await app.count_jobs() == 0


async def test_a_worker_gets_the_job_and_its_args(dsn: str) -> None:
    topic = Topic("args", parallelism=5)
    got: list[tuple[Job, dict[str, Any]]] = []

    class Film(BaseModel):
        title: str
        year: int = 1979

    class Shown(TopicWorker, topic="args"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            got.append((job, args))
            return {"is_shown": True}

    class Threaded(TopicWorker, topic="args"):
        def perform(self, job: Job, args: dict[str, Any]) -> object:  # type: ignore[override]  # a plain def
            return threading.current_thread() is threading.main_thread()

    class Idle(TopicWorker, topic="args"):
        pass

    async with an_app(dsn, topics=[topic]) as app, app.running():
        job = await Shown.new(Film(title="Stalker")).insert(app, reply=True)
        assert await app.reply(job) == Ok({"is_shown": True})
        assert [(one.id, one.topic, args) for one, args in got] == [
            (job.id, True, {"title": "Stalker", "year": 1979})
        ]
        assert await app.reply(await Threaded.new().insert(app, reply=True)) == Ok(False)
        assert await app.reply(await Idle.new().insert(app, reply=True)) == Ok(None)


async def test_the_applications_performer_performs_what_is_no_workers(dsn: str) -> None:
    topic = Topic("both")

    class Own(TopicWorker, topic="both"):
        async def perform(self, job: Job, args: dict[str, Any]) -> str:
            return "by its worker"

    performer = Recorder(lambda job: "by the performer")
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        jobs = [
            await Own.new().insert(app, reply=True),
            await app.create_job("both", "other", reply=True),
            # The worker's name, in a queue that is no topic.
            await app.create_job("a queue", "Own", reply=True),
        ]
        assert [await app.reply(job) for job in jobs] == [
            Ok("by its worker"),
            Ok("by the performer"),
            Ok("by the performer"),
        ]


async def test_a_job_that_nobody_can_perform_fails_alone(dsn: str) -> None:
    topic = Topic("nobody", backoff="none", max_attempts=2)

    class Somebody(TopicWorker, topic="nobody"):
        pass

    async with an_app(dsn, topics=[topic]) as app, app.running():
        job = await app.create_job("nobody", "unknown")
        fine = await Somebody.new().insert(app)
        await reaches(app, fine, "succeeded")
        await reaches(app, job, "discarded")
        assert "no @action('unknown')" in (await app.get_job(job)).errors[-1]["error"]


async def test_a_worker_that_cannot_be_made_fails_its_job_alone(dsn: str) -> None:
    topic = Topic("unmade")

    class Unmade(TopicWorker, topic="unmade"):
        def __init__(self) -> None:
            raise ValueError("not today")

    performer = Recorder()
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        job = await Unmade.new().insert(app)
        other = await app.create_job("unmade", "other")
        await eventually(lambda: performer.ids == [other.id])
        await reaches(app, job, "retrying")
        assert (await app.get_job(job)).errors[0]["error"] == "ValueError: not today"


# Failures


class Oops(Exception):
    """Raised by a worker."""


async def test_after_error_is_told_why_each_attempt_has_failed(dsn: str) -> None:
    topic = Topic("errors", parallelism=3, backoff="none", max_attempts=2)
    told: dict[str, list[tuple[object, str, int]]] = {}

    class Unhappy(TopicWorker, topic="errors"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            match args["how"]:
                case "raise":
                    raise Oops("no")
                case "err":
                    return Err("not now")
                case _:
                    return Discard("never")

        async def after_error(self, job: Job, reason: object) -> None:
            told.setdefault(job.params["how"], []).append((reason, job.state, len(job.errors)))

    async with an_app(dsn, topics=[topic]) as app, app.running():
        jobs = [await Unhappy.new({"how": how}).insert(app) for how in ("raise", "err", "discard")]
        await eventually(lambda: is_done(app))
        await eventually(lambda: {how: len(calls) for how, calls in told.items()} == COUNTS)
        ends = [await app.get_job(job) for job in jobs]
    assert [(one.state, one.outcome, one.attempts) for one in ends] == [
        ("discarded", "abandoned", 2),
        ("discarded", "abandoned", 2),
        ("discarded", "abandoned", 1),
    ]
    assert [one.errors[-1]["error"] for one in ends] == ["Oops: no", "not now", "never"]
    assert [str(reason) for reason, _, _ in told["raise"]] == ["no", "no"]
    assert all(isinstance(reason, Oops) for reason, _, _ in told["raise"])
    assert [reason for reason, _, _ in told["err"]] == ["not now", "not now"]
    assert told["discard"] == [("never", "discarded", 1)]
    for how in ("raise", "err"):
        # The job may be in its second attempt when the first failure is told.
        assert told[how][0][2] >= 1, "what is told has been written"
        assert told[how][-1][1:] == ("discarded", 2), "told of the last attempt, too"


COUNTS = {"raise": 2, "err": 2, "discard": 1}


async def test_an_after_error_that_raises_harms_nobody(dsn: str) -> None:
    topic = Topic("unhelpful", backoff="none", max_attempts=3)
    calls: list[int] = []

    class Unhelpful(TopicWorker, topic="unhelpful"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            return Err("no") if job.attempts < 3 else "yes"

        async def after_error(self, job: Job, reason: object) -> None:
            calls.append(job.id)
            raise Oops("again")

    async with an_app(dsn, topics=[topic]) as app, app.running():
        job = await Unhelpful.new().insert(app, reply=True)
        replies = [await app.reply(job) for _ in range(3)]
        assert replies == [Retrying("no"), Retrying("no"), Ok("yes")]
        await eventually(lambda: calls == [job.id, job.id])


async def test_each_failed_attempt_leaves_an_error(dsn: str) -> None:
    topic = Topic("entries", backoff="none")
    performer = Recorder(lambda job: Err(f"attempt {job.attempts}") if job.attempts < 3 else None)
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        job = await app.create_job("entries", "a")
        await reaches(app, job, "succeeded")
        done = await app.get_job(job)
    assert [(error["attempt"], error["error"]) for error in done.errors] == [
        (1, "attempt 1"),
        (2, "attempt 2"),
    ]
    assert all({"at", "node", "traceback"} <= error.keys() for error in done.errors)
    assert done.attempts == 3


async def test_a_backoff_of_a_worker_or_a_performer_goes_before_the_topics(dsn: str) -> None:
    topic = Topic("backoffs", parallelism=3, backoff="linear")

    class Own(TopicWorker, topic="backoffs"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            return Err("no")

        def backoff(self, job: Job) -> timedelta:
            return timedelta(minutes=job.attempts)

    class Topics(TopicWorker, topic="backoffs", max_backoff=10):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            return Err("no")

    class Slow(Recorder):
        def backoff(self, job: Job) -> timedelta:
            return timedelta(hours=1)

    performer = Slow(lambda job: Err("no"))
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        own, topics = await Own.new().insert(app), await Topics.new().insert(app)
        performers = await app.create_job("backoffs", "x")
        for job in (own, topics, performers):
            await reaches(app, job, "retrying")
        assert await waits(app, own) == timedelta(minutes=1)
        assert await waits(app, topics) == timedelta(seconds=10)
        assert await waits(app, performers) == timedelta(hours=1)


async def test_a_performer_without_a_backoff_has_its_topics(dsn: str) -> None:
    topics = [Topic("linear", backoff="linear"), Topic("raising", backoff=lambda job: 1 / 0)]
    async with an_app(dsn, Recorder(lambda job: Err("no")), topics=topics) as app, app.running():
        jobs = [await app.create_job(queue, "x") for queue in ("linear", "raising", "a queue")]
        for job in jobs:
            await reaches(app, job, "retrying")
        # A backoff that raises is logged, and the default's takes its place.
        assert [await waits(app, job) for job in jobs] == [15 * SECOND, 2 * SECOND, 2 * SECOND]
        assert [blocked.queue for blocked in await app.blocked_queues()] == ["a queue"]


async def test_a_job_that_fails_does_not_hold_the_others_up_and_comes_back(dsn: str) -> None:
    topic = Topic("leaving", backoff=lambda job: 0.3)
    performer = Recorder(lambda job: Err("no") if job.action == "fail" and job.attempts == 1 else None)
    async with an_app(dsn, performer, topics=[topic]) as app:
        failing = await app.create_job("leaving", "fail", priority=5)
        others = [await app.create_job("leaving", "work") for _ in range(3)]
        async with app.running():
            await eventually(lambda: is_done(app))
    assert performer.ids == [failing.id, *[other.id for other in others], failing.id]


async def test_a_snoozing_job_does_not_hold_the_others_up(dsn: str) -> None:
    topic = Topic("snoozing")
    performer = Recorder(lambda job: Snooze(3600) if job.action == "snooze" else None)
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        snoozing = await app.create_job("snoozing", "snooze")
        other = await app.create_job("snoozing", "work")
        await reaches(app, other, "succeeded")
        assert (await app.get_job(snoozing)).attempts == 0
    assert performer.ids == [snoozing.id, other.id]


async def test_an_exhausted_job_that_is_to_block_blocks_nobody_but_itself(dsn: str) -> None:
    topic = Topic("blocking", backoff="none", max_attempts=1)
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer, topics=[topic], on_exhausted="block") as app, app.running():
        job = await app.create_job("blocking", "fail")
        other = await app.create_job("blocking", "work")
        await reaches(app, other, "succeeded")
        assert await is_in(app, job, "blocked")


# Which comes first


async def test_order_is_by_priority_then_due_time_then_id(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("order")]) as app:
        jobs = [
            await app.create_job("order", "a", priority=priority, scheduled_at=timedelta(hours=-hours))
            for priority, hours in [(0, 1), (0, 2), (5, 1), (-3, 9), (5, 3)]
        ]
        due = datetime.now(UTC) - timedelta(hours=1)
        same = await app.create_jobs(NewJob("order", "a", scheduled_at=due, priority=5) for _ in range(3))
        later = await app.create_job("order", "a", priority=100, scheduled_at=timedelta(hours=1))
        async with app.running():
            await eventually(lambda: len(performer.performed) == 8)
        assert await is_in(app, later, "scheduled")
    expected = [jobs[4].id, jobs[2].id, *[one.id for one in same], jobs[1].id, jobs[0].id, jobs[3].id]
    assert performer.ids == expected


async def test_a_job_of_a_higher_priority_passes_those_that_wait(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer, topics=[Topic("urgent")], shutdown=0) as app, app.running():
        jobs = [await app.create_job("urgent", "a") for _ in range(3)]
        await eventually(lambda: performer.running == [jobs[0].id])
        urgent = await app.create_job("urgent", "a", priority=1)
        performer.let_go([jobs[0].id])
        await eventually(lambda: performer.running == [urgent.id])


async def test_a_scheduled_job_runs_when_it_is_due(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("due")]) as app, app.running():
        later = await app.create_job("due", "a", scheduled_at=timedelta(seconds=0.4), priority=9)
        now = await app.create_job("due", "a")
        await eventually(lambda: performer.ids == [now.id, later.id])
        attempted_at = (await app.get_job(later)).attempted_at
        assert attempted_at is not None
        assert timedelta(0) <= attempted_at - later.scheduled_at < SECOND


@pytest.mark.parametrize(
    ("config", "first"), [(None, "a topic"), ("-1", "a queue"), ("11", "a topic"), ("nonsense", "a topic")]
)
async def test_a_topic_ranks_among_queues_by_its_jobs_or_a_config(
    dsn: str, connection: Connection, config: str | None, first: str
) -> None:
    performer = Recorder()
    topics = [Topic("a topic", priority=10)]
    async with an_app(dsn, performer, topics=topics, concurrency=1) as app:
        await app.create_job("a queue", "a", priority=5)
        await app.create_job("a topic", "a")
        if config is not None:
            await connection.execute(SET, "Test", "a topic_priority", config)
        async with app.running():
            await eventually(lambda: len(performer.performed) == 2)
    assert performer.performed[0].queue == first


async def test_a_flood_in_a_topic_does_not_starve_a_queue(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("flood", parallelism=9)], concurrency=2) as app:
        await app.create_jobs(NewJob("flood", "a") for _ in range(100))
        rare = await app.create_job("rare", "a", scheduled_at=timedelta(seconds=-1))
        async with app.running():
            await eventually(lambda: rare.id in performer.ids)
            await eventually(lambda: is_done(app))
    assert performer.ids.index(rare.id) < 10


# How many


async def test_parallelism_holds_in_the_whole_cluster(dsn: str) -> None:
    performer = Crowd()
    topics = [Topic("cluster", parallelism=3)]
    async with an_app(dsn, performer, topics=topics) as app, an_app(dsn, performer, topics=topics) as other:
        await app.create_jobs(NewJob("cluster", "a") for _ in range(40))
        async with app.running(), other.running():
            await eventually(lambda: is_done(app))
    assert performer.most == 3


async def test_a_topic_of_one_runs_one_at_a_time(dsn: str) -> None:
    performer = Crowd()
    async with an_app(dsn, performer, topics=[Topic("single")]) as app, app.running():
        await app.create_jobs(NewJob("single", "a") for _ in range(10))
        await eventually(lambda: is_done(app))
    assert performer.most == 1


async def test_per_node_limits_each_node(dsn: str) -> None:
    performer = Held()
    topics = [Topic("split", parallelism=3, per_node=2)]
    async with (
        an_app(dsn, performer, topics=topics, shutdown=0) as app,
        an_app(dsn, performer, topics=topics, shutdown=0) as other,
    ):
        await app.create_jobs(NewJob("split", "a") for _ in range(5))
        async with app.running():
            await eventually(lambda: len(performer.running) == 2)
            await has_looked(app)
            assert len(performer.running) == 2
            async with other.running():
                await eventually(lambda: len(performer.running) == 3)
                now = await app.utilisation("split")
                assert sorted(now.nodes.values()) == [(1, 0), (2, 0)]
                assert (now.running, now.parallelism) == (3, 3)


async def test_a_topic_takes_no_more_than_its_node_has_room_for(dsn: str) -> None:
    performer = Crowd()
    topics = [Topic("wide", parallelism=50)]
    async with an_app(dsn, performer, topics=topics, concurrency=4) as app, app.running():
        await app.create_jobs(NewJob("wide", "a") for _ in range(20))
        await eventually(lambda: is_done(app))
    assert performer.most == 4


async def test_parallelism_is_changed_by_sql_while_jobs_run(dsn: str, connection: Connection) -> None:
    performer = Held()
    key = "elastic_parallelism"
    async with an_app(dsn, performer, topics=[Topic("elastic")], shutdown=0) as app, app.running():
        jobs = [one.id for one in await app.create_jobs(NewJob("elastic", "a") for _ in range(8))]
        await eventually(lambda: performer.running == jobs[:1])
        await connection.execute(SET, "Test", key, "3")
        await eventually(lambda: performer.running == jobs[:3])
        assert (await app.utilisation("elastic")).parallelism == 3

        await connection.execute(SET, "Test", key, "1")
        await has_looked(app)
        assert performer.running == jobs[:3], "those that run go on"
        performer.let_go(jobs[1:3])
        await eventually(lambda: performer.running == jobs[:1])
        await has_looked(app)
        assert performer.running == jobs[:1], "and no other starts"
        performer.let_go(jobs[:1])
        await eventually(lambda: performer.running == jobs[3:4])

        await connection.execute(SET, "Test", key, "0")
        performer.let_go(jobs[3:4])
        await eventually(lambda: performer.running == [])
        await has_looked(app)
        assert performer.running == []

        await connection.execute("delete from pgqueuetopia.job_configs where key = $1", key)
        await eventually(lambda: performer.running == jobs[4:5])
        assert (await app.utilisation("elastic")).parallelism == 1


async def test_a_lowered_parallelism_starts_nothing_while_as_many_run(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer, topics=[Topic("lowered", parallelism=3)], shutdown=0) as app:
        jobs = [one.id for one in await app.create_jobs(NewJob("lowered", "a") for _ in range(5))]
        async with app.running():
            await eventually(lambda: performer.running == jobs[:3])
            await app.configs.set("lowered_parallelism", "1")
            performer.let_go(jobs[:1])
            await eventually(lambda: jobs[0] not in performer.running)
            await has_looked(app)
            assert performer.running == jobs[1:3]
            performer.let_go(jobs[1:3])
            await eventually(lambda: performer.running == jobs[3:4])


@pytest.mark.parametrize(("own", "everybodys", "expected"), [("2", "4", 2), (None, "4", 4), ("x", None, 3)])
async def test_a_scopes_own_parallelism_wins_over_that_of_every_scope(
    dsn: str, connection: Connection, own: str | None, everybodys: str | None, expected: int
) -> None:
    for scope, value in (("Test", own), ("*", everybodys)):
        if value is not None:
            await connection.execute(SET, scope, "scoped_parallelism", value)
    performer = Held()
    async with an_app(dsn, performer, topics=[Topic("scoped", parallelism=3)], shutdown=0) as app:
        await app.create_jobs(NewJob("scoped", "a") for _ in range(6))
        async with app.running():
            await eventually(lambda: len(performer.running) == expected)
            await has_looked(app)
            assert len(performer.running) == expected


async def test_the_same_topic_of_another_scope_has_slots_of_its_own(dsn: str) -> None:
    performer = Held()
    topics = [Topic("scopes")]
    async with (
        an_app(dsn, performer, topics=topics, shutdown=0) as app,
        an_app(dsn, performer, topics=topics, shutdown=0, scope="Other") as other,
    ):
        await app.create_job("scopes", "a")
        await other.create_job("scopes", "a")
        async with app.running(), other.running():
            await eventually(lambda: len(performer.running) == 2)


async def test_the_slots_of_a_lost_session_are_free_again(dsn: str, connection: Connection) -> None:
    performer = Held()
    async with (
        an_app(dsn, performer, topics=[Topic("lost", parallelism=2)], shutdown=0) as app,
        app.running(),
    ):
        jobs = await app.create_jobs(NewJob("lost", "a") for _ in range(2))
        await eventually(lambda: len(performer.running) == 2)
        await connection.execute("select pg_terminate_backend(pid) from pgqueuetopia.nodes")
        await eventually(lambda: performer.running == [])
        await eventually(lambda: len(performer.running) == 2)
        performer.let_go(job.id for job in jobs)
        await eventually(lambda: is_done(app))


# By hand


async def test_a_suspended_topic_starts_nothing_and_the_others_go_on(dsn: str) -> None:
    performer = Recorder()
    topics = [Topic("paused", parallelism=2), Topic("unpaused")]
    async with an_app(dsn, performer, topics=topics) as app, app.running():
        await app.suspend("paused")
        paused = await app.create_job("paused", "a", priority=9)
        other = await app.create_job("unpaused", "a")
        await eventually(lambda: performer.ids == [other.id])
        await has_looked(app)
        assert paused.id not in performer.ids
        assert (await app.status("paused")).suspended
        await app.resume("paused")
        await eventually(lambda: paused.id in performer.ids)


async def test_a_topic_is_suspended_on_one_instance_alone(dsn: str) -> None:
    here, there = Recorder(), Recorder()
    topics = [Topic("local")]
    async with an_app(dsn, here, topics=topics) as app, an_app(dsn, there, topics=topics) as other:
        await app.suspend("local", local=True)
        async with app.running():
            job = await app.create_job("local", "a")
            await has_looked(app)
            assert job.id not in here.ids
            async with other.running():
                await eventually(lambda: there.ids == [job.id])


async def test_suspension_waits_for_the_jobs_of_a_topic(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer, topics=[Topic("drained", parallelism=2)]) as app, app.running():
        jobs = await app.create_jobs(NewJob("drained", "a") for _ in range(3))
        await eventually(lambda: len(performer.running) == 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: app.suspend("drained", wait=True))

            async def is_suspended() -> bool:
                return (await app.status("drained")).suspended

            await eventually(is_suspended)
            assert len(performer.running) == 2
            performer.let_go(job.id for job in jobs)
        assert (performer.running, (await app.status("drained")).ready) == ([], 1)


async def test_a_waiting_job_is_cancelled_and_a_running_one_when_it_is_killed(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer, topics=[Topic("cancelling")], shutdown=0) as app, app.running():
        running, waiting, given_up, last = await app.create_jobs(NewJob("cancelling", "a") for _ in range(4))
        await eventually(lambda: performer.running == [running.id])
        assert await app.cancel(waiting) is Cancelled.OK
        assert await app.abandon(given_up) is Cancelled.OK
        assert await app.cancel(running) is Cancelled.IN_PROGRESS
        assert await app.abandon(running) is Cancelled.IN_PROGRESS
        assert await app.cancel(running, kill=True) is Cancelled.OK
        await eventually(lambda: performer.running == [last.id])
        assert await app.cancel(running) is Cancelled.NOT_FOUND
        states = [(await app.get_job(job)).state for job in (running, waiting, given_up)]
        assert states == ["cancelled", "cancelled", "discarded"]


async def test_retry_runs_a_waiting_job_now_and_a_discarded_one_again(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim < 3 else None)
    topic = Topic("retries", max_attempts=2)
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        job = await app.create_job("retries", "a")
        await reaches(app, job, "retrying")
        await app.retry(job)
        await eventually(lambda: len(performer.performed) == 2)
        # Its attempts are counted anew.
        await reaches(app, job, "retrying")
        assert await app.abandon(job) is Cancelled.OK
        assert await is_in(app, job, "discarded")
        await app.retry(job)
        await reaches(app, job, "succeeded")
    assert [one.claim for one in performer.performed] == [1, 2, 4], "an earlier run has nothing more to tell"


async def test_retry_all_runs_every_waiting_job_of_a_topic(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim == 1 else None)
    topics = [Topic("all", parallelism=3), Topic("none of them")]
    async with an_app(dsn, performer, topics=topics) as app, app.running():
        jobs = await app.create_jobs(NewJob("all", "a") for _ in range(3))
        other = await app.create_job("none of them", "a")
        for job in (*jobs, other):
            await reaches(app, job, "retrying")
        assert await app.retry_all("all") == 3
        for job in jobs:
            await reaches(app, job, "succeeded")
        assert await is_in(app, other, "retrying")


async def test_jobs_inserted_by_sql_are_taken_in(dsn: str, connection: Connection) -> None:
    insert = "insert into pgqueuetopia.jobs (scope, queue, action, priority, topic) values "
    performer = Held()
    topics = [Topic("by sql", parallelism=2)]
    async with an_app(dsn, performer, topics=topics, shutdown=0) as app, app.running():
        await has_looked(app)
        await connection.execute(
            insert + "('Test', 'by sql', 'a', 0, false), ('Test', 'by sql', 'a', 5, true)"
        )
        await eventually(lambda: len(performer.running) == 2)
        await connection.execute(
            insert + "('Test', 'by sql', 'a', 0, false), ('Test', 'by sql', 'a', 5, false)"
        )
        kept = await app.get_jobs("by sql")
        performer.let_go(job.id for job in kept[:2])
        await eventually(lambda: sorted(performer.running) == [job.id for job in kept[2:]])
        assert all([(await app.get_job(job)).topic for job in kept])


async def test_a_queue_that_becomes_a_topic_goes_on_as_one(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer) as app:
        failing = await app.create_job("growing", "fail", max_backoff=0.5)
        urgent = await app.create_job("growing", "a", priority=3)
        plain = await app.create_job("growing", "a")
        async with app.running():
            await reaches(app, failing, "retrying")
            assert await is_in(app, plain, "blocked")
    async with an_app(dsn, performer, topics=[Topic("growing")]) as app, app.running():
        await reaches(app, plain, "succeeded")
        await reaches(app, urgent, "succeeded")
        assert performer.ids[0] == failing.id
        assert performer.ids.index(urgent.id) < performer.ids.index(plain.id)


async def test_a_failing_job_is_moved_out_of_a_topic_and_into_one(dsn: str) -> None:
    topics = [Topic("from"), Topic("to")]

    class Moved(TopicWorker, topic="to"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            return args

    modes = {"from": Move("between"), "between": Move("to")}
    performer = Recorder(lambda job: Err("not here"))
    async with an_app(dsn, performer, topics=topics, failure_modes=modes) as app, app.running():
        first = await app.create_job("from", "Moved", {"kept": 1}, priority=7)
        await eventually(lambda: is_done(app))
        jobs = await app.list_jobs()
    assert [(one.queue, one.state, one.topic, one.result) for one in jobs] == [
        ("from", "moved", True, None),
        ("between", "moved", False, None),
        ("to", "succeeded", True, {"kept": 1}),
    ]
    assert {one.priority for one in jobs} == {7}
    assert jobs[2].moved_from == first.id


async def test_a_job_is_moved_by_hand_out_of_a_topic_and_into_one(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("by hand")]) as app:
        out = await app.move(await app.create_job("by hand", "a"), "a queue")
        into = await app.move(await app.create_job("another queue", "a"), "by hand")
        async with app.running():
            await eventually(lambda: sorted(performer.ids) == [out.id, into.id])
        assert [(await app.get_job(job)).topic for job in (out, into)] == [False, True]


async def test_a_jobs_own_failure_mode_goes_before_the_topics_attempts(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no"))
    async with an_app(dsn, performer, topics=[Topic("modes")]) as app, app.running():
        job = await app.create_job("modes", "a", failure_mode=Abandon())
        await reaches(app, job, "discarded")
    assert performer.ids == [job.id]


async def test_a_topics_job_has_replies(dsn: str) -> None:
    topic = Topic("replies", backoff="none", max_attempts=2)
    performer = Recorder(lambda job: Err("no") if job.action == "fail" or job.attempts == 1 else "yes")
    async with an_app(dsn, performer, topics=[topic]) as app, app.running():
        fine = await app.create_job("replies", "a", reply=True)
        assert [await app.reply(fine), await app.reply(fine)] == [Retrying("no"), Ok("yes")]
        failing = await app.create_job("replies", "fail", reply=True)
        assert [await app.reply(failing), await app.reply(failing)] == [Retrying("no"), Err("no")]


async def test_status_counts_a_topics_jobs(dsn: str) -> None:
    performer = Held()
    async with (
        an_app(dsn, performer, topics=[Topic("counted", parallelism=2)], shutdown=0) as app,
        app.running(),
    ):
        await app.create_jobs(NewJob("counted", "a") for _ in range(3))
        await app.create_job("counted", "a", scheduled_at=timedelta(hours=1))
        await eventually(lambda: len(performer.running) == 2)
        status = await app.status("counted")
        assert (status.executing, status.ready, status.scheduled, status.blocked) == (2, 1, 1, 0)


async def test_a_topics_job_ends_with_its_row_where_nothing_is_kept(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, topics=[Topic("unkept")], job_retention=0) as app, app.running():
        await app.create_jobs(NewJob("unkept", "a") for _ in range(3))
        await eventually(lambda: len(performer.performed) == 3)

        async def is_empty() -> bool:
            return await app.count_jobs() == 0

        await eventually(is_empty)


# What goes on


async def settled(app: Queuetopia, job: Job) -> Job:
    await eventually(lambda: is_done(app))
    return await app.get_job(job)


async def test_a_launched_job_keeps_its_slot_until_its_handle_has_ended(dsn: str) -> None:
    handle: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    performer = Recorder(lambda job: Launched(handle) if job.action == "launch" else None)
    async with an_app(dsn, performer, topics=[Topic("launching")]) as app, app.running():
        job = await app.create_job("launching", "launch", reply=True)
        behind = await app.create_job("launching", "work")
        await reaches(app, job, "launched")
        await has_looked(app)
        assert await is_in(app, behind, "ready")
        now = await app.utilisation("launching")
        assert (now.running, now.launched) == (1, 1)
        assert await app.cancel(job) is Cancelled.IN_PROGRESS
        handle.set_result("rendered")
        assert await app.reply(job) == Ok("rendered")
        await reaches(app, behind, "succeeded")
        assert (await app.utilisation("launching")).running == 0


async def test_a_handle_that_has_ended_already_is_no_matter(dsn: str) -> None:
    handle: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    handle.set_result("long ago")
    topics = [Topic("ended")]
    async with an_app(dsn, Recorder(lambda job: Launched(handle)), topics=topics) as app, app.running():
        job = await app.create_job("ended", "a", reply=True)
        assert await app.reply(job) == Ok("long ago")


async def test_after_async_decides_what_a_launched_job_comes_to(dsn: str) -> None:
    topic = Topic("deciding", parallelism=5, max_attempts=1)
    handles: list[object] = []

    class Deciding(TopicWorker, topic="deciding"):
        async def perform(self, job: Job, args: dict[str, Any]) -> object:
            return Launched(work(args["what"]))

        async def after_async(self, job: Job, handle: Any) -> object:
            handles.append(handle)
            match job.params["what"]:
                case "discard":
                    return Discard("given up")
                case "err":
                    return Err("not good")
                case "raise":
                    raise Oops("no")
                case what:
                    return f"{what}, and decided"

    async def work(what: str) -> None:
        if what == "break":
            raise Oops("nobody asks")

    async with an_app(dsn, topics=[topic]) as app, app.running():
        names = ("discard", "err", "raise", "break", "fine")
        jobs = [await Deciding.new({"what": what}).insert(app) for what in names]
        await eventually(lambda: is_done(app))
        ends = [await app.get_job(job) for job in jobs]
    assert [one.state for one in ends] == ["discarded", "discarded", "discarded", "succeeded", "succeeded"]
    assert [one.errors[0]["error"] for one in ends[:3]] == ["given up", "not good", "Oops: no"]
    assert [one.result for one in ends[3:]] == ["break, and decided", "fine, and decided"]
    assert len(handles) == 5
    assert all(asyncio.iscoroutine(handle) for handle in handles)


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        ("", "succeeded", None),
        ("import sys; sys.exit('it is broken')", "discarded", "exit code 1: it is broken"),
    ],
)
async def test_a_processs_exit_code_decides_otherwise(
    dsn: str, code: str, state: str, error: str | None
) -> None:
    class Processes(Performer):
        async def perform(self, job: Job) -> object:
            process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, stderr=PIPE)
            return Launched(process)

    topics = [Topic("processes", max_attempts=1)]
    async with an_app(dsn, Processes(), topics=topics) as app, app.running():
        end = await settled(app, await app.create_job("processes", "a"))
    assert end.state == state
    assert [one["error"] for one in end.errors] == ([] if error is None else [error])


async def test_what_a_launched_task_raises_is_a_failure(dsn: str) -> None:
    async def work() -> None:
        raise Oops("broken")

    topics = [Topic("tasks", max_attempts=1)]
    performer = Recorder(lambda job: Launched(asyncio.ensure_future(work())))
    async with an_app(dsn, performer, topics=topics) as app, app.running():
        end = await settled(app, await app.create_job("tasks", "a"))
    assert end.errors[0]["error"] == "Oops: broken"
    assert "in work" in end.errors[0]["traceback"]


async def test_what_is_no_handle_is_a_failure(dsn: str) -> None:
    topics = [Topic("no handle", max_attempts=1)]
    async with an_app(dsn, Recorder(lambda job: Launched(os.getpid())), topics=topics) as app, app.running():
        end = await settled(app, await app.create_job("no handle", "a"))
    assert "cannot be launched" in end.errors[0]["error"]


async def endless(ends: list[str]) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        ends.append("ended")


async def test_a_timeout_ends_what_was_launched(dsn: str) -> None:
    ends: list[str] = []
    topics = [Topic("timeouts", max_attempts=1)]
    performer = Recorder(lambda job: Launched(asyncio.ensure_future(endless(ends))))
    async with an_app(dsn, performer, topics=topics) as app, app.running():
        end = await settled(app, await app.create_job("timeouts", "a", timeout=0.1))
    assert (end.state, end.errors[0]["error"]) == ("discarded", "timeout: the job took longer than 0.1 s")
    assert ends == ["ended"]


async def test_a_timeout_ends_what_a_thread_has_launched(dsn: str) -> None:
    ends: list[str] = []

    class Threaded(Performer):
        def perform(self, job: Job) -> object:
            return Launched(endless(ends))

    topics = [Topic("threads", max_attempts=1)]
    async with an_app(dsn, Threaded(), topics=topics, shutdown=0) as app, app.running():
        job = await app.create_job("threads", "a", timeout=0.1)
        await reaches(app, job, "discarded", within=5)
    assert ends == ["ended"]


async def test_a_kill_and_the_end_of_the_node_end_what_was_launched(dsn: str) -> None:
    ends: list[str] = []
    performer = Recorder(lambda job: Launched(asyncio.ensure_future(endless(ends))))
    topics = [Topic("killed", parallelism=2)]
    async with an_app(dsn, performer, topics=topics, shutdown=0) as app:
        async with app.running():
            killed, interrupted = await app.create_jobs(NewJob("killed", "a", timeout=0) for _ in range(2))
            for job in (killed, interrupted):
                await reaches(app, job, "launched")
            assert await app.cancel(killed, kill=True) is Cancelled.OK
            assert ends == ["ended"]
        assert ends == ["ended", "ended"]
        assert await is_in(app, killed, "cancelled")
        assert ((await app.get_job(interrupted)).state, (await app.get_job(interrupted)).attempts) == (
            "ready",
            0,
        )


# The page on topics


async def is_listened_to(connection: Connection, scope: str) -> bool:
    return bool(await connection.fetchval("select pgqueuetopia.is_listened_to($1)", scope))


async def test_what_the_page_on_topics_says_is_so(dsn: str, connection: Connection) -> None:
    names = program("topics.md")
    media = names["Media"](repo=Repo(dsn))
    await media.configs.set("transcode_parallelism", "1")
    await names["at_night"](media)
    assert (await media.utilisation("transcode")).parallelism == 16
    async with media.running():
        even, odd = [await names["Transcode"].new({"film": n}).insert(media) for n in (2, 3)]
        computed = await names["Transcode"].new({"frames": 20}).insert(media, reply=True)
        heard: list[Event] = []

        async def listen() -> None:
            heard.append(await names["until_discarded"](media))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await eventually(lambda: is_listened_to(connection, media.scope))
            urgent, discarded, fine = await names["tell"](media)
        assert [(event.job, event.queue) for event in heard] == [(discarded.id, "notify")]
        assert await media.reply(fine) == Ok("told d@e.f")
        assert await media.reply(discarded) == Err("nobody to be told")
        assert await media.reply(computed, timeout=20) == Ok(2432902008176640000)
        assert (urgent.priority, urgent.max_attempts, urgent.timeout) == (100, 3, timedelta(seconds=10))
        await reaches(media, even, "succeeded")
        await reaches(media, odd, "retrying")
        report = await names["report"](media)
        assert report[0] == "0 of 16 run, 0 of them launched"
        assert any(line.startswith("Transcode: 2 done, 0 failed, 0 retried") for line in report)
    await media.close()
