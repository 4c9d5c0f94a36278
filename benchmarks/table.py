"""Is a table queue slower beside millions of finished rows? The answer is a ratio, and what it reads."""

import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from benchmarks import scale
from benchmarks.figures import Figure, latencies, ratio
from benchmarks.flatness import ALONE, BUFFERS
from benchmarks.server import Server, connected
from pgqueuetopia import Job, Performer, Queuetopia, Repo, TableQueue
from pgqueuetopia.db import table_migration
from tests.support import eventually

ROUNDS = 7
ROWS = scale.count(30_000)
FINISHED = (0, scale.count(5_000_000))
CONCURRENCY = 100
QUEUE = TableQueue("classify", table="photos", concurrency=CONCURRENCY)
TABLE = "create table photos (id bigint primary key, name text not null)"
INSERT = "insert into photos select n, 'photo ' || n from generate_series($1::bigint, $2::bigint) n"
ALL_DONE = "select not exists (select from photos where pgqueuetopia_classify_lock is not null)"
LONGEST = 600


class Nothing(Performer):
    """Says when it has been called so often."""

    def __init__(self, times: int) -> None:
        self._left = times
        self.all_started = anyio.Event()

    async def perform(self, job: Job) -> None:
        self._left -= 1
        if not self._left:
            self.all_started.set()


@dataclass(frozen=True, slots=True)
class Run:
    """Rows a second, and the buffers that were touched for each: of its claim, its outcome, its looks."""

    rate: float
    buffers: float


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """In turns, each on a fresh database."""
    runs: dict[int, list[Run]] = defaultdict(list)
    inserts: list[float] = []
    for round_ in range(1, ROUNDS + 1):
        for finished in FINISHED:
            async with server.database() as dsn:
                inserts += await _settle(dsn, finished)
                runs[finished].append(await _run(dsn, finished))
            tell(f"round {round_} of {ROUNDS}, {finished:,} finished: {runs[finished][-1].rate:,.0f} rows/s")
    none, many = (runs[finished] for finished in FINISHED)
    return [
        *(_figures(finished, found) for finished, found in runs.items()),
        ratio(
            f"speed beside {FINISHED[1]:,} finished rows, over none",
            [run.rate / alone.rate for run, alone in zip(many, none, strict=True)],
        ),
        *(_buffers(finished, found) for finished, found in runs.items()),
        latencies(f"an insert while a table of {FINISHED[1]:,} rows becomes a queue", inserts),
    ]


def _figures(finished: int, runs: list[Run]) -> Figure:
    rates = [run.rate for run in runs]
    return Figure(
        f"{ROWS:,} rows, {CONCURRENCY} at a time, beside {finished:,} finished ones",
        f"{statistics.median(rates):,.0f} rows/s",
        ", ".join(f"{value:,.0f}" for value in rates),
    )


def _buffers(finished: int, runs: list[Run]) -> Figure:
    found = [run.buffers for run in runs]
    return Figure(
        f"buffers touched for each row, beside {finished:,} finished ones",
        f"{statistics.median(found):,.1f}",
        ", ".join(f"{value:,.1f}" for value in found),
    )


async def _settle(dsn: str, finished: int) -> list[float]:
    """A table of rows that have ended, made a queue while others insert; how long those took, in seconds."""
    async with connected(dsn) as connection:
        await connection.execute(TABLE)
        await connection.execute(INSERT, 1, finished, timeout=LONGEST)
        async with _inserting(dsn) as taken:
            await table_migration.up(dsn, QUEUE)
        await connection.execute("delete from photos where id < 0")
        await connection.execute("vacuum (analyze) photos", timeout=LONGEST)
    return taken if finished else []


@asynccontextmanager
async def _inserting(dsn: str) -> AsyncIterator[list[float]]:
    """Inserts rows of negative ids, one after the other, as long as the context lasts."""
    taken: list[float] = []
    ended = anyio.Event()

    async def insert() -> None:
        async with connected(dsn) as connection:
            while not ended.is_set():
                began = time.perf_counter()
                await connection.execute("insert into photos values ($1, 'new')", -1 - len(taken))
                taken.append(time.perf_counter() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(insert)
        yield taken
        ended.set()


async def _run(dsn: str, finished: int) -> Run:
    """Insert the rows, and then have one node run them."""
    async with connected(dsn) as connection:
        await connection.execute(INSERT, finished + 1, finished + ROWS)
    performer = Nothing(ROWS)
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope="Benchmark", table_queues=[QUEUE])
    before = await _touched(dsn)
    async with app.running():
        began = time.perf_counter()
        await performer.all_started.wait()
        seconds = time.perf_counter() - began
    await app.close()
    touched = await _touched(dsn) - before
    async with connected(dsn) as connection:
        assert await connection.fetchval(ALL_DONE)
    return Run(ROWS / seconds, touched / ROWS)


async def _touched(dsn: str) -> int:
    """The buffers that the sessions of this database have touched: all have ended, and told."""
    async with connected(dsn) as connection:
        await eventually(lambda: connection.fetchval(ALONE))
        return int(await connection.fetchval(BUFFERS))
