"""A plain database for a peer, on the server that is measured."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from benchmarks.peers.peer import Contestant
from benchmarks.server import Server, connected


@asynccontextmanager
async def a_database_with(contestant: Contestant, server: Server) -> AsyncIterator[str]:
    """The DSN of a new database in which the peer has made its tables; dropped at the end."""
    name = f"peer_{uuid.uuid4().hex[:12]}"
    dsn = urlsplit(server.dsn)._replace(path=f"/{name}").geturl()
    async with connected(server.dsn) as connection:
        await connection.execute(f"create database {name}")
    try:
        await contestant.runner.run("install", dsn=dsn)
        yield dsn
    finally:
        async with connected(server.dsn) as connection:
            await connection.execute(f"drop database {name} with (force)")
