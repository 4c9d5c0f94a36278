"""How long until the queues of a node that was killed -9 run again on another?"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from benchmarks.figures import Figure, times
from benchmarks.server import Server
from pgqueuetopia import NewJob, Queuetopia, Repo
from tests.acceptance.cluster import Cluster, NodeProcess, until_nodes_are_up
from tests.acceptance.node import SCOPE
from tests.support import eventually

ROUNDS = 5
QUEUES = 100


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """From just before the kill until the first, and until the last, of its jobs runs on the other node."""
    async with server.database() as dsn:
        app = Queuetopia(repo=Repo(dsn), scope=SCOPE)
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(dsn, Path(folder))
            try:
                spans = await _rounds(app, cluster, tell)
            finally:
                cluster.kill_all()
        await app.close()
    return [
        times(f"kill -9 with {QUEUES} queues running, until the first runs again", [s[0] for s in spans]),
        times(f"kill -9 with {QUEUES} queues running, until the last runs again", [s[1] for s in spans]),
    ]


async def _rounds(
    app: Queuetopia, cluster: Cluster, tell: Callable[[str], None]
) -> list[tuple[float, float]]:
    await app.create_jobs([NewJob(f"q{n}", "work", {"seconds": 3600}, timeout=0) for n in range(QUEUES)])
    node = cluster.start()
    await _until_all_run_on(node)
    spans = []
    for round_ in range(1, ROUNDS + 1):
        standby = cluster.start()
        await until_nodes_are_up(app, 2)
        # It has been asleep for a while, and is anywhere between two of its looks.
        await anyio.sleep(random.uniform(1.5, 2.5))
        killed_at = time.monotonic()
        cluster.kill(node)
        await _until_all_run_on(standby)
        starts = [run.start - killed_at for run in standby.runs]
        spans.append((min(starts), max(starts)))
        tell(f"round {round_} of {ROUNDS}: {max(starts) * 1000:,.0f} ms")
        node = standby
    return spans


async def _until_all_run_on(node: NodeProcess) -> None:
    await eventually(lambda: len(node.running) == QUEUES)
