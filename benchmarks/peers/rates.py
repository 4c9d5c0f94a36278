"""How many jobs a second, ours and a peer's in turns, with a performer that does nothing?"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio

from benchmarks.figures import Figure, rate
from benchmarks.peers.databases import a_database_with
from benchmarks.peers.peer import Contestant
from benchmarks.scale import count as scaled
from benchmarks.server import Server, connected
from benchmarks.throughput import Workload, jobs_per_second
from tests.support import eventually

ROUNDS = 3
QUEUES = 1_000
# By default; as many at a time as a batch of a peer; and as the fastest of them does it: several jobs of a
# queue at once, deleted as they end.
OURS = (
    Workload(scaled(50_000), QUEUES),
    Workload(scaled(50_000), QUEUES, concurrency=500),
    Workload(scaled(50_000), QUEUES, prefetch=32, keep=False),
)
# In seconds, for the jobs of a round.
LIMIT = 600


@dataclass(frozen=True, slots=True)
class Rates:
    """Jobs a second, a list for each workload of ours and one for the peer, a number for each round."""

    ours: tuple[list[float], ...] = field(default_factory=lambda: tuple([] for _ in OURS))
    theirs: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        latest = [f"{rates[-1]:,.0f}" for rates in (*self.ours, self.theirs)]
        return f"pgqueuetopia {', '.join(latest[:-1])} jobs/s, the peer {latest[-1]}"


async def measure(
    server: Server, contestants: Sequence[Contestant], tell: Callable[[str], None]
) -> list[Figure]:
    """Rates of ours, a rate of the peer, and so on, each on a fresh database."""
    figures: list[Figure] = []
    for contestant in contestants:
        rates = Rates()
        for round_ in range(1, ROUNDS + 1):
            await _round(server, contestant, rates)
            tell(f"{contestant}, round {round_} of {ROUNDS}: {rates}")
        figures += _compared(contestant, rates)
    return figures


async def _round(server: Server, contestant: Contestant, rates: Rates) -> None:
    for workload, ours in zip(OURS, rates.ours, strict=True):
        ours.append(await _ours(server, workload))
    rates.theirs.append(await _theirs(server, contestant))


async def _ours(server: Server, workload: Workload) -> float:
    async with server.database() as dsn:
        return await jobs_per_second(dsn, workload)


async def _theirs(server: Server, contestant: Contestant) -> float:
    """By one worker process, from the start of its first job until the database says that all are done."""
    peer, runner = contestant.peer, contestant.runner
    async with a_database_with(contestant, server) as dsn, connected(dsn) as connection:
        await runner.run("enqueue", peer.jobs, QUEUES, dsn=dsn)
        # What autovacuum does within a minute; some peers' plans are poor before it.
        await connection.execute("vacuum analyze")

        async def are_done() -> bool:
            return not await connection.fetchval(peer.left)

        async with runner.running("work", peer.jobs, dsn=dsn) as events:
            with anyio.fail_after(LIMIT):
                first = float((await anext(events))["first"])
            await eventually(are_done, within=LIMIT)
            return peer.jobs / (time.monotonic() - first)


def _compared(contestant: Contestant, rates: Rates) -> list[Figure]:
    """The ratio is that of the medians."""
    peer = contestant.peer
    figures = [rate(f"{contestant}, {peer.promise}: {peer.jobs:,} jobs over {QUEUES:,} queues", rates.theirs)]
    for workload, ours in zip(OURS, rates.ours, strict=True):
        figure = rate(f"pgqueuetopia in turns with it: {workload}", ours)
        ratio = statistics.median(ours) / statistics.median(rates.theirs)
        figures.append(replace(figure, median=f"{figure.median}, {ratio:.2f} times its"))
    return figures
