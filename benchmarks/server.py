"""The server that is measured, and a fresh database on it for every round."""

import os
import platform
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from pgqueuetopia import embedded
from pgqueuetopia.cli.runtime import HAS_UVLOOP
from pgqueuetopia.db import migrations

SHOWN = ("fsync", "synchronous_commit", "full_page_writes", "autovacuum", "shared_buffers", "max_connections")


@dataclass(frozen=True, slots=True)
class Server:
    """A server, by the DSN of a database from which others can be created."""

    dsn: str

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The DSN of a new, migrated database, which is dropped at the end."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        await self._execute(f"create database {name}")
        dsn = urlsplit(self.dsn)._replace(path=f"/{name}").geturl()
        try:
            await migrations.up(dsn)
            yield dsn
        finally:
            await self._execute(f"drop database {name} with (force)")

    async def described(self) -> str:
        """The server's version and settings, and the machine."""
        async with connected(self.dsn) as connection:
            version = await connection.fetchval("show server_version")
            settings = [f"{name}={await connection.fetchval(f'show {name}')}" for name in SHOWN]
        python = f"Python {platform.python_version()}{' with uvloop' if HAS_UVLOOP else ''}"
        return (
            f"PostgreSQL {version}, {', '.join(settings)}; "
            f"{python}, {os.cpu_count()} CPUs, server and clients on one machine"
        )

    async def _execute(self, sql: str) -> None:
        async with connected(self.dsn) as connection:
            await connection.execute(sql)


@contextmanager
def a_server() -> Iterator[Server]:
    """The server of $PGQUEUETOPIA_BENCH_DSN (its role may create databases), or a durable one of our own."""
    if dsn := os.environ.get("PGQUEUETOPIA_BENCH_DSN"):
        yield Server(dsn)
        return
    with (
        tempfile.TemporaryDirectory(prefix="pgqueuetopia-bench-", dir="/tmp") as folder,
        embedded.start(Path(folder) / "server", durable=True) as server,
    ):
        yield Server(server.dsn)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()
