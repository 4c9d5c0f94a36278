"""How many jobs a second does a node run, and do several, with a performer that does nothing?"""

import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import anyio

from benchmarks.figures import Figure, rate
from benchmarks.server import Server, connected
from pgqueuetopia import Job, NewJob, Performer, Queuetopia, Repo
from tests.support import eventually

SCOPE = "Bench"
ROUNDS = 3
# By the server's clock, from the first claim to the last outcome.
SECONDS = """
select extract(epoch from max(done_at) - min(attempted_at))::double precision
from pgqueuetopia.jobs
where scope = $1 and outcome = 'succeeded'
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """So many jobs over so many queues, so many at a time; if not kept they are deleted as they end."""

    jobs: int
    queues: int
    concurrency: int = 100
    prefetch: int = 1
    nodes: int = 1
    keep: bool = True

    def __str__(self) -> str:
        queues = f"over {self.queues:,} queues" if self.queues > 1 else "in one queue"
        prefetch = f", prefetch={self.prefetch}" if self.prefetch > 1 else ""
        nodes = f", on {self.nodes} nodes" if self.nodes > 1 else ""
        keep = "" if self.keep else ", job_retention=0"
        at_once = min(self.concurrency, self.queues)
        return f"{self.jobs:,} jobs {queues}, {at_once} at a time{prefetch}{keep}{nodes}"


WORKLOADS = (
    Workload(10_000, 1_000),
    Workload(50_000, 1_000),
    Workload(50_000, 1_000, concurrency=500),
    Workload(50_000, 1_000, prefetch=16),
    Workload(50_000, 1_000, prefetch=16, keep=False),
    Workload(50_000, 1_000, nodes=4),
    Workload(50_000, 50_000),
    Workload(50_000, 100),
    Workload(50_000, 100, prefetch=16),
    Workload(5_000, 1),
    Workload(20_000, 1, prefetch=16),
)


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """Jobs a second for each workload, each round on a fresh database."""
    figures = []
    for workload in WORKLOADS:
        rates = []
        for round_ in range(1, ROUNDS + 1):
            async with server.database() as dsn:
                rates.append(await jobs_per_second(dsn, workload))
            tell(f"{workload}, round {round_} of {ROUNDS}: {rates[-1]:,.0f} jobs/s")
        figures.append(rate(str(workload), rates))
    return figures


async def jobs_per_second(dsn: str, workload: Workload) -> float:
    """Create the jobs, and then have them run; who runs them leaves once the outcomes are written."""
    if workload.nodes > 1:
        await _run_by_processes(dsn, workload)
    else:
        seconds = await _run(dsn, workload)
        if not workload.keep:
            await _nothing_is_left(dsn)
            return workload.jobs / seconds
    async with connected(dsn) as connection:
        return workload.jobs / float(await connection.fetchval(SECONDS, SCOPE))


async def _nothing_is_left(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert not await connection.fetchval("select exists (select from pgqueuetopia.jobs)")


def _jobs(workload: Workload) -> list[NewJob]:
    return [NewJob(f"q{n % workload.queues}", "nothing") for n in range(workload.jobs)]


async def _run(dsn: str, workload: Workload) -> float:
    """Returns the seconds from the first start until the node has written all outcomes and left."""
    performer = Nothing(workload.jobs)
    app = Queuetopia(
        repo=Repo(dsn),
        performer=performer,
        scope=SCOPE,
        concurrency=workload.concurrency,
        prefetch=workload.prefetch,
        job_retention=Queuetopia.job_retention if workload.keep else timedelta(0),
    )
    await app.create_jobs(_jobs(workload))
    async with app.running():
        await performer.all_started.wait()
    seconds = time.monotonic() - performer.began
    await app.close()
    return seconds


async def _run_by_processes(dsn: str, workload: Workload) -> None:
    """All start at once, by a suspension that is lifted."""
    app = Queuetopia(repo=Repo(dsn), scope=SCOPE)
    async with AsyncExitStack() as stack:
        for _ in range(workload.nodes):
            await stack.enter_async_context(_a_process(dsn))
        await eventually(partial(_are_up, app, workload.nodes))
        await app.suspend()
        await app.create_jobs(_jobs(workload))
        await app.resume()
        await eventually(partial(_is_drained, app), within=600)
    await app.close()


@asynccontextmanager
async def _a_process(dsn: str) -> AsyncIterator[None]:
    async with await anyio.open_process(
        [sys.executable, "-m", "benchmarks.node", dsn, SCOPE], stderr=None
    ) as process:
        yield
        process.terminate()
        await process.wait()


async def _are_up(app: Queuetopia, nodes: int) -> bool:
    return len((await app.status()).nodes) == nodes


async def _is_drained(app: Queuetopia) -> bool:
    """Seldom asked, for it counts what is left."""
    await anyio.sleep(0.25)
    status = await app.status()
    return status.ready + status.executing == 0


class Nothing(Performer):
    """Does nothing, and knows when it was first asked to, and when it has done it often enough."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self.began = 0.0
        self.all_started = anyio.Event()

    async def perform(self, job: Job) -> None:
        self.began = self.began or time.monotonic()
        self._missing -= 1
        if not self._missing:
            self.all_started.set()
