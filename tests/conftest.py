"""One server for all workers, one migrated database for each, emptied before each test."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import anyio
import asyncpg
import pytest
import structlog

from pgqueuetopia.db import migrations
from pgqueuetopia.embedded import Server, start

SERVER_DSN = "PGQUEUETOPIA_TEST_SERVER"
# More than the test server's files will need, in bytes.
MUCH = 6 * 2**30
# Who was there before is gone, and its locks with it: the next test has queues of the same names.
EMPTY = """
do $$
begin
  loop
    perform pg_stat_clear_snapshot();
    perform pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid();
    exit when not found;
    perform pg_sleep(0.001);
  end loop;
end
$$;
delete from pgqueuetopia.job_configs;
truncate pgqueuetopia.jobs, pgqueuetopia.run_queue, pgqueuetopia.replies restart identity;
insert into pgqueuetopia.job_configs (scope, key, value) values ('*', 'suspended', 'false');
"""

pytest_plugins: list[str] = []
_server: list[tuple[Server, Path]] = []

StartServer: TypeAlias = Callable[..., Server]


def pytest_configure(config: pytest.Config) -> None:
    """Start the server before the workers, which find it in their environment."""
    if SERVER_DSN not in os.environ:
        # Not under pytest's own folder: a server run as another user could not enter it.
        directory = Path(tempfile.mkdtemp(prefix="pgqueuetopia-test-", dir=_parent()))
        server = start(directory / "server", durable=False)
        _server.append((server, directory))
        os.environ[SERVER_DSN] = server.dsn


def _parent() -> str:
    """In memory, where there is plenty: to empty tables for each test is to make some dozen files."""
    memory = "/dev/shm"
    usable = os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > MUCH
    return memory if usable else "/tmp"


def pytest_unconfigure(config: pytest.Config) -> None:
    for server, directory in _server:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def server_dsn() -> str:
    """The server's database `postgres`, as superuser."""
    return os.environ[SERVER_DSN]


def in_database(dsn: str, name: str) -> str:
    """The same server's DSN, for another database."""
    return dsn.replace("/postgres?", f"/{name}?")


async def execute(dsn: str, sql: str) -> None:
    """Run SQL on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def worker_dsn(server_dsn: str) -> Iterator[str]:
    """A migrated database of this worker's."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    dsn = in_database(server_dsn, name)
    anyio.run(execute, server_dsn, f"create database {name}")
    anyio.run(migrations.up, dsn)
    yield dsn
    anyio.run(execute, server_dsn, f"drop database {name} with (force)")


@pytest.fixture
async def dsn(worker_dsn: str) -> str:
    """A migrated database without a job."""
    await execute(worker_dsn, EMPTY)
    return worker_dsn


@pytest.fixture
async def fresh_dsn(server_dsn: str) -> AsyncIterator[str]:
    """A database of the test's own, not migrated."""
    name = f"fresh_{uuid.uuid4().hex[:12]}"
    await execute(server_dsn, f"create database {name}")
    yield in_database(server_dsn, name)
    await execute(server_dsn, f"drop database {name} with (force)")


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A second connection to the test's database."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts a server of the test's own, for what would harm the others; once stopped, the same one again."""
    with ExitStack() as stack:
        # Not under pytest's own folder: a server run as another user could not enter it.
        directory = Path(tempfile.mkdtemp(prefix="pgqueuetopia-test-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)

        def start_with(**options: str) -> Server:
            return stack.enter_context(start(directory / "server", durable=False, options=options))

        yield start_with


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """What a test configures of structlog ends with it."""
    yield
    structlog.reset_defaults()
