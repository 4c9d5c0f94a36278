"""A job that is moved is neither lost nor there twice, whenever its node is killed ($MOVE_KILLS times)."""

import os
import random

import pytest

from pgqueuetopia import Move, NewJob, Queuetopia, Retry
from tests.acceptance.cluster import Cluster, Connection, until_nodes_are_up
from tests.support import eventually

KILLS = int(os.environ.get("MOVE_KILLS", "4"))
JOBS = 25
# They fail whenever they run.
PARAMS = {"failures": 1_000, "seconds": 0.002}
ALL_MOVED = "select not exists (select from pgqueuetopia.jobs where queue <> 'dead' and done_at is null)"
NOT_ONCE = """
select j.id, j.outcome, count(d.id) as dead
from pgqueuetopia.jobs j
left join pgqueuetopia.jobs d on d.moved_from = j.id and d.queue = 'dead'
where j.queue <> 'dead'
group by j.id
having count(d.id) <> 1 or j.outcome <> 'moved'
"""
BADLY_TOLD = """
select job, array_agg(kind order by id)
from pgqueuetopia.replies
group by job
having array_agg(kind order by id) <> '{retrying,retrying,retrying,moved}'
"""
# A run that died tells nothing; then fewer have failed.
TOLD_TOO_OFTEN = """
select job, array_agg(kind order by id)
from pgqueuetopia.replies
group by job
having count(*) filter (where kind = 'moved') <> 1 or count(*) > 4
"""


@pytest.mark.slow
async def test_a_moved_job_is_there_once_however_often_nodes_are_killed(
    app: Queuetopia, cluster: Cluster, connection: Connection
) -> None:
    await app.suspend("dead")
    victim, spare = cluster.start(), cluster.start()
    for _ in range(KILLS):
        await until_nodes_are_up(app, 2)
        await until_some_run(app, cluster)
        cluster.kill(victim)
        victim, spare = spare, cluster.start()
    await eventually(lambda: connection.fetchval(ALL_MOVED), within=60)
    assert await connection.fetch(NOT_ONCE) == []
    assert await connection.fetch(TOLD_TOO_OFTEN) == []
    assert await connection.fetchval("select count(*) from pgqueuetopia.jobs where queue = 'dead'") >= JOBS


async def until_some_run(app: Queuetopia, cluster: Cluster) -> None:
    """Create jobs, and wait for any moment within their runs."""
    wanted = len(cluster.runs) + random.randint(1, 4 * JOBS - 5)
    await app.create_jobs(jobs())
    await eventually(lambda: len(cluster.runs) >= wanted)


def jobs() -> list[NewJob]:
    mode = Retry(times=3, finally_=Move("dead"))
    return [
        NewJob(f"q{random.randrange(10**9)}", "work", PARAMS, failure_mode=mode, reply=True)
        for _ in range(JOBS)
    ]


async def test_a_job_that_is_retried_and_then_moved_runs_four_times_and_tells_of_each(
    app: Queuetopia, cluster: Cluster, connection: Connection
) -> None:
    await app.suspend("dead")
    node = cluster.start()
    created = await app.create_jobs(jobs())
    await eventually(lambda: connection.fetchval(ALL_MOVED))
    assert await connection.fetch(NOT_ONCE) == []
    assert await connection.fetch(BADLY_TOLD) == []
    assert sorted(run.job for run in node.runs) == sorted([job.id for job in created] * 4)
