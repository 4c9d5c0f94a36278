"""Does a node keep its speed over many minutes, and while somebody's transaction keeps every dead row?"""

import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import asyncpg

from benchmarks import samples, scale
from benchmarks.figures import Figure
from benchmarks.samples import Sample
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE
from pgqueuetopia import Job, Performer, Queuetopia, Repo

# In seconds. At a smaller scale the windows are shorter, at a larger one there are more of them.
WINDOW = min(10.0, scale.seconds(10))
TICK = 0.1
# How much of what a node can do it is given to do in the long run.
LOAD = 0.7
QUEUES = 1_000
# Where there is always a backlog: many times what a node runs in a tick.
BACKLOG = 10_000

FEED = """
insert into pgqueuetopia.jobs (scope, queue, action)
select $1, 'q' || n % $2, 'nothing'
from generate_series($3::bigint + 1, $3::bigint + $4::bigint) n
"""
DEAD = """
select
  max(n_dead_tup) filter (where relname = 'jobs') as jobs,
  max(n_dead_tup) filter (where relname = 'run_queue') as run_queue
from pg_stat_user_tables
where schemaname = 'pgqueuetopia'
"""
# Takes a transaction id, so that snapshots taken meanwhile have it in them, besides a snapshot of its own.
PIN = "select pg_current_xact_id()"

# How many jobs there should be by now, given how many have run and how many seconds have passed.
Wanted = Callable[[int, float], int]


@dataclass(frozen=True, slots=True)
class Course:
    """How long a run is before, while and after xmin is pinned, in seconds."""

    before: float
    pinned: float
    after: float


UNTHROTTLED = Course(60, 120, 60)
LONG = Course(240, 120, 240)


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """First as fast as it can be, with a backlog all the time; then for long at a part of that speed."""
    unthrottled = await _run(server, UNTHROTTLED, lambda done, _: done + BACKLOG, tell)
    samples.write("unthrottled", "Always a backlog", unthrottled, tell)
    before = _median(unthrottled[: _windows(UNTHROTTLED.before)])
    load = LOAD * before
    long = await _run(server, LONG, lambda _, seconds: round(load * seconds), tell)
    samples.write("endurance", f"{load:,.0f} jobs/s asked for", long, tell)
    return [
        _while_pinned(unthrottled, before),
        _over_time(f"{_minutes(LONG)}, given {load:,.0f} jobs/s ({LOAD:.0%} of what it can)", long),
        _dead("jobs", [sample.dead_jobs for sample in long]),
        _dead("run_queue", [sample.dead_run_queue for sample in long]),
    ]


def _windows(duration: float) -> int:
    return max(round(scale.seconds(duration) / WINDOW), 1)


def _minutes(course: Course) -> str:
    minutes = scale.seconds(course.before + course.pinned + course.after) / 60
    return f"{minutes:g} minutes, xmin pinned for {scale.seconds(course.pinned) / 60:g}"


def _median(found: list[Sample]) -> float:
    return statistics.median(sample.rate for sample in found)


def _while_pinned(found: list[Sample], before: float) -> Figure:
    pinned = [sample for sample in found if sample.pinned]
    return Figure(
        f"always a backlog: speed while xmin is pinned ({scale.seconds(UNTHROTTLED.pinned):g} s) over before",
        f"{_median(pinned) / before:.2f}",
        f"before {before:,.0f} jobs/s, then {_median(pinned):,.0f}; the last window {pinned[-1].rate:,.0f}",
    )


def _over_time(question: str, found: list[Sample]) -> Figure:
    return Figure(
        question,
        f"{_median(found):,.0f} jobs/s",
        f"{len(found)} windows of {WINDOW:g} s, the worst {min(sample.rate for sample in found):,.0f}; "
        f"{found[-1].backlog:,} jobs left over",
    )


def _dead(table: str, rows: list[int]) -> Figure:
    return Figure(
        f"the same: dead rows of {table}",
        f"{statistics.median(rows):,.0f}",
        f"at most {max(rows):,}, at the end {rows[-1]:,}",
    )


async def _run(server: Server, course: Course, wanted: Wanted, tell: Callable[[str], None]) -> list[Sample]:
    async with server.database() as dsn, connected(dsn) as observer, _a_fed_node(dsn, wanted) as (feed, node):
        watch = Watch(observer, feed, node, tell)
        await watch.take(_windows(course.before), pinned=False)
        async with _pinned_xmin(dsn):
            await watch.take(_windows(course.pinned), pinned=True)
        await watch.take(_windows(course.after), pinned=False)
    return watch.samples


@asynccontextmanager
async def _a_fed_node(dsn: str, wanted: Wanted) -> AsyncIterator[tuple["Feed", "Counting"]]:
    """A node that is given jobs by plain SQL, so that Python has no more to do than the node's part."""
    performer = Counting()
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope=SCOPE)
    async with connected(dsn) as connection, app.running(), anyio.create_task_group() as tasks:
        feed = Feed(connection, wanted)
        tasks.start_soon(feed.feed_for_ever, performer)
        yield feed, performer
        tasks.cancel_scope.cancel()
    await app.close()


@asynccontextmanager
async def _pinned_xmin(dsn: str) -> AsyncIterator[None]:
    """While this is open no dead row can be removed."""
    async with connected(dsn) as connection, connection.transaction(isolation="repeatable_read"):
        await connection.execute(PIN)
        yield


class Counting(Performer):
    """Does nothing, and counts."""

    performed = 0

    async def perform(self, job: Job) -> None:
        self.performed += 1


class Feed:
    """Creates what is missing, ten times a second."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", wanted: Wanted) -> None:
        self.created = 0
        self._connection = connection
        self._wanted = wanted

    async def feed_for_ever(self, performer: Counting) -> None:
        begun = time.monotonic()
        while True:
            missing = self._wanted(performer.performed, time.monotonic() - begun) - self.created
            if missing > 0:
                await self._connection.execute(FEED, SCOPE, QUEUES, self.created, missing)
                self.created += missing
            await anyio.sleep(TICK)


class Watch:
    """Takes samples, one a window."""

    def __init__(
        self,
        observer: "asyncpg.Connection[asyncpg.Record]",
        feed: Feed,
        performer: Counting,
        tell: Callable[[str], None],
    ) -> None:
        self.samples: list[Sample] = []
        self._observer = observer
        self._feed = feed
        self._performer = performer
        self._tell = tell
        self._begun = self._last = time.monotonic()
        self._performed = 0

    async def take(self, windows: int, *, pinned: bool) -> None:
        for _ in range(windows):
            await anyio.sleep(self._last + WINDOW - time.monotonic())
            self.samples.append(await self._sample(pinned))
            self._tell(str(self.samples[-1]))

    async def _sample(self, pinned: bool) -> Sample:
        now, performed = time.monotonic(), self._performer.performed
        dead = await self._observer.fetchrow(DEAD)
        assert dead is not None
        sample = Sample(
            second=round(now - self._begun, 1),
            length=now - self._last,
            jobs=performed - self._performed,
            backlog=self._feed.created - performed,
            dead_jobs=dead["jobs"],
            dead_run_queue=dead["run_queue"],
            pinned=pinned,
        )
        self._last, self._performed = now, performed
        return sample
