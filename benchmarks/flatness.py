"""Is a node slower beside blocked queues that it must not touch? The answer is a ratio, and what it reads."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import asyncpg

from benchmarks import scale
from benchmarks.figures import Figure, rate, ratio
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE, SECONDS, Nothing, Workload
from pgqueuetopia import NewJob, Queuetopia, Repo
from tests.support import eventually

ROUNDS = 3
WORKLOAD = Workload(scale.count(10_000), 1_000)
BATCH = 10_000
LONGEST_SETTLING = 120
# Queues of one job that has failed; and as many jobs behind a head that has failed.
BLOCK = """
insert into pgqueuetopia.jobs (
  scope, queue, action, attempts, claim, attempted_at, attempted_by, errors, next_attempt_at
)
select
  $1, 'blocked_' || n, 'nothing', 1, 1, now(), 'a node', '[{"error": "It failed."}]', now() + interval '1 day'
from generate_series($2::integer, $3::integer) n
"""
QUEUE_UP = """
insert into pgqueuetopia.jobs (scope, queue, action)
select $1, 'blocked_1', 'nothing'
from generate_series($2::integer, $3::integer)
"""
NOTHING_IS_DUE = "select not exists (select from pgqueuetopia.run_queue where ready_at <= now())"
ALONE = """
select not exists (
  select from pg_stat_activity
  where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
)
"""
BUFFERS = "select blks_hit + blks_read from pg_stat_database where datname = current_database()"


@dataclass(frozen=True, slots=True)
class Company:
    """So many blocked queues of one job each, and so many more jobs in the first of them."""

    queues: int = 0
    behind: int = 0

    def __str__(self) -> str:
        if self.behind:
            return f"beside {self.queues:,} blocked queue with {self.behind:,} jobs behind its head"
        return f"beside {self.queues:,} blocked queues" if self.queues else "alone"


NONE = Company()
COMPANIES = (
    NONE,
    Company(scale.count(10_000)),
    Company(scale.count(1_000_000)),
    Company(1, scale.count(1_000_000)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs a second, and the buffers that were touched for each."""

    rate: float
    buffers: float


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """In turns, each on a fresh database."""
    runs: dict[Company, list[Run]] = defaultdict(list)
    for round_ in range(1, ROUNDS + 1):
        for company in COMPANIES:
            async with server.database() as dsn:
                await _settle(dsn, company)
                runs[company].append(await _run(dsn))
            tell(f"round {round_} of {ROUNDS}, {company}: {runs[company][-1].rate:,.0f} jobs/s")
    return [
        rate(f"{WORKLOAD}, alone", [run.rate for run in runs[NONE]]),
        *(_over_alone(company, runs) for company in COMPANIES if company != NONE),
        *(_buffers(company, found) for company, found in runs.items()),
    ]


def _over_alone(company: Company, runs: dict[Company, list[Run]]) -> Figure:
    pairs = zip(runs[company], runs[NONE], strict=True)
    return ratio(f"speed {company}, over alone", [run.rate / alone.rate for run, alone in pairs])


def _buffers(company: Company, runs: list[Run]) -> Figure:
    found = [run.buffers for run in runs]
    return Figure(
        f"buffers touched for each job, {company}",
        f"{statistics.median(found):,.1f}",
        ", ".join(f"{value:,.1f}" for value in found),
    )


async def _settle(dsn: str, company: Company) -> None:
    """What a system has in which they have been blocked for a while: every queue looked at, all vacuumed."""
    async with connected(dsn) as connection:
        await _insert(connection, BLOCK, company.queues)
        await _insert(connection, QUEUE_UP, company.behind)
        app = Queuetopia(repo=Repo(dsn), performer=Nothing(1), scope=SCOPE)
        async with app.running():
            await eventually(lambda: connection.fetchval(NOTHING_IS_DUE), within=LONGEST_SETTLING)
        await app.close()
        await connection.execute("vacuum (analyze) pgqueuetopia.jobs, pgqueuetopia.run_queue")
        with suppress(asyncpg.InsufficientPrivilegeError):
            await connection.execute("checkpoint")


async def _insert(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, count: int) -> None:
    """In batches, with the triggers."""
    for first in range(1, count + 1, BATCH):
        await connection.execute(statement, SCOPE, first, min(first + BATCH - 1, count))


async def _run(dsn: str) -> Run:
    """Create the jobs, and then have one node run them."""
    performer = Nothing(WORKLOAD.jobs)
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope=SCOPE, concurrency=WORKLOAD.concurrency)
    await app.create_jobs([NewJob(f"q{n % WORKLOAD.queues}", "nothing") for n in range(WORKLOAD.jobs)])
    await app.close()
    before = await _touched(dsn)
    async with app.running():
        await performer.all_started.wait()
    await app.close()
    touched = await _touched(dsn) - before
    async with connected(dsn) as connection:
        seconds = float(await connection.fetchval(SECONDS, SCOPE))
    return Run(WORKLOAD.jobs / seconds, touched / WORKLOAD.jobs)


async def _touched(dsn: str) -> int:
    """The buffers that the sessions of this database have touched: all have ended, and told."""
    async with connected(dsn) as connection:
        await eventually(lambda: connection.fetchval(ALONE))
        return int(await connection.fetchval(BUFFERS))
