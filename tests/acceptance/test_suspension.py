import os
import secrets
import time

import anyio
import pytest

from tests.acceptance.cluster import Cluster, Connection, until_all_is_done
from tests.acceptance.history import faults
from tests.acceptance.node import SCOPE
from tests.support import eventually

# Twice as many pauses in CI.
QUEUES, PAUSES = 100, int(os.environ.get("SUSPENSION_PAUSES", "3"))
# In seconds: longer than anything that makes a node look at its queues.
OBSERVED = 0.8
# Neither node has room for all queues.
CONCURRENCY = "--concurrency=40"
CREATE = """
insert into pgqueuetopia.jobs (scope, queue, action, params)
select $1, 'q' || n % $3, 'work', jsonb_build_object('seconds', 0.005, 'text', $2::text)
from generate_series(1, $3::int * $4::int) n
returning queue, id
"""
LEFT = "select count(*) from pgqueuetopia.jobs where done_at is null"
SUSPEND = "update pgqueuetopia.job_configs set value = 'true' where key = 'suspended'"
RESUME = "update pgqueuetopia.job_configs set value = 'false' where key = 'suspended'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "size", "options"),
    [
        pytest.param(10, 10, [], id="small jobs"),
        pytest.param(10, 10, ["--threads"], id="jobs in threads"),
        pytest.param(4, 70_000, [], id="large jobs"),
        pytest.param(40, 10, ["--prefetch=16"], id="several of a queue at once"),
    ],
)
async def test_no_job_starts_once_a_suspension_by_sql_has_committed(
    cluster: Cluster,
    connection: Connection,
    jobs: int,
    size: int,
    options: list[str],
) -> None:
    for _ in range(2):
        cluster.start(CONCURRENCY, *options)
    # Or the first may have run most of the jobs when the second comes.
    await eventually(lambda: are_up(connection))
    supply = Supply(connection, jobs, size)
    pauses = []
    for _ in range(PAUSES):
        await until_at_work(cluster, supply)
        pauses.append(await pause(connection))
    await until_all_is_done(connection, within=60)
    assert faults(cluster.history(pauses), supply.order) == []


class Supply:
    """Jobs for all queues, and more of them whenever few are left: whatever the machine, no node runs dry."""

    def __init__(self, connection: Connection, jobs: int, size: int) -> None:
        """So many jobs for each queue at a time, with params of at least `size` bytes, however compressed."""
        self.order: dict[str, list[int]] = {}
        self._connection = connection
        self._jobs = jobs
        self._text = secrets.token_urlsafe(size)

    async def top_up(self) -> None:
        """Keep the ids of each queue's jobs in their order."""
        if await self._connection.fetchval(LEFT) < QUEUES * self._jobs:
            for job in await self._connection.fetch(CREATE, SCOPE, self._text, QUEUES, self._jobs):
                self.order.setdefault(job["queue"], []).append(job["id"])


async def are_up(connection: Connection) -> bool:
    return bool(await connection.fetchval("select count(distinct node) = 2 from pgqueuetopia.nodes"))


async def until_at_work(cluster: Cluster, supply: Supply) -> None:
    """Wait until each node has started another fifty jobs."""
    before = {node: len(node.runs) for node in cluster.nodes}

    async def are_at_work() -> bool:
        await supply.top_up()
        return all(len(node.runs) >= before[node] + 50 for node in cluster.nodes)

    await eventually(are_at_work)


async def pause(connection: Connection) -> tuple[float, float]:
    """Suspend everything for a while: from when the commit has returned until it is lifted."""
    await connection.execute(SUSPEND)
    committed = time.monotonic()
    await anyio.sleep(OBSERVED)
    lifted = time.monotonic()
    await connection.execute(RESUME)
    return committed, lifted
