"""Databases of one test each."""

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal

from pgqueuetopia.db import migrations
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import AccessDenied, Misconfigured

# The server and the user, the database, and the rest of a DSN.
PARTS = re.compile(r"(\w+://[^/?]*)(/[^?]*)?(\?.*)?")
# In seconds: a server that is busy writes all it has before it drops a database.
TIMEOUT = 120


@contextmanager
def a_template(server: str) -> Iterator[str]:
    """The name of a migrated database, to be copied."""
    with a_database(server, "template1") as name:
        _run(migrations.up, in_database(server, name))
        yield name


@contextmanager
def a_database(server: str, template: str) -> Iterator[str]:
    """The name of a new database like the template; at the end it is dropped, whoever is connected.

    Raises Misconfigured for a role that may not create databases.
    """
    name = f"queuetopia_test_{secrets.token_hex(6)}"
    try:
        _run(_execute, server, f"create database {name} template {template}")
    except AccessDenied as error:
        raise Misconfigured(f"Tests make databases of their own, and this role may not: {error}") from error
    try:
        yield name
    finally:
        _run(_execute, server, f"drop database {name} with (force)")


def in_database(server: str, name: str) -> str:
    """The same server's DSN, for another database."""
    parts = PARTS.fullmatch(server)
    return f"{parts[1]}/{name}{parts[3] or ''}" if parts else server


async def _execute(dsn: str, sql: str) -> None:
    repo = Repo(dsn, max_size=1, timeout=TIMEOUT)
    try:
        async with repo.connection() as connection:
            await connection.execute(sql)
    finally:
        await repo.close()


def _run(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """In a thread: a loop may run in this one, for an async test asks for a fixture when it likes."""
    with start_blocking_portal() as portal:
        return portal.call(function, *arguments)
