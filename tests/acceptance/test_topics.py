"""A topic's parallelism holds in the whole cluster, through kills."""

import os
import sys

import anyio
import pytest

from pgqueuetopia import NewJob, Queuetopia
from tests.acceptance.cluster import Cluster, Connection, until_all_is_done
from tests.acceptance.history import crowds, idle_spells, lost, reruns

# 10,000 by $TOPIC_JOBS; enough for more than a hundred spells in any case.
JOBS = int(os.environ.get("TOPIC_JOBS", "1000"))
PARALLELISM = 4
BETWEEN_KILLS = 2.0
AFTER_KILL = 1.0
# In seconds: a processor may be taken away for longer, once in a hundred spells.
A_MOMENT = 0.25


@pytest.mark.slow
async def test_a_topic_never_runs_more_than_its_parallelism_and_seldom_less(
    app: Queuetopia, cluster: Cluster, connection: Connection
) -> None:
    jobs = await app.create_jobs([NewJob("topic", "work", {"seconds": 0.02})] * JOBS)
    nodes = [cluster.start(f"--topic=topic={PARALLELISM}") for _ in range(3)]
    async with anyio.create_task_group() as tasks:

        async def kill_for_ever() -> None:
            while True:
                await anyio.sleep(BETWEEN_KILLS)
                cluster.kill(nodes.pop(0))
                nodes.append(cluster.start(f"--topic=topic={PARALLELISM}"))

        tasks.start_soon(kill_for_ever)
        await until_all_is_done(connection, within=120 + JOBS / 50)
        tasks.cancel_scope.cancel()
    history = cluster.history()
    assert list(crowds(history, PARALLELISM)) == []
    assert list(lost(history, {"topic": [job.id for job in jobs]})) == []
    assert history.kills
    last = sorted(run.start for run in history.runs)[-PARALLELISM]
    spells = idle_spells(history, PARALLELISM, last, AFTER_KILL)
    assert sum(spell > A_MOMENT for spell in spells) <= len(spells) / 100
    assert list(reruns(history, PARALLELISM)) == []
    sys.stdout.write(
        f"{len(history.runs)} runs, {len(history.kills)} kills; fewer than {PARALLELISM} ran "
        f"{len(spells)} times, {sum(spells):.2f} s in all, {max(spells, default=0):.3f} s at most\n"
    )
