"""A node that loses its session stops its jobs, connects again, and loses nothing."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import asyncpg
import pytest
import structlog

from pgqueuetopia import Job, Misconfigured, Queuetopia, Repo, Settings
from pgqueuetopia.db import session
from pgqueuetopia.db.hearing import JOBS_CHANNEL, Told
from pgqueuetopia.node import node, rescue, sleep
from pgqueuetopia.node.node import Node
from pgqueuetopia.node.scheduler import Scheduler
from tests.conftest import execute
from tests.proxy import a_proxy
from tests.support import Recorder, an_app, eventually

END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name like 'pgqueuetopia %'
"""


class Held(Recorder):
    """Jobs run until they are let go; remembers when each began and ended."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.let_go = anyio.Event()
        self.runs: list[tuple[float, float]] = []

    async def _hold(self, job: Job) -> None:
        began = time.monotonic()
        try:
            await self.let_go.wait()
        finally:
            self.runs.append((began, time.monotonic()))


async def test_a_job_of_a_lost_session_is_stopped_and_runs_again_without_a_spent_attempt(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Held()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        await connection.execute(END_SESSIONS)
        await eventually(lambda: len(performer.performed) == 2)
        performer.let_go.set()
        await eventually(lambda: is_in(app, job, "succeeded"))
        assert (await app.get_job(job)).attempts == 1
        assert (await app.get_job(job)).claim == 2
    assert len(performer.runs) == 2
    assert performer.runs[0][1] <= performer.runs[1][0], "the two runs do not overlap"


async def is_in(app: Any, job: Job, state: str) -> bool:
    return bool((await app.get_job(job)).state == state)


async def test_a_job_that_ignores_its_cancellation_may_run_beside_itself_and_its_node_goes_on(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is lost and it does not end in time: its queue is anybody's, and comes to the same node."""
    monkeypatch.setattr(node, "GRACE", 0.05)
    ends = [anyio.Event(), anyio.Event()]
    ended: list[int] = []

    async def perform(job: Job) -> None:
        if job.queue == "q":
            await ignoring_cancellation(ends[job.claim - 1])
            ended.append(job.claim)

    performer = Recorder(perform)
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        await connection.execute(END_SESSIONS)
        await eventually(lambda: len(performer.performed) == 2)
        for n, end in enumerate(ends):
            end.set()
            await eventually(partial(has_ended, ended, n + 1))
        await eventually(lambda: is_in(app, job, "succeeded"))
        other = await app.create_job("other", "a")
        await eventually(lambda: is_in(app, other, "succeeded"))


async def ignoring_cancellation(end: anyio.Event) -> None:
    while not end.is_set():
        with suppress(asyncio.CancelledError):
            await end.wait()


def has_ended(ended: list[int], claim: int) -> bool:
    return claim in ended


async def test_an_unexpected_error_ends_the_session_and_others_run_what_it_ran(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Whatever it is, a processor of the user's that breaks, say: no lock is left behind."""

    def break_off(logger: object, method: str, event: Any) -> Any:
        if event["event"] == "config_refused":
            raise ZeroDivisionError
        return event

    structlog.configure(processors=[break_off, structlog.processors.JSONRenderer()])
    here, there = Held(), Recorder()
    # Nor is it the server that ends it.
    options = {"settings": RateSettings, "session_timeout": 600}
    async with an_app(dsn, here, **options) as app, an_app(dsn, there) as other:
        job = await app.create_job("q", "a")
        with pytest.raises(BaseExceptionGroup) as raised:
            await run_until_it_breaks(app, here, connection)
        assert raised.group_contains(ZeroDivisionError)
        async with other.running():
            await eventually(lambda: there.ids == [job.id])


class RateSettings(Settings):
    rate: int = 10


async def run_until_it_breaks(app: Any, performer: Recorder, connection: Any) -> None:
    async with app.running():
        await eventually(lambda: performer.performed)
        await connection.execute(
            "insert into pgqueuetopia.job_configs (scope, key, value) values ('Test', 'rate', 'fast')"
        )
        await anyio.sleep_forever()


async def test_a_node_that_lost_its_session_hears_and_obeys_as_before(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await connection.execute(END_SESSIONS)
        await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        await app.suspend()
        await app.create_job("q", "a")
        assert len(performer.performed) == 1
        await app.resume()
        await eventually(lambda: len(performer.performed) == 2)


async def test_an_outcome_that_came_in_while_the_session_was_lost_is_saved_late(dsn: str) -> None:
    async with a_proxy(dsn) as (proxy, through):
        performer = Recorder(lambda job: anyio.sleep(0.05))
        repo = Repo(dsn, session_dsn=through)
        async with an_app(dsn, performer, repo=repo, session_timeout=1) as app, app.running():
            job = await app.create_job("q", "a")
            await eventually(lambda: performer.performed)
            proxy.black_hole()
            await eventually(lambda: is_in(app, job, "succeeded"))
            proxy.heal()
            assert (await app.get_job(job)).claim == 1
    assert len(performer.performed) == 1


async def test_an_outcome_that_could_not_be_saved_is_saved_with_the_next_connection(dsn: str) -> None:
    async with a_proxy(dsn) as (proxy, through), an_app(dsn, scope="Test") as outside:
        performer = Recorder(lambda job: proxy.cut())
        async with an_app(through, performer) as app, app.running():
            with structlog.testing.capture_logs() as logs:
                job = await outside.create_job("q", "a")
                await eventually(logged(logs, "outcomes_unsaved"))
                proxy.heal()
                await eventually(lambda: is_in(outside, job, "succeeded"))
            assert (await outside.get_job(job)).claim == 1
    assert len(performer.performed) == 1


@pytest.mark.slow
async def test_a_node_that_is_cut_off_stops_before_another_starts_every_time_of_twenty(dsn: str) -> None:
    """The black hole: neither side is told, and both have to notice."""
    at_once = anyio.CapacityLimiter(7)
    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(cut_off_and_compare, dsn, f"Test{n}", at_once)


# A quarter of it is what a starved machine may cost the node that is cut off.
CUT_OFF = 6


async def cut_off_and_compare(dsn: str, scope: str, at_once: anyio.CapacityLimiter) -> None:
    cut_off, other = Held(), Held()
    async with at_once, a_proxy(dsn) as (proxy, through):
        repo = Repo(dsn, session_dsn=through, max_size=1)
        async with (
            an_app(dsn, cut_off, repo=repo, session_timeout=CUT_OFF, scope=scope) as app,
            an_app(dsn, other, repo=Repo(dsn, max_size=1), session_timeout=CUT_OFF, scope=scope) as second,
            app.running(),
        ):
            await app.create_job("q", "a")
            await eventually(lambda: cut_off.performed)
            async with second.running():
                proxy.black_hole()
                await eventually(lambda: other.performed)
                assert len(cut_off.runs) == 1
                other.let_go.set()
                proxy.heal()
                await eventually(lambda: other.runs)
    assert cut_off.runs[0][1] < other.runs[0][0]


async def test_a_reset_connection_is_replaced(dsn: str) -> None:
    async with a_proxy(dsn) as (proxy, through):
        performer = Recorder()
        repo = Repo(dsn, session_dsn=through)
        async with an_app(dsn, performer, repo=repo) as app, app.running():
            for n in range(3):
                await proxy.reset()
                await app.create_job("q", "a")
                await eventually(partial(has_performed, performer, n + 1))


def has_performed(performer: Recorder, jobs: int) -> bool:
    return len(performer.performed) == jobs


async def test_a_node_that_was_alone_notices_the_death_of_one_that_joined_later(dsn: str) -> None:
    here, there = Recorder(), Held()
    async with (
        a_proxy(dsn) as (proxy, through),
        an_app(dsn, here) as app,
        app.running(),
        an_app(dsn, there, repo=Repo(dsn, session_dsn=through), shutdown=0) as other,
    ):
        await app.suspend(local=True)
        async with other.running():
            await app.create_job("q", "a")
            await eventually(lambda: there.performed)
            resumed_at = time.monotonic()
            await app.resume(local=True)
            # It sleeps again after that.
            await eventually(lambda: has_looked_for_the_dead(app, resumed_at))
            # Its death, for it does not come back: that would be told, too.
            await proxy.cut()
            await eventually(lambda: here.performed, within=5)


def has_looked_for_the_dead(app: Queuetopia, since: float) -> bool:
    """Its last look of this kind began later."""
    return the_loop(app).rescue._last > since


def the_loop(app: Queuetopia) -> Scheduler:
    """Of the one node of an app."""
    [running] = app._nodes
    assert isinstance(running, Node)
    assert running._scheduler is not None
    return running._scheduler


@pytest.mark.slow
async def test_a_node_that_reads_nothing_any_longer_is_ended_by_another(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A frozen process: notifications fill its socket, and the server waits, by no timeout of its own."""
    here, there = Held(), Recorder()
    async with a_proxy(dsn) as (proxy, through):
        frozen = Repo(dsn, session_dsn=through)
        async with (
            an_app(dsn, there, session_timeout=2) as other,
            an_app(dsn, here, repo=frozen, session_timeout=2, shutdown=0) as app,
            app.running(),
        ):
            job = await app.create_job("q", "a")
            await eventually(lambda: here.performed)
            proxy.black_hole()
            while not await connection.fetch(WAITS_FOR_ITS_CLIENT):
                await connection.execute(FLOOD)
            async with other.running():
                with structlog.testing.capture_logs() as logs:
                    await eventually(lambda: there.ids == [job.id], within=10)
                await eventually(logged(logs, "stalled_sessions_ended"))
            proxy.heal()


FLOOD = "select pg_notify('pgqueuetopia_jobs', 'nobody ' || n) from generate_series(1, 2000) n"
WAITS_FOR_ITS_CLIENT = """
select from pg_stat_activity
where application_name like 'pgqueuetopia %' and wait_event = 'ClientWrite' and datname = current_database()
"""


class Threaded(Recorder):
    """Its jobs run in threads."""

    def perform(self, job: Job) -> None:  # type: ignore[override]
        self.performed.append(job)


@pytest.mark.parametrize("performer_class", [Recorder, Threaded])
async def test_a_job_that_was_claimed_too_long_ago_is_not_started(
    dsn: str, monkeypatch: pytest.MonkeyPatch, performer_class: type[Recorder]
) -> None:
    """A process that was frozen between claim and start: its queue may run elsewhere by now."""
    performer = performer_class()
    async with an_app(dsn, performer) as app:
        job = await app.create_job("q", "a")
        with monkeypatch.context() as frozen:
            frozen.setattr(session.Session, "is_fresh", False)
            async with app.running():
                await eventually(lambda: has_claim(app, job, 2))
        assert performer.performed == []
        async with app.running():
            await eventually(lambda: is_in(app, job, "succeeded"))
        assert (await app.get_job(job)).attempts == 1


async def test_an_answer_is_as_old_as_its_question(dsn: str) -> None:
    """A frozen process finds an answer when it wakes; what it says was true before."""
    asking = await session.Session.open(dsn, "Test", "node", Told(), timeout=4)
    answer = asyncio.create_task(asking.ping())
    await asyncio.sleep(0)
    assert asking.is_fresh
    time.sleep(3.1)  # noqa: ASYNC251
    await answer
    assert not asking.lost
    assert not asking.is_fresh
    await asking.ping()
    assert asking.is_fresh
    await asking.close()


async def has_claim(app: Any, job: Job, claim: int) -> bool:
    return bool((await app.get_job(job)).claim >= claim)


async def test_a_node_that_finds_itself_alone_looks_for_the_queues_of_the_dead_once_more(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one beside it died after its last look for them: nothing but its absence tells."""
    here, there = Recorder(), Held()
    async with (
        an_app(dsn, here, poll_interval=0.1) as app,
        an_app(dsn, there, shutdown=0) as other,
        other.running(),
    ):
        await app.create_job("q", "a")
        await eventually(lambda: there.performed)
        async with app.running():
            loop = the_loop(app)
            monkeypatch.setattr(rescue, "RESCUE", 3600)
            await eventually(lambda: loop.sleep.is_on and loop.rescue._pause == 3600)
            monkeypatch.setattr(sleep, "COMPANY", 0.3)
            pid = await pid_of(dsn, (await app.status()).nodes, there.performed[0].attempted_by)
            other._pause.all = True
            monkeypatch.setattr(other.repo, "_session_dsn", "postgresql://127.0.0.1:1/none")
            await execute(dsn, f"select pg_terminate_backend({pid})")
            await eventually(lambda: here.performed)


async def pid_of(dsn: str, nodes: tuple[str, ...], node: str | None) -> int:
    assert node in nodes
    connection = await asyncpg.connect(dsn)
    pid = await connection.fetchval("select pid from pgqueuetopia.nodes where node = $1", node)
    await connection.close()
    return int(pid)


async def test_a_node_that_starts_before_its_database_waits_for_it(dsn: str) -> None:
    async with a_proxy(dsn) as (_, through):
        performer = Recorder()
        started = anyio.Event()
        repo = Repo(dsn, session_dsn=f"{through}_which_is_not_there_yet")
        async with an_app(dsn, performer, repo=repo) as app, anyio.create_task_group() as tasks:

            async def run() -> None:
                async with app.running():
                    started.set()
                    await eventually(lambda: performer.performed)

            with structlog.testing.capture_logs() as logs:
                tasks.start_soon(run)
                await app.create_job("q", "a")
                await eventually(lambda: [log for log in logs if log["event"] == "database_unavailable"])
            assert not started.is_set()
            app.repo._session_dsn = through
        assert started.is_set()


async def test_an_idle_session_gives_signs_of_life(dsn: str) -> None:
    """Every second; a machine that stands still for three loses the session, and rightly so."""
    performer = Recorder()
    async with an_app(dsn, performer, session_timeout=4) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            await pings(dsn, 3)
            await app.create_job("q", "a")
            await eventually(lambda: performer.performed)
        assert [log for log in logs if log["event"] == "session_lost"] == []


async def pings(dsn: str, number: int) -> None:
    """Wait until so many signs of life were heard."""
    heard: list[object] = []

    def hear(*notified: Any) -> None:
        if str(notified[-1]).startswith("ping "):
            heard.append(notified)

    listener = await asyncpg.connect(dsn)
    await listener.add_listener(JOBS_CHANNEL, hear)
    await eventually(lambda: len(heard) >= number)
    await listener.close()


@pytest.mark.slow
async def test_a_performer_that_blocks_the_loop_is_reported_and_its_node_comes_back(dsn: str) -> None:
    def block(job: Job) -> None:
        if job.attempts == 1:
            time.sleep(2.2)

    async def perform(job: Job) -> None:
        block(job)

    performer = Recorder(perform)
    async with an_app(dsn, performer, session_timeout=1.2) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            job = await app.create_job("q", "a")
            await eventually(lambda: is_in(app, job, "succeeded"))
            await eventually(logged(logs, "event_loop_stalled"))


def logged(logs: Any, event: str) -> Callable[[], bool]:
    return lambda: any(log["event"] == event for log in logs)


async def test_a_pooler_between_a_node_and_its_database_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda self: 1)
    async with an_app(dsn, Recorder()) as app:
        with pytest.raises(Misconfigured, match="session_dsn"):
            async with app.running():
                pass
