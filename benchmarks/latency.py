"""How soon does an idle node start a new job, and how soon the next job of a queue when one has ended?"""

import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import anyio

from benchmarks.figures import Figure, latencies
from benchmarks.server import Server
from pgqueuetopia import NewJob, Queuetopia, Repo
from tests.acceptance.cluster import Cluster, NodeProcess, until_nodes_are_up
from tests.acceptance.node import SCOPE
from tests.support import eventually

SAMPLES = 300
# In seconds: a node that has had nothing to do for that long is asleep.
IDLE = 0.1
RATE = 1_000
LOAD_SECONDS = 5


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The node is a process of its own."""
    async with server.database() as dsn, _a_node(dsn) as (app, node):
        tell(f"{SAMPLES} jobs, each for an idle node")
        from_call, from_return = await _pick_up(app, node)
    async with server.database() as dsn, _a_node(dsn) as (app, node):
        tell(f"one queue of {SAMPLES} jobs")
        gaps = await _gaps(app, node)
    async with server.database() as dsn, _a_node(dsn) as (app, node):
        tell(f"{RATE:,} jobs a second, for {LOAD_SECONDS} s")
        under_load = await _under_load(app, node)
    return [
        latencies("idle node: from create_job's return to the start", from_return),
        latencies("idle node: from create_job's call to the start", from_call),
        latencies("from the end of a job to the start of the next in its queue", gaps),
        latencies(f"under {RATE:,} jobs/s: from create_job's return to the start", under_load),
    ]


@asynccontextmanager
async def _a_node(dsn: str) -> AsyncIterator[tuple[Queuetopia, NodeProcess]]:
    app = Queuetopia(repo=Repo(dsn), scope=SCOPE)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(dsn, Path(folder))
        try:
            node = cluster.start("--tuned")
            await until_nodes_are_up(app, 1)
            yield app, node
        finally:
            cluster.kill_all()
            await app.close()


async def _pick_up(app: Queuetopia, node: NodeProcess) -> tuple[list[float], list[float]]:
    """A start before create_job has returned counts as one at once."""
    called, returned = {}, {}
    for n in range(SAMPLES):
        await anyio.sleep(IDLE * random.uniform(1, 2))
        before = time.monotonic()
        job = await app.create_job(f"q{n % 10}", "work")
        called[job.id], returned[job.id] = before, time.monotonic()
    await _until_all_ran(node)
    return (
        [run.start - called[run.job] for run in node.runs],
        [max(run.start - returned[run.job], 0.0) for run in node.runs],
    )


async def _gaps(app: Queuetopia, node: NodeProcess) -> list[float]:
    await app.create_jobs([NewJob("q", "work") for _ in range(SAMPLES)])
    await _until_all_ran(node)
    runs = sorted(node.runs, key=lambda run: run.start)
    return [after.start - (before.end or 0) for before, after in pairwise(runs)]


async def _under_load(app: Queuetopia, node: NodeProcess) -> list[float]:
    """Each job by a create_job of its own, ten at a time, a hundred times a second."""
    returned: dict[int, float] = {}

    async def create(n: int) -> None:
        job = await app.create_job(f"q{n % 1000}", "work")
        returned[job.id] = time.monotonic()

    async with anyio.create_task_group() as tasks:
        begun = time.monotonic()
        for n in range(RATE * LOAD_SECONDS):
            if n % 10 == 0:
                await anyio.sleep(max(begun + n / RATE - time.monotonic(), 0))
            tasks.start_soon(create, n)
    await _until_all_ran(node, len(returned))
    return [max(run.start - returned[run.job], 0.0) for run in node.runs]


async def _until_all_ran(node: NodeProcess, jobs: int = SAMPLES) -> None:
    await eventually(lambda: sum(run.end is not None for run in node.runs) == jobs)
