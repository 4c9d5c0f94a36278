from collections import defaultdict
from pathlib import Path

import pytest

from pgqueuetopia import NewJob, Queuetopia
from tests.acceptance.cluster import Cluster, Connection, NodeProcess, until_all_is_done
from tests.acceptance.history import faults
from tests.support import eventually

QUEUES, JOBS, KILLS = 200, 50, 5
# Three nodes run fewer jobs than there are queues, so that a restarted one finds work.
CONCURRENCY = "--concurrency=50"


@pytest.mark.slow
async def test_killed_nodes_cost_no_job_no_order_and_no_second_run(
    app: Queuetopia, cluster: Cluster, connection: Connection, tmp_path: Path
) -> None:
    killed_enough = tmp_path / "killed-enough"
    order = await create_jobs(app, killed_enough)
    victim, *_ = [cluster.start(CONCURRENCY) for _ in range(3)]
    for kill in range(KILLS):
        await until_at_work(victim, started=1 + 10 * kill)
        cluster.kill(victim)
        victim = cluster.start(CONCURRENCY)
    killed_enough.touch()
    await until_all_is_done(connection, within=60)
    history = cluster.history()
    assert faults(history, order) == []
    assert len(history.kills) == KILLS
    assert await outcomes(connection) == {"succeeded": QUEUES * JOBS}


async def create_jobs(app: Queuetopia, killed_enough: Path) -> dict[str, list[int]]:
    """The ids of each queue's jobs, in their order; the last ones wait until there were enough kills."""
    jobs = [NewJob(f"q{n % QUEUES}", "work", {"seconds": 0.06}) for n in range(QUEUES * (JOBS - 1))]
    jobs += [NewJob(f"q{n}", "work", {"until": str(killed_enough)}) for n in range(QUEUES)]
    order: dict[str, list[int]] = defaultdict(list)
    for job in await app.create_jobs(jobs):
        order[job.queue].append(job.id)
    return order


async def until_at_work(node: NodeProcess, *, started: int) -> None:
    await eventually(lambda: len(node.runs) >= started and node.running)


async def outcomes(connection: Connection) -> dict[str, int]:
    rows = await connection.fetch("select outcome, count(*) from pgqueuetopia.jobs group by outcome")
    return {row["outcome"]: row["count"] for row in rows}
