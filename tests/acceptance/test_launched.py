"""What a job has launched ends with it, with all that it has started, however that comes."""

import secrets
from collections.abc import Iterator

import pytest

from pgqueuetopia import Cancelled, Job, Queuetopia
from tests.acceptance.cluster import Cluster, Connection, NodeProcess
from tests.node.living import SLEEPERS, TREE, kill_all, living, sleepers
from tests.support import eventually

# A node that leaves gives its jobs no time.
OPTIONS = ["--shutdown=0", "--topic=transcode=2"]


@pytest.fixture
def mark() -> Iterator[str]:
    """How long the processes of this test sleep, which nobody else's do."""
    mark = f"8{secrets.randbelow(10**6):06}.25"
    yield mark
    kill_all(mark)


async def launched(app: Queuetopia, cluster: Cluster, mark: str, timeout: float) -> tuple[NodeProcess, Job]:
    node = cluster.start(*OPTIONS)
    params = {"launch": ["sh", "-c", TREE.format(mark=mark)]}
    job = await app.create_job("transcode", "work", params, timeout=timeout, max_attempts=1)
    await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
    # Nobody watches over a process before its performer has returned it.
    await eventually(lambda: is_in(app, job, "launched"))
    return node, job


async def test_when_its_node_is_told_to_stop(app: Queuetopia, cluster: Cluster, mark: str) -> None:
    node, job = await launched(app, cluster, mark, 60)
    node.terminate()
    await eventually(lambda: not living(mark))
    assert node.wait() == 0
    assert (await app.get_job(job)).attempts == 0, "it was interrupted"


async def test_when_its_node_is_killed(app: Queuetopia, cluster: Cluster, mark: str) -> None:
    node, _ = await launched(app, cluster, mark, 60)
    cluster.kill(node)
    await eventually(lambda: not living(mark))


async def test_when_it_takes_too_long(
    app: Queuetopia, cluster: Cluster, connection: Connection, mark: str
) -> None:
    _, job = await launched(app, cluster, mark, 1)
    await eventually(lambda: is_in(app, job, "discarded"))
    assert not living(mark)
    assert "timeout" in (await app.get_job(job)).errors[-1]["error"]


async def test_when_it_is_cancelled(app: Queuetopia, cluster: Cluster, mark: str) -> None:
    _, job = await launched(app, cluster, mark, 60)
    assert await app.cancel(job) is Cancelled.IN_PROGRESS
    assert await app.cancel(job, kill=True) is Cancelled.OK
    assert not living(mark)


async def is_in(app: Queuetopia, job: Job, state: str) -> bool:
    return (await app.get_job(job)).state == state
