"""A node with several jobs of a queue runs them one by one, and gives back what it cannot start."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Err, Job, Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Question, Stepped
from pgqueuetopia.node import hold
from pgqueuetopia.node.hold import GROWTH, LONG, MEANT, Hold
from pgqueuetopia.slices import Slice
from tests.support import Recorder, an_app, eventually

JOBS = 400


class Overlapping(Exception):
    """Two jobs of a queue ran at once."""


class Strict(Recorder):
    """Remembers which jobs ran, and notices two of a queue at once."""

    def __init__(self, answer: Callable[[Job], Any] = lambda job: None) -> None:
        super().__init__(answer)
        self.running: set[str] = set()
        self.overlaps: list[str] = []

    async def perform(self, job: Job) -> Any:
        if job.queue in self.running:
            self.overlaps.append(job.queue)
        self.running.add(job.queue)
        try:
            await anyio.lowlevel.checkpoint()
            return await super().perform(job)
        finally:
            self.running.discard(job.queue)


async def fill(app: Queuetopia, jobs: int = JOBS, queue: str = "q") -> list[int]:
    return [job.id for job in await app.create_jobs([{"queue": queue, "action": "a"}] * jobs)]


async def until_all_is_done(app: Queuetopia) -> None:
    async def is_done() -> bool:
        status = await app.status()
        return status.ready + status.executing + status.retrying + status.blocked == 0

    await eventually(is_done)


async def test_a_hot_queue_runs_in_order_and_each_job_once(dsn: str) -> None:
    performer = Strict()
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app)
        async with app.running():
            await until_all_is_done(app)
        stored = await app.list_jobs(queue="q", limit=JOBS)
    assert (performer.ids, performer.overlaps) == (jobs, [])
    assert {(job.attempts, job.outcome) for job in stored} == {(1, "succeeded")}
    begun = [job.attempted_at for job in performer.performed]
    assert all(a is not None and b is not None and a <= b for a, b in itertools.pairwise(begun))


async def test_a_job_that_fails_is_run_again_before_what_was_prefetched_behind_it(dsn: str) -> None:
    performer = Strict(lambda job: Err("again") if job.attempts == 1 and job.id % 7 == 0 else None)
    performer.backoff = lambda job: timedelta(0)  # type: ignore[method-assign]
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app, 100)
        async with app.running():
            await until_all_is_done(app)
    expected = [again for job in jobs for again in [job] * (2 if job % 7 == 0 else 1)]
    assert (performer.ids, performer.overlaps) == (expected, [])


async def test_jobs_of_a_queue_share_a_task_while_nobody_can_tell(dsn: str) -> None:
    """A task for each would cost a fifth of what a job costs a node."""
    tasks: dict[int, asyncio.Task[Any] | None] = {}
    names: dict[int, str] = {}

    def note(job: Job) -> None:
        tasks[job.id] = task = asyncio.current_task()
        names[job.id] = task.get_name() if task is not None else ""

    async with an_app(dsn, Strict(note), prefetch=16) as app:
        jobs = await fill(app)
        async with app.running():
            await until_all_is_done(app)
    assert len(set(tasks.values())) < JOBS / 4
    assert names == {job: f"job {job}" for job in jobs}


seen: ContextVar[int] = ContextVar("seen")


async def test_what_a_job_does_to_its_task_is_not_there_for_the_next(dsn: str) -> None:
    """Context variables that it sets, and a cancellation that it swallows."""
    found: list[int | None] = []
    cancelling: list[int] = []

    async def spoil(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        found.append(seen.get(None))
        cancelling.append(task.cancelling())
        if job.id % 3 == 0:
            seen.set(job.id)
        elif job.id % 3 == 1:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    performer = Strict(spoil)
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app)
        async with app.running():
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == (jobs, [])
    assert set(found) == {None}
    assert set(cancelling) == {0}


async def test_a_cancellation_that_a_job_leaves_behind_does_not_cost_the_next(dsn: str) -> None:
    """As a timer of some library's does that nobody has stopped."""

    def leave_behind(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        if job.id % 3 == 0:
            asyncio.get_running_loop().call_soon(task.cancel)

    performer = Strict(leave_behind)
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app, 60)
        async with app.running():
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == (jobs, [])


class Incomparable:
    """As arrays of numbers are."""

    __hash__ = None  # type: ignore[assignment]  # neither

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


async def test_a_job_may_set_a_context_variable_to_what_cannot_be_compared(dsn: str) -> None:
    anything: ContextVar[object] = ContextVar("anything", default=None)

    def note(job: Job) -> None:
        anything.set(Incomparable())

    performer = Strict(note)
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app, 60)
        anything.set(Incomparable())
        async with app.running():
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == (jobs, [])


class Stuck:
    """A node at a job of sixteen that waits, and not at the first of them: 33 are done, 26 are behind it."""

    def __init__(self, app: Queuetopia, performer: Strict, jobs: list[int]) -> None:
        self.app = app
        self.performer = performer
        self.jobs = jobs
        self.slow, self.behind = jobs[33:35]
        self.gate = anyio.Event()
        performer.answer = lambda job: self.gate.wait() if job.id == self.slow else None


@asynccontextmanager
async def a_stuck_node(dsn: str) -> AsyncIterator[Stuck]:
    performer = Strict()
    async with an_app(dsn, performer, prefetch=16) as app:
        stuck = Stuck(app, performer, await fill(app, 60))
        async with app.running():
            await eventually(lambda: stuck.slow in performer.ids)
            yield stuck
            await until_all_is_done(app)


async def test_a_slow_job_among_quick_ones_is_seen_to_run_and_what_is_behind_it_is_free(dsn: str) -> None:
    async with a_stuck_node(dsn) as stuck:
        await eventually(lambda: is_executing(stuck.app, stuck.slow))
        assert (await stuck.app.get_job(stuck.slow)).attempts == 1
        assert all([(await stuck.app.get_job(job)).outcome == "succeeded" for job in stuck.jobs[:33]])
        await eventually(lambda: is_ended(stuck.app, stuck.behind))
        stuck.gate.set()
    assert stuck.performer.ids == [job for job in stuck.jobs if job != stuck.behind]


async def test_a_slow_job_whose_row_somebody_has_locked_is_seen_to_run_later(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    transaction = connection.transaction()
    performer = Strict()
    async with an_app(dsn, performer, prefetch=16) as app:
        stuck = Stuck(app, performer, await fill(app, 60))
        slow = performer.answer

        async def lock() -> None:
            await transaction.start()
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", stuck.slow)

        performer.answer = lambda job: lock() if job.id == stuck.jobs[32] else slow(job)
        async with app.running():
            await eventually(lambda: is_done(app, stuck.jobs[32]))
            assert (await app.get_job(stuck.slow)).attempts == 0
            await transaction.rollback()
            await eventually(lambda: is_executing(app, stuck.slow))
            assert (await app.get_job(stuck.slow)).attempts == 1
            stuck.gate.set()
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == (stuck.jobs, [])


async def is_done(app: Queuetopia, job: int) -> bool:
    return (await app.get_job(job)).outcome == "succeeded"


async def is_executing(app: Queuetopia, job: int) -> bool:
    return (await app.get_job(job)).state == "executing"


async def is_ended(app: Queuetopia, job: int) -> bool:
    """Whether it could be cancelled: in a moment, when it has been given back."""
    return await app.cancel(job) is Cancelled.OK


async def test_one_that_is_prefetched_can_be_killed(dsn: str) -> None:
    async with a_stuck_node(dsn) as stuck:
        assert await stuck.app.cancel(stuck.behind, kill=True) is Cancelled.OK
        assert await stuck.app.cancel(stuck.slow, kill=True) is Cancelled.OK
        assert (await stuck.app.get_job(stuck.slow)).outcome == "cancelled"
    assert stuck.performer.ids == [job for job in stuck.jobs if job != stuck.behind]


async def test_who_leaves_gives_back_what_it_has_not_started(dsn: str) -> None:
    performer = Strict(lambda job: anyio.sleep(LONG / 2) if job.id == last else None)
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app, 60)
        last = jobs[33]
        async with app.running():
            await eventually(lambda: last in performer.ids)
        left = [job for job in await app.list_jobs(queue="q", limit=60) if job.done_at is None]
        assert left
        assert all(job.attempts == 0 and job.attempted_by is None for job in left)
        async with app.running():
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == (jobs, [])


async def test_a_local_pause_stops_a_queue_after_the_job_that_runs(dsn: str) -> None:
    performer = Strict(lambda job: app.suspend(local=True) if job.id == last else None)
    async with an_app(dsn, performer, prefetch=16) as app:
        jobs = await fill(app, 60)
        last = jobs[33]
        async with app.running():
            await eventually(lambda: last in performer.ids)
            await eventually(lambda: is_idle(app))
            assert performer.ids == jobs[:34]
            await app.resume(local=True)
            await until_all_is_done(app)
    assert performer.ids == jobs


async def is_idle(app: Queuetopia) -> bool:
    """Whether the jobs that have run are written."""
    return (await app.status()).executing == 0


async def test_plain_functions_and_many_queues_keep_their_order(dsn: str) -> None:
    class Threads(Recorder):
        def perform(self, job: Job) -> None:  # type: ignore[override]
            self.performed.append(job)

    performer = Threads()
    async with an_app(dsn, performer, prefetch=16, concurrency=5) as app:
        jobs = {f"q{n}": await fill(app, 40, f"q{n}") for n in range(12)}
        async with app.running():
            await until_all_is_done(app)
    for queue, expected in jobs.items():
        assert [job.id for job in performer.performed if job.queue == queue] == expected


@pytest.mark.parametrize("takes", [0, 2 * LONG], ids=["short", "long"])
async def test_a_new_queue_gets_as_many_at_once_as_those_that_went_on(
    dsn: str, monkeypatch: pytest.MonkeyPatch, takes: float
) -> None:
    sizes = []
    step = Session.step

    async def noted(self: Session, question: Question) -> Stepped:
        sizes.append(question.size)
        return await step(self, question)

    monkeypatch.setattr(Session, "step", noted)
    performer = Strict(lambda job: anyio.sleep(takes))
    async with an_app(dsn, performer, prefetch=4) as app:
        for n in range(10):
            await fill(app, 10, f"q{n}")
        async with app.running():
            await until_all_is_done(app)
    assert max(sizes) == (1 if takes else 4)


async def test_one_at_a_time_unless_asked_for(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        jobs = await fill(app, 60)
        performer.answer = lambda job: cancel_next(app, jobs, job)
        async with app.running():
            await until_all_is_done(app)
    assert performer.ids == [job for n, job in enumerate(jobs) if n % 10 != 1]


async def cancel_next(app: Queuetopia, jobs: list[int], job: Job) -> None:
    """Nobody has fetched what is behind every tenth job."""
    if job.id in jobs[::10]:
        assert await app.cancel(job.id + 1) is Cancelled.OK


@pytest.mark.parametrize(
    ("took", "size"),
    [(MEANT / 100, 4 * GROWTH), (MEANT / 2, 8), (MEANT, 4), (2 * MEANT, 2), (1000 * LONG, 1)],
    ids=["very short", "half", "as meant", "twice", "long"],
)
def test_a_queue_gets_more_at_once_the_shorter_they_are(took: float, size: int) -> None:
    now = time.monotonic()
    job: Any = None
    row: Any = None
    assert Hold(job, now - took, now, Slice(now), "", None, size=4).next_size(now) == size
    given_back = Hold(job, now - took, now, Slice(now), "", None, size=8, prefetched=deque([row] * 4))
    assert given_back.next_size(now) == size


async def test_a_queue_goes_on_though_the_outcome_of_the_last_of_several_is_lost(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before it were written by the same step, which does not look at the queue."""
    # However slow this machine is, all are claimed at once, and none is given back.
    monkeypatch.setattr(hold, "MEANT", 60)
    monkeypatch.setattr(hold, "LONG", 60)
    async with an_app(dsn) as app:
        jobs = await fill(app, 7)

        async def claim_anew(job: Job) -> None:
            if job.id == jobs[3]:
                async with app.repo.connection() as connection:
                    await connection.execute(
                        "update pgqueuetopia.jobs set claim = claim + 1 where id = $1", jobs[6]
                    )

        performer = Strict(claim_anew)
        async with an_app(dsn, performer, prefetch=16) as node, node.running():
            await until_all_is_done(app)
    assert (performer.ids, performer.overlaps) == ([*jobs, jobs[6]], [])
