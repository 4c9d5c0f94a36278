# mypy: ignore-errors
# (PgQueuer is in an environment of its own.)
"""PgQueuer: python pgqueuer_runner.py COMMAND [NUMBER ...]; the PG* variables say which database."""

import platform
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from reports import Starts, say, trickle

# What its guide to performance counts as fast: asyncpg, uvloop, `pgq autovac` after the installation, a
# connection of the worker's own, and for short jobs larger batches.
BATCH_SIZE = 1_000
CHUNK = 10_000


async def queries() -> Queries:
    return Queries(AsyncpgDriver(await asyncpg.connect()))


async def perform(task: Callable[[Job], Awaitable[None]]) -> None:
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect()))
    queuer.entrypoint("work")(task)
    await queuer.run(batch_size=BATCH_SIZE)


async def describe() -> None:
    say(
        version=version("pgqueuer"),
        runtime=f"Python {platform.python_version()}",
        settings=f"asyncpg {version('asyncpg')}, uvloop {version('uvloop')}, durable, pgq autovac, "
        f"batch_size={BATCH_SIZE}",
    )


async def install() -> None:
    database = await queries()
    await database.install()
    await database.optimize_autovacuum()


async def enqueue(jobs: int) -> None:
    """It has no order per key, so a job has a number only."""
    database = await queries()
    for start in range(0, jobs, CHUNK):
        payloads = [str(n).encode() for n in range(start, min(start + CHUNK, jobs))]
        await database.enqueue(["work"] * len(payloads), payloads, [0] * len(payloads))


async def work(jobs: int) -> None:
    starts = Starts(jobs)

    async def begin(job: Job) -> None:
        starts.begin()

    await perform(begin)


async def watch() -> None:
    async def tell(job: Job) -> None:
        say(job=int(job.payload), start=time.monotonic())

    await perform(tell)


async def enqueue_slowly(jobs: int, pause: float) -> None:
    database = await queries()
    await trickle(jobs, pause, lambda n: database.enqueue("work", str(n).encode()))


COMMANDS = {
    "describe": describe,
    "install": install,
    "enqueue": lambda jobs, queues: enqueue(int(jobs)),
    "work": lambda jobs: work(int(jobs)),
    "watch": watch,
    "trickle": lambda jobs, pause: enqueue_slowly(int(jobs), float(pause)),
}

if __name__ == "__main__":
    uvloop.run(COMMANDS[sys.argv[1]](*sys.argv[2:]))
