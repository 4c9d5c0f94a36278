"""asyncpg, in one place: where to connect, how, and what its errors mean to our users."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union
from urllib.parse import parse_qs, urlsplit

import asyncpg

from pgqueuetopia.errors import (
    AccessDenied,
    DatabaseRefused,
    DatabaseUnavailable,
    InvalidConfig,
    InvalidJob,
    Misconfigured,
    NotMigrated,
    QueuetopiaError,
)

# In seconds: how long a new connection, and a statement that is not a node's, may take.
CONNECT_TIMEOUT = 10

NEEDS_DIRECT_CONNECTION = (
    "A node needs a direct connection, and a pooler stands between it and the database. "
    "Give Repo(dsn, session_dsn=...) or $PGQUEUETOPIA_SESSION_DSN the server's own address."
)

UNREADABLE_DSN = (
    "The DSN cannot be read. It must be like postgresql://user:password@host:5432/database, with the special "
    "characters of the password percent-encoded (urllib.parse.quote)."
)
HOST_AND_PORT = re.compile(r"(\[[^]]*\]|[^:[\]]*)(:[0-9]*)?")

# A caller's own connection comes from a pool as a proxy.
# The classes are generic for the type checker alone, hence the strings.
Connection = Union["asyncpg.Connection[asyncpg.Record]", "PooledConnection"]
AnyConnection = Union[
    "asyncpg.Connection[asyncpg.Record]", "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
]

_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InternalClientError,
)
_NOT_MIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidSchemaNameError,
)


class PooledConnection(asyncpg.Connection):
    """A connection of the pool that resets nothing: a pooler would reset somebody else's session."""

    def get_reset_query(self) -> str:
        """Nothing: what we send leaves nothing behind."""
        return ""


def resolved_dsn(dsn: str | None) -> str | None:
    """The DSN to use: the one given, $PGQUEUETOPIA_DSN, $DATABASE_URL, or None for libpq's PG* variables."""
    return _readable(dsn or os.environ.get("PGQUEUETOPIA_DSN") or os.environ.get("DATABASE_URL"))


def resolved_session_dsn(dsn: str | None) -> str | None:
    """The DSN of a node's direct connection: the one given, or $PGQUEUETOPIA_SESSION_DSN."""
    return _readable(dsn or os.environ.get("PGQUEUETOPIA_SESSION_DSN"))


def _readable(dsn: str | None) -> str | None:
    """A DSN that the driver can read: its own errors would quote the password where it cannot."""
    if not dsn:
        return None
    try:
        url = urlsplit(dsn)
        parse_qs(url.query, strict_parsing=bool(url.query))
    except ValueError:
        raise Misconfigured(UNREADABLE_DSN) from None
    hosts = url.netloc.rpartition("@")[2].split(",")
    if url.scheme not in ("postgresql", "postgres") or not all(
        HOST_AND_PORT.fullmatch(host) for host in hosts
    ):
        raise Misconfigured(UNREADABLE_DSN)
    return dsn


@contextmanager
def translated() -> Iterator[None]:
    """Raise our own errors in place of the driver's, each saying what to do."""
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ) as error:
        raise translation(error) from error


def translation(error: Exception) -> QueuetopiaError:
    """The error of ours that says what one of the driver's means."""
    match error:
        case asyncpg.InsufficientPrivilegeError():
            return AccessDenied(f"{error}. docs/operations.md lists the grants that each role needs.")
        case asyncpg.CheckViolationError() if error.table_name == "job_configs":
            return InvalidConfig(f"The database refuses this config ({error.constraint_name}).")
        case asyncpg.CheckViolationError() if error.schema_name == "pgqueuetopia":
            return InvalidJob([f"the database refuses this job ({error.constraint_name})"])
        case asyncpg.UntranslatableCharacterError() | asyncpg.StatementTooComplexError():
            return InvalidJob([f"the database cannot store this: {error}"])
        case asyncpg.ProtocolViolationError() if "startup parameter" in str(error):
            return Misconfigured(NEEDS_DIRECT_CONNECTION)
        case _ if isinstance(error, _NOT_MIGRATED):
            return NotMigrated(f"The database does not have what this version needs ({error}).")
        case _ if isinstance(error, _UNAVAILABLE):
            return DatabaseUnavailable(_why_unavailable(error))
        case _:
            return DatabaseRefused(f"{type(error).__name__}: {error}")


def _why_unavailable(error: Exception) -> str:
    match error:
        case asyncpg.ReadOnlySQLTransactionError():
            return (
                f"The database is read-only: {error}. If it is a standby, name all servers in the DSN, "
                "with target_session_attrs=read-write."
            )
        case asyncpg.InsufficientResourcesError():
            return f"The server has run out of something: {error}"
        case _:
            return (
                f"The database cannot be reached: {str(error) or type(error).__name__}. "
                "Give Repo(dsn), or set $PGQUEUETOPIA_DSN."
            )


def keep_alive(connection: Connection, *, timeout: float) -> None:
    """Have the kernel notice within about `timeout` seconds that the server is gone: asyncpg does not."""
    transport = getattr(connection, "_transport", None)
    found: socket.socket | None = transport.get_extra_info("socket") if transport else None
    if found is None or found.family == socket.AF_UNIX:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, int(timeout / 3))),
        ("TCP_KEEPINTVL", max(1, int(timeout / 6))),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(timeout * 1000)),
    ):
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
