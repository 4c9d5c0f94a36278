"""What doctor asks of a database: facts alone, judged elsewhere."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import anyio
import asyncpg

from pgqueuetopia.db.driver import CONNECT_TIMEOUT, Connection, translated
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.statements import SQL

# Reading every queue of a large database takes its time.
LONGEST_CHECK = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server at the end of a connection.

    `clock_ahead` is the database's clock less ours, in seconds, known to within `clock_error`.
    """

    pooled: bool
    backend: int
    started_at: datetime
    database: str
    role: str
    version: str
    version_number: int
    standby: bool
    read_only: bool
    isolation: str
    autovacuum: bool
    track_counts: bool
    clock_ahead: float
    clock_error: float


@dataclass(frozen=True, slots=True)
class Locks:
    """The server's lock table.

    `per_transaction` is max_locks_per_transaction, which times the connections gives `capacity`; `nodes` are
    those of every scope that run now.
    """

    per_transaction: int
    capacity: int
    held: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table's rows by the statistics, dead and alive."""

    name: str
    live: int
    dead: int
    vacuumed_at: datetime | None
    autovacuum_off: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds dead rows back, and for how long; `seconds` is None where nobody knows."""

    holder: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Stranded:
    """How many queues break invariant 1, and the first few, as (scope, queue)."""

    queues: int
    first: tuple[tuple[str, str], ...]


class Checkup:
    """One connection, and a question for each thing that can be wrong."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def server(self) -> Server:
        """The server, and how far its clock is from ours."""
        began = time.time()
        [row] = await self._fetch("checkup_server")
        ended = time.time()
        facts: dict[str, Any] = dict(row.items())
        return Server(
            pooled=facts["backend"] != self._connection.get_server_pid(),
            clock_ahead=facts.pop("now").timestamp() - (began + ended) / 2,
            clock_error=(ended - began) / 2,
            **facts,
        )

    async def missing_privileges(self) -> list[tuple[str, str]]:
        """What a node needs and this role lacks, as (object, privilege)."""
        return [(row["object"], row["privilege"]) for row in await self._fetch("checkup_privileges")]

    async def locks(self) -> Locks:
        """The server's lock table."""
        [row] = await self._fetch("checkup_locks")
        return Locks(**dict(row.items()))

    async def tables(self) -> list[Table]:
        """The tables that are written at every job."""
        return [Table(**dict(row.items())) for row in await self._fetch("checkup_tables")]

    async def holders(self) -> tuple[list[Holder], bool]:
        """What holds dead rows back, longest first; False with them if this role does not see everybody's."""
        found = [Holder(**dict(row.items())) for row in await self._fetch("checkup_horizon")]
        [sight] = await self._fetch("checkup_sight")
        return found, sight["all_stats"]

    async def stranded(self) -> Stranded:
        """The queues that nobody will ever look at."""
        found = await self._fetch("checkup_stranded")
        first = tuple((row["scope"], row["queue"]) for row in found)
        return Stranded(found[0]["queues"] if found else 0, first)

    async def _fetch(self, statement: str) -> list[asyncpg.Record]:
        with translated():
            return await self._connection.fetch(SQL[statement])


@asynccontextmanager
async def connected(dsn: str | None) -> AsyncIterator[Checkup]:
    """A connection that works through any pooler. Raises DatabaseUnavailable."""
    with translated():
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT, command_timeout=LONGEST_CHECK, statement_cache_size=0
        )
    try:
        # The first question is asked for the time alone: it would count the parsing as the clock's.
        await Checkup(connection)._fetch("checkup_sight")
        yield Checkup(connection)
    finally:
        with anyio.move_on_after(CONNECT_TIMEOUT):
            await connection.close()
        connection.terminate()


async def scopes(repo: Repo) -> list[str]:
    """The scopes that have a job or a config."""
    async with repo.connection() as connection:
        return [row["scope"] for row in await connection.fetch(SQL["scopes"])]
