"""A server that has run out of something: the node makes do, says so once, and recovers by itself."""

import os
import resource
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
import structlog

from pgqueuetopia import DatabaseUnavailable, NewJob, Queuetopia, QueuetopiaError, Repo
from pgqueuetopia.db import migrations
from pgqueuetopia.embedded import Server
from tests.conftest import StartServer, execute
from tests.support import Recorder, an_app, eventually

pytestmark = pytest.mark.slow


async def all_succeed(app: Queuetopia, jobs: int) -> None:
    """Wait until so many jobs have succeeded."""

    async def have() -> bool:
        return (await app.list_jobs(state="succeeded", limit=1)).total == jobs

    await eventually(have, within=60)


def told(logs: Sequence[Any], event: str) -> int:
    return sum(log["event"] == event for log in logs)


async def test_a_full_lock_table_makes_a_node_hold_fewer_queues(start_server: StartServer) -> None:
    server = start_server(max_locks_per_transaction="10", max_connections="12")
    await migrations.up(server.dsn)
    performer = Recorder(lambda job: anyio.sleep(0.1))
    async with an_app(server.dsn, performer, concurrency=3_000) as app:
        await app.create_jobs([NewJob(f"q{n}", "a") for n in range(3_000)])
        with structlog.testing.capture_logs() as logs:
            async with app.running():
                await eventually(lambda: len(performer.performed) == 3_000, within=60)
    assert told(logs, "lock_table_full") == 1
    assert told(logs, "session_lost") == 0


async def test_a_server_without_a_connection_left_is_waited_for(start_server: StartServer) -> None:
    server = start_server(max_connections="8", superuser_reserved_connections="2")
    await execute(server.dsn, "create role app login; grant create on database postgres to app")
    as_app = server.dsn.replace("//postgres@", "//app@")
    await migrations.up(as_app)
    performer = Recorder()
    async with an_app(as_app, performer) as app:
        with structlog.testing.capture_logs() as logs:
            async with every_connection_taken(as_app) as taken, anyio.create_task_group() as tasks:
                with pytest.raises(DatabaseUnavailable, match="slots"):
                    await app.create_job("q", "a")
                tasks.start_soon(run_until_performed, app, performer)
                await eventually(lambda: told(logs, "cannot_resume"))
                for connection in taken:
                    await connection.close()
                await app.create_job("q", "a")
    assert told(logs, "cannot_resume") == 1


@asynccontextmanager
async def every_connection_taken(
    dsn: str,
) -> AsyncIterator[list["asyncpg.Connection[asyncpg.Record]"]]:
    taken = []
    try:
        while True:
            taken.append(await asyncpg.connect(dsn))
    except asyncpg.TooManyConnectionsError:
        yield taken


async def run_until_performed(app: Queuetopia, performer: Recorder) -> None:
    async with app.running():
        await eventually(lambda: performer.performed)


async def test_a_full_pool_is_waited_for_and_then_told(dsn: str) -> None:
    repo = Repo(dsn, max_size=1, timeout=3)
    performer = Recorder()
    async with an_app(dsn, performer, repo=repo) as app, app.running():
        async with app.repo.connection():
            with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
                await app.create_job("q", "a")
        await app.create_job("q", "a")
        await eventually(lambda: performer.performed)


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
async def test_a_disk_that_is_full_stops_creators_with_an_error_and_loses_nothing(
    start_server: StartServer,
) -> None:
    """No file of the server may grow beyond 16 MB: what a full disk does, to the tables alone."""
    server = start_server()
    await migrations.up(server.dsn)
    performer = Recorder()
    async with an_app(server.dsn, performer) as app:
        await execute(
            server.dsn,
            "insert into pgqueuetopia.jobs (scope, queue, action, params, done_at, outcome)"
            "select 'Past', 'q', 'a', jsonb_build_object('n', repeat('x', 1000)), now(), 'succeeded'"
            "from generate_series(1, 12000)",
        )
        async with app.running():
            await app.create_job("before", "a")
            limit_files(server, 2**24)
            created = await create_until_refused(app, match="extend")
            limit_files(server, resource.RLIM_INFINITY)
            await app.create_job("after", "a")
            await all_succeed(app, created + 2)
    assert len(performer.performed) == created + 2


async def create_until_refused(app: Queuetopia, match: str) -> int:
    created = 0
    with pytest.raises(QueuetopiaError, match=match):  # noqa: PT012 - how many times it works is not known
        while True:
            await app.create_jobs([NewJob(f"q{n}", "a", {"n": "x" * 1000}) for n in range(100)])
            created += 100
    return created


def limit_files(server: Server, most: int) -> None:
    """The largest file that each process of the server may write, in bytes."""
    postmaster = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
    for pid in [postmaster, *children_of(postmaster)]:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()]


async def test_a_standby_is_not_run_on_until_it_is_promoted(start_server: StartServer) -> None:
    server = start_server()
    await migrations.up(server.dsn)
    dsn, signal = server.dsn, server.directory / "data" / "standby.signal"
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        job = await app.create_job("q", "a")
        await app.close()
        await restarted(server, start_server, before=lambda: as_the_server(signal))
        with structlog.testing.capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_until_performed, app, performer)
                await eventually(lambda: told(logs, "cannot_resume") or told(logs, "database_unavailable"))
                with pytest.raises(DatabaseUnavailable, match="standby"):
                    await app.create_job("q", "a")
                assert performer.performed == []
                await execute(dsn, "select pg_promote()")
    assert performer.ids == [job.id]


def as_the_server(signal: Path) -> None:
    """An empty file that belongs to whom the data belongs."""
    signal.touch()
    owner = signal.parent.stat()
    os.chown(signal, owner.st_uid, owner.st_gid)


async def restarted(server: Server, start_server: StartServer, before: Callable[[], None]) -> Server:
    await anyio.to_thread.run_sync(server.stop)
    before()
    return await anyio.to_thread.run_sync(start_server)


async def test_a_schema_that_is_dropped_under_a_node_may_come_back(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn)
    performer = Recorder()
    async with an_app(fresh_dsn, performer) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            await execute(fresh_dsn, "drop schema pgqueuetopia cascade")
            app.notify()
            await eventually(lambda: told(logs, "cannot_resume"))
        assert "migrate" in next(log["error"] for log in logs if log["event"] == "cannot_resume")
        await migrations.up(fresh_dsn)
        await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
