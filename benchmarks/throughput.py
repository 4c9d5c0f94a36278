"""How many jobs a second does one node run, with a performer that does nothing?"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from benchmarks.figures import Figure, rate
from benchmarks.server import Server, connected
from pgqueuetopia import Job, NewJob, Performer, Queuetopia, Repo

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
    """So many jobs over so many queues, so many at a time."""

    jobs: int
    queues: int
    concurrency: int = 100
    prefetch: int = 1

    def __str__(self) -> str:
        queues = f"over {self.queues:,} queues" if self.queues > 1 else "in one queue"
        prefetch = f", prefetch={self.prefetch}" if self.prefetch > 1 else ""
        return f"{self.jobs:,} jobs {queues}, {min(self.concurrency, self.queues)} at a time{prefetch}"


WORKLOADS = (
    Workload(10_000, 1_000),
    Workload(50_000, 1_000),
    Workload(50_000, 1_000, concurrency=500),
    Workload(50_000, 1_000, concurrency=500, prefetch=16),
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
    """Create the jobs, and then have one node run them; it leaves once the outcomes are written."""
    performer = Nothing(workload.jobs)
    app = Queuetopia(
        repo=Repo(dsn),
        performer=performer,
        scope=SCOPE,
        concurrency=workload.concurrency,
        prefetch=workload.prefetch,
    )
    await app.create_jobs([NewJob(f"q{n % workload.queues}", "nothing") for n in range(workload.jobs)])
    async with app.running():
        await performer.all_started.wait()
    await app.close()
    async with connected(dsn) as connection:
        return workload.jobs / float(await connection.fetchval(SECONDS, SCOPE))


class Nothing(Performer):
    """Does nothing, and knows when it has done it often enough."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self.all_started = anyio.Event()

    async def perform(self, job: Job) -> None:
        self._missing -= 1
        if not self._missing:
            self.all_started.set()
