import os
import statistics
import time

import pytest

from pgqueuetopia import NewJob, Queuetopia
from tests.acceptance.cluster import Cluster, NodeProcess, until_nodes_are_up
from tests.acceptance.history import overlaps
from tests.support import eventually

# Five times in CI.
QUEUES, ROUNDS = 100, int(os.environ.get("FAILOVERS", "3"))
# In seconds; benchmarks/failover.py says how fast it is, here it is only to happen on a busy machine.
LIMIT = 5


@pytest.mark.slow
async def test_the_queues_of_a_killed_node_are_resumed_by_another(app: Queuetopia, cluster: Cluster) -> None:
    await app.create_jobs([NewJob(f"q{n}", "work", {"seconds": 3600}, timeout=0) for n in range(QUEUES)])
    node = cluster.start()
    await until_all_run_on(node)
    times = []
    for _ in range(ROUNDS):
        standby = cluster.start()
        await until_nodes_are_up(app, 2)
        cluster.kill(node)
        await until_all_run_on(standby)
        times.append(time.monotonic() - cluster.kills[node.name])
        node = standby
    assert statistics.median(times) < LIMIT
    assert not list(overlaps(cluster.history()))
    assert {run.attempt for run in node.runs} == {ROUNDS + 1}


async def until_all_run_on(node: NodeProcess) -> None:
    await eventually(lambda: len(node.running) == QUEUES)
