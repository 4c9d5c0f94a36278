"""Is a node slower beside blocked queues that it must not touch? The answer is a ratio."""

from collections.abc import Callable

from benchmarks.figures import Figure, ratio
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE, Workload, jobs_per_second

ROUNDS = 3
BLOCKED = 100_000
WORKLOAD = Workload(10_000, 1_000)
# Queues of one job that has failed, and one queue with as many jobs behind a head that has failed.
BLOCK = """
insert into pgqueuetopia.jobs (scope, queue, action, attempts, claim, next_attempt_at)
select $1, 'blocked_' || n, 'nothing', 1, 1, now() + interval '1 day'
from generate_series(1, $2) n
"""
QUEUE_UP = """
insert into pgqueuetopia.jobs (scope, queue, action)
select $1, 'blocked_1', 'nothing'
from generate_series(1, $2)
"""


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The speed beside blocked queues, over the speed alone, measured in turns."""
    ratios = []
    for round_ in range(1, ROUNDS + 1):
        async with server.database() as dsn:
            alone = await jobs_per_second(dsn, WORKLOAD)
        async with server.database() as dsn:
            await _block(dsn)
            beside = await jobs_per_second(dsn, WORKLOAD)
        ratios.append(beside / alone)
        tell(f"round {round_} of {ROUNDS}: alone {alone:,.0f} jobs/s, beside {beside:,.0f}")
    question = f"speed beside {BLOCKED:,} blocked queues and {BLOCKED:,} jobs behind one head, over alone"
    return [ratio(question, ratios)]


async def _block(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(BLOCK, SCOPE, BLOCKED)
        await connection.execute(QUEUE_UP, SCOPE, BLOCKED)
