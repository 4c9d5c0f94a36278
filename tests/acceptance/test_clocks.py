"""Wrong clocks: nodes that are hours off, and a server whose clock steps back."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from pgqueuetopia import Job, NewJob, Queuetopia
from pgqueuetopia.db import migrations
from tests.acceptance.cluster import Cluster, Connection, until_all_is_done, until_nodes_are_up
from tests.acceptance.history import History, lost, overlaps, overtakings
from tests.acceptance.node import SCOPE
from tests.conftest import StartServer
from tests.support import an_app, eventually

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
STEP = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="faketime is not installed"),
]


def clock(**how: str) -> Mapping[str, str]:
    """The environment of a process with a wrong clock."""
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", **how}


def in_order(jobs: Sequence[Job]) -> dict[str, list[int]]:
    order: dict[str, list[int]] = defaultdict(list)
    for job in jobs:
        order[job.queue].append(job.id)
    return order


def broken(history: History, order: Mapping[str, Sequence[int]]) -> list[str]:
    return [*lost(history, order), *overlaps(history), *overtakings(history, order)]


async def test_nodes_that_are_hours_ahead_and_behind_change_nothing(
    app: Queuetopia, cluster: Cluster, connection: Connection
) -> None:
    nodes = [cluster.start("--concurrency=5", environment=clock(FAKETIME=skew)) for skew in ("+5h", "-5h")]
    # Or the first may have run all when the second comes.
    await until_nodes_are_up(app, 2)
    jobs = await app.create_jobs(
        [NewJob(f"q{n % 20}", "work", {"failures": n % 2}, max_backoff=0.05) for n in range(200)]
    )
    created_at = time.monotonic()
    later = await app.create_job("later", "work", scheduled_at=timedelta(seconds=1))
    await until_all_is_done(connection, within=60)
    history = cluster.history()
    assert broken(history, in_order([*jobs, later])) == []
    [run] = [run for run in history.runs if run.job == later.id]
    assert run.start >= created_at + 1
    assert all(node.runs for node in nodes)


async def test_a_server_whose_clock_steps_back_loses_nothing(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers_clock = Path("/tmp") / f"pgqueuetopia-clock-{tmp_path.name}-{time.monotonic_ns()}"
    servers_clock.write_text("+0\n")
    servers_clock.chmod(0o644)
    with monkeypatch.context() as patch:
        for name, value in clock(FAKETIME_TIMESTAMP_FILE=str(servers_clock), FAKETIME_NO_CACHE="1").items():
            patch.setenv(name, value)
        server = start_server()
    try:
        await migrations.up(server.dsn)
        await step_back_while_jobs_run(server.dsn, tmp_path, servers_clock)
    finally:
        servers_clock.unlink()


def set_back(servers_clock: Path) -> None:
    servers_clock.write_text(f"-{STEP}s\n")


async def step_back_while_jobs_run(dsn: str, folder: Path, servers_clock: Path) -> None:
    connection = await asyncpg.connect(dsn)
    async with an_app(dsn, scope=SCOPE) as app:
        jobs = await app.create_jobs(
            [
                NewJob(f"q{n % 20}", "work", {"seconds": 0.02, "failures": n % 2}, max_backoff=0.05)
                for n in range(400)
            ]
        )
        cluster = Cluster(dsn, folder)
        with ExitStack() as stack:
            stack.callback(cluster.kill_all)
            for _ in range(2):
                cluster.start("--concurrency=8")
            await eventually(lambda: len(cluster.runs) > 50)
            before = await connection.fetchval("select clock_timestamp()")
            set_back(servers_clock)
            assert await connection.fetchval("select clock_timestamp()") < before
            jobs += await app.create_jobs([NewJob(f"new{n}", "work") for n in range(20)])
            await until_all_is_done(connection, within=60)
            assert broken(cluster.history(), in_order(jobs)) == []
    await connection.close()
