# mypy: ignore-errors
# (Procrastinate is in an environment of its own.)
"""Procrastinate: python procrastinate_runner.py COMMAND [NUMBER ...]; PG* variables say which database."""

import asyncio
import platform
import sys
from importlib.metadata import version

from procrastinate import App, PsycopgConnector
from reports import Starts, say

CONCURRENCY = 100
# "Mind the size of your PostgreSQL pool", in its discussions: for short jobs the concurrency plus one.
POOL = CONCURRENCY + 1
CHUNK = 1_000


def an_app(starts: Starts | None = None) -> App:
    app = App(connector=PsycopgConnector(max_size=POOL))

    @app.task(name="work")
    async def perform(n: int) -> None:
        starts.begin()

    return app


async def describe() -> None:
    say(
        version=version("procrastinate"),
        runtime=f"Python {platform.python_version()}",
        settings=f"psycopg {version('psycopg')} with its binary speedups, concurrency={CONCURRENCY}, "
        f"a pool of {POOL}",
    )


async def install() -> None:
    async with an_app().open_async() as app:
        await app.schema_manager.apply_schema_async()


async def enqueue(jobs: int, locks: int) -> None:
    async with an_app().open_async() as app:
        deferrers = [app.tasks["work"].configure(lock=f"q{n}") for n in range(locks)]
        for start in range(0, jobs, CHUNK):
            numbers = range(start, min(start + CHUNK, jobs))
            batch = [deferrers[n % locks].make_new_job(n=n) for n in numbers]
            await app.job_manager.batch_defer_jobs_async(batch)


async def work(jobs: int) -> None:
    async with an_app(Starts(jobs)).open_async() as app:
        await app.run_worker_async(concurrency=CONCURRENCY)


COMMANDS = {
    "describe": describe,
    "install": install,
    "enqueue": lambda jobs, locks: enqueue(int(jobs), int(locks)),
    "work": lambda jobs: work(int(jobs)),
}

if __name__ == "__main__":
    asyncio.run(COMMANDS[sys.argv[1]](*sys.argv[2:]))
