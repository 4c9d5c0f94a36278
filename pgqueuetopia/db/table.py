"""A user's table as a source of jobs: one method for each statement, none of which needs a session."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import asyncpg

from pgqueuetopia.db.configs import is_true
from pgqueuetopia.db.driver import AnyConnection
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.table_rows import Row, Written, row_of
from pgqueuetopia.db.table_sql import DESCRIBE, TableSql
from pgqueuetopia.errors import NotMigrated
from pgqueuetopia.job import Job
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.schema import CHANNEL

# A statement that another transaction was in the way of is tried again, after 10, 20, 40 ms and so on, in
# seconds: databases at SERIALIZABLE ask for that.
TRIES = 8
FIRST_PAUSE = 0.01
MICROSECONDS = 1_000_000
SUSPENDED = "suspended"
RING = "select pg_notify($1::text, $2::text)"


class Table:
    """The rows of one table queue."""

    def __init__(self, repo: Repo, queue: TableQueue, scope: str, *, alone_suspended: bool = True) -> None:
        """`alone_suspended`: whether a config suspends this queue alone, beside the one that suspends all."""
        self.queue = queue
        self._repo = repo
        self._scope = scope
        self._suspensions = [SUSPENDED, *([f"{queue.queue}_{SUSPENDED}"] if alone_suspended else [])]
        self._known: TableSql | None = None

    async def claim(self, room: int, node: str, lease: float, since: int) -> list[Row]:
        """Rows that are due from then on (microseconds), in order, for a node to have for `lease` seconds."""
        found = await self._fetch(
            lambda sql: sql.claim, room, _microseconds(lease), node, since, self._scope, self._suspensions
        )
        return sorted(self._rows(found), key=lambda row: row.due)

    async def settle(self, written: Sequence[Written]) -> set[int]:
        """Write what became of runs; returns the places in the list of those that were written."""
        columns = [[getattr(one, name) for one in written] for name in _WRITTEN]
        return await self._numbers(lambda sql: sql.settle, [one.key for one in written], *columns)

    async def renew(
        self, held: Sequence[Row], until: Sequence[int], told: Sequence[str | None], lease: float
    ) -> set[int]:
        """Keep rows for `lease` seconds more, and write the progress of those that told some (JSON).

        None is kept beyond `until` (microseconds). Returns the places in the list of those that were kept.
        """
        claims = [row.claim for row in held]
        keys = [row.key for row in held]
        after = (_microseconds(lease),)
        return await self._numbers(lambda sql: sql.renew, keys, claims, list(until), list(told), after=after)

    async def still_held(self, held: Sequence[Row]) -> set[int]:
        """The places in the list of the rows that nobody else has taken since."""
        keys, claims = [row.key for row in held], [row.claim for row in held]
        return await self._numbers(lambda sql: sql.still_held, keys, claims)

    async def move(self, written: Written, job: Job, queue: str) -> bool:
        """Give a row up for a job in another queue; False if it is no longer that run's."""
        params = json.dumps(job.params, default=str)
        made = await self._fetch(
            lambda sql: sql.move,
            written.claim,
            written.private,
            job.scope,
            queue,
            job.action,
            params,
            *written.key,
        )
        return bool(made)

    async def soonest(self) -> tuple[float | None, bool]:
        """In how many seconds the next row is due, or stale; whether one is, but somebody has locked it."""
        [[wait, held_up]] = await self._fetch(lambda sql: sql.soonest, self._scope, self._suspensions)
        return None if wait is None else max(wait / MICROSECONDS, 0.0), held_up

    async def status(self) -> dict[str, int]:
        """How many rows there are in each state."""
        [found] = await self._fetch(lambda sql: sql.status)
        return dict(found.items())

    async def in_state(self, state: str, limit: int) -> list[Row]:
        """The rows in a state, the one due longest first."""
        return self._rows(await self._fetch(lambda sql: sql.in_state(state), limit))

    async def cancel(self, key: Sequence[Any]) -> bool:
        """Have a row not run; whether there is one of this key."""
        return bool(await self._fetch(lambda sql: sql.cancel, *key))

    async def retry(self, key: Sequence[Any]) -> bool:
        """Have a row run now; whether there is one of this key that does not run."""
        return bool(await self._fetch(lambda sql: sql.retry, *key))

    async def suspended(self) -> bool:
        """Whether a config suspends it."""
        configs = await self._repo.configs(self._scope)
        return any(key in self._suspensions and is_true(value) for _, key, value in configs)

    async def ring(self) -> None:
        """Have the nodes look that can hear."""
        if self.queue.dialect.notifies:
            async with self._repo.connection() as connection:
                await connection.fetch(RING, CHANNEL, self.queue.names.identity)

    async def prepare(self) -> TableSql:
        """Its statements, once its columns have been looked up. Raises NotMigrated where one is missing."""
        if self._known is None:
            names = self.queue.names
            async with self._repo.connection() as connection:
                found = await connection.fetch(DESCRIBE, names.schema, names.table)
            types = {row["name"]: row["type"] for row in found}
            self._check(types)
            self._known = TableSql(self.queue, [types[column] for column in self.queue.columns])
        return self._known

    def _check(self, types: Mapping[str, str]) -> None:
        queue = self.queue
        if not types:
            raise NotMigrated(f"There is no table {queue.names.relation}.")
        wanted = [*queue.columns, queue.names.lock_column, queue.names.private_column]
        if missing := [column for column in wanted if column not in types]:
            raise NotMigrated(
                f"{queue.names.relation} has no column {', '.join(missing)}; for a table queue run: "
                f"python -m pgqueuetopia.migrate table {queue.table} {queue.queue}. And for all else:"
            )

    async def _numbers(
        self, statement: "Statement", keys: Sequence[Sequence[Any]], *columns: Any, after: Sequence[Any] = ()
    ) -> set[int]:
        """Run a statement on many rows; the places in the list of those that it was done to."""
        if not keys:
            return set()
        of_keys = [list(column) for column in zip(*keys, strict=True)]
        found = await self._fetch(statement, *of_keys, list(range(len(keys))), *columns, *after)
        return {row["n"] for row in found}

    def _rows(self, found: Iterable[asyncpg.Record]) -> list[Row]:
        return [row_of(one, len(self.queue.columns)) for one in found]

    async def _fetch(self, statement: "Statement", *arguments: Any) -> list[asyncpg.Record]:
        sql = statement(await self.prepare())
        async with self._repo.connection() as connection:
            return await fetch_patiently(connection, sql, *arguments)


Statement = Callable[[TableSql], str]

_WRITTEN = ("claim", "outcome", "due", "wait", "private")


async def fetch_patiently(connection: AnyConnection, sql: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run a statement by itself, again if another transaction was in its way (40001, 40P01).

    Never fetchrow or fetchval: those leave a portal open, and CockroachDB has room for one.
    """
    for tried in range(TRIES):
        try:
            return await connection.fetch(sql, *arguments)
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
            if tried == TRIES - 1:
                raise
            await anyio.sleep(FIRST_PAUSE * 2**tried * random.uniform(0.5, 1.0))
    raise AssertionError


def _microseconds(seconds: float) -> int:
    return round(seconds * MICROSECONDS)
