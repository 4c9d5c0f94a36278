"""How near do we come to the floor: the same jobs claimed and ended by plain SQL, without our code?"""

from collections.abc import Callable

from benchmarks import scale
from benchmarks.figures import Figure, rate, ratio
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE, Workload, jobs_per_second

ROUNDS = 5
JOBS = scale.count(50_000)
# By default, and with several jobs of a queue at once; and how many of them a step of ours ends and claims.
WORKLOADS = ((Workload(JOBS, 1_000), 100), (Workload(JOBS, 1_000, prefetch=16), 500))
# "Like" does not copy the storage parameters, and the free half of a page is what makes a claim heap-only.
STORAGE = """
select array_to_string(reloptions, ', ') from pg_class where oid = 'pgqueuetopia.jobs'::regclass
"""
CREATE = "create table floor_jobs (like pgqueuetopia.jobs including all) with ({storage})"
INSERT = """
insert into floor_jobs (scope, queue, action)
select $1, 'q' || n % $3, 'nothing'
from generate_series(0, $2::integer - 1) n
"""
END = """
update floor_jobs
set done_at = clock_timestamp(), outcome = 'succeeded', updated_at = clock_timestamp()
where id = any ($1::bigint[])
"""
# Returns what step() returns of a claimed job.
CLAIM = """
update floor_jobs
set claim = claim + 1, attempts = attempts + 1, attempted_at = clock_timestamp(), attempted_by = $2
where id = any ($1::bigint[])
returning
  id, queue, action, params, priority, timeout, max_backoff, max_attempts, scheduled_at, next_attempt_at,
  attempts, claim, attempted_at, attempted_by, errors, inserted_at, updated_at
"""
SECONDS = """
select extract(epoch from max(done_at) - min(attempted_at))::double precision
from floor_jobs
where outcome = 'succeeded'
having count(*) = $1
"""


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The floor and we in turns, each on a fresh database of the same server."""
    figures = []
    for workload, size in WORKLOADS:
        floors, shares = [], []
        for round_ in range(1, ROUNDS + 1):
            async with server.database() as dsn:
                floor = await _floor(dsn, workload, size)
            async with server.database() as dsn:
                ours = await jobs_per_second(dsn, workload)
            floors.append(floor)
            shares.append(ours / floor)
            tell(f"{workload}, round {round_} of {ROUNDS}: floor {floor:,.0f} jobs/s, ours {ours:,.0f}")
        figures += [
            ratio(f"{workload}: our speed over the floor's", shares),
            rate(f"the floor: plain SQL, {size} jobs a commit", floors),
        ]
    return figures


async def _floor(dsn: str, workload: Workload, size: int) -> float:
    """Jobs a second; each transaction ends the former batch and claims the next."""
    async with connected(dsn) as connection:
        await connection.execute(CREATE.format(storage=await connection.fetchval(STORAGE)))
        await connection.execute(INSERT, SCOPE, workload.jobs, workload.queues)
        claimed: list[int] = []
        for batch in [*_batches(workload.jobs, size), []]:
            async with connection.transaction():
                await connection.fetch(END, claimed)
                jobs = await connection.fetch(CLAIM, batch, "floor")
            claimed = [job["id"] for job in jobs]
        return workload.jobs / float(await connection.fetchval(SECONDS, workload.jobs))


def _batches(jobs: int, size: int) -> list[list[int]]:
    """The ids in order, which begin at one in a new table."""
    ids = range(1, jobs + 1)
    return [list(ids[first : first + size]) for first in range(0, jobs, size)]
