import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgqueuetopia import Job, Queuetopia
from tests.acceptance.cluster import Cluster, NodeProcess, until_nodes_are_up
from tests.acceptance.history import DONE, INTERRUPTED
from tests.support import eventually

QUEUES = 5


@pytest.mark.slow
async def test_on_sigterm_a_node_claims_nothing_more_and_records_what_ends_in_time(
    app: Queuetopia, cluster: Cluster, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    running = await create_jobs(app, {"until": str(told)})
    waiting = await create_jobs(app, {})
    node = await a_node_that_runs(cluster, running, "--shutdown=20")
    node.terminate()
    await until_it_has_heard(node)
    await create_jobs(app, {}, prefix="new")
    told.touch()
    assert node.wait() == 0
    assert {run.job: run.how for run in node.runs} == dict.fromkeys(ids(running), DONE)
    assert {(await app.get_job(job)).outcome for job in running} == {"succeeded"}
    assert {(await app.get_job(job)).claim for job in waiting} == {0}


@pytest.mark.slow
async def test_on_sigterm_what_does_not_end_in_time_is_given_back_and_runs_first_elsewhere(
    app: Queuetopia, cluster: Cluster, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    running = await create_jobs(app, {"until": str(go_on)})
    node = await a_node_that_runs(cluster, running, "--shutdown=0.2")
    node.terminate()
    assert node.wait() == 0
    assert {run.how for run in node.runs} == {INTERRUPTED}
    assert {(await app.get_job(job)).attempts for job in running} == {0}
    earlier = await create_jobs(app, {}, scheduled_at=datetime.now(UTC) - timedelta(days=1))
    go_on.touch()
    other = cluster.start()
    await until_done(app, earlier)
    runs = sorted(other.runs, key=lambda run: run.start)
    for interrupted, next_one in zip(running, earlier, strict=True):
        assert [run.job for run in runs if run.queue == interrupted.queue] == [interrupted.id, next_one.id]
    assert {run.attempt for run in runs} == {1}


@pytest.mark.slow
async def test_a_second_signal_interrupts_at_once(app: Queuetopia, cluster: Cluster, tmp_path: Path) -> None:
    running = await create_jobs(app, {"until": str(tmp_path / "never")})
    node = await a_node_that_runs(cluster, running, "--shutdown=3600")
    node.terminate()
    await until_it_has_heard(node)
    node.terminate()
    assert node.wait() == 0
    assert {run.how for run in node.runs} == {INTERRUPTED}
    assert {(await app.get_job(job)).attempts for job in running} == {0}


@pytest.mark.slow
async def test_each_of_several_in_a_process_hears_each_signal(
    app: Queuetopia, cluster: Cluster, tmp_path: Path
) -> None:
    node = cluster.start("--instances=2", "--concurrency=3", "--shutdown=3600")
    await until_nodes_are_up(app, 2)
    running = await create_jobs(app, {"until": str(tmp_path / "never")})
    await eventually(lambda: {run.job for run in node.running} == set(ids(running)))
    node.terminate()
    await until_it_has_heard(node)
    node.terminate()
    assert node.wait() == 0
    assert {run.how for run in node.runs} == {INTERRUPTED}
    assert {(await app.get_job(job)).attempts for job in running} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_waits_for_its_database_leaves_at_once(
    cluster: Cluster, number: signal.Signals
) -> None:
    node = cluster.start("--session-dsn=postgresql://nobody@127.0.0.1:1/none", "--shutdown=3600")
    await eventually(lambda: "database_unavailable" in node.log)
    node.signal(number)
    assert node.wait() == 0


@pytest.mark.slow
async def test_an_idle_node_leaves_at_once(app: Queuetopia, cluster: Cluster) -> None:
    node = cluster.start("--shutdown=3600")
    await until_nodes_are_up(app, 1)
    node.terminate()
    assert node.wait() == 0


async def create_jobs(
    app: Queuetopia,
    params: dict[str, object],
    *,
    prefix: str = "q",
    scheduled_at: datetime | None = None,
) -> list[Job]:
    """One job in each queue."""
    return [
        await app.create_job(f"{prefix}{n}", "work", params, scheduled_at=scheduled_at) for n in range(QUEUES)
    ]


async def a_node_that_runs(cluster: Cluster, jobs: list[Job], *options: str) -> NodeProcess:
    """A node that has begun all of these jobs."""
    node = cluster.start(*options)
    await eventually(lambda: {run.job for run in node.running} == set(ids(jobs)))
    return node


async def until_it_has_heard(node: NodeProcess) -> None:
    await eventually(lambda: "signal_received" in node.log)


async def until_done(app: Queuetopia, jobs: list[Job]) -> None:
    async def are_done() -> bool:
        return all([(await app.get_job(job)).outcome for job in jobs])

    await eventually(are_done)


def ids(jobs: list[Job]) -> list[int]:
    return [job.id for job in jobs]
