"""Repo: the pool, one method for each statement."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.db.driver import (
    AnyConnection,
    PooledConnection,
    resolved_dsn,
    resolved_session_dsn,
    translated,
)
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.errors import DatabaseRefused
from pgqueuetopia.job import Job, JobRow
from pgqueuetopia.status import Quantiles, Stats

UNREADABLE = (
    "A row has a time before the year 1 or after 9999, which Python cannot read. Somebody has written it by "
    "SQL, into next_attempt_at or updated_at of a job, say: mend it there."
)

# What nodes tell each other: followed by the scope and the name of the node that has taken a job.
TOOK = "took "


class Home:
    """A pool, once it is open, and the lock under which it opens."""

    def __init__(self) -> None:
        self.pool: asyncpg.Pool[asyncpg.Record] | None = None
        self.opening = anyio.Lock()


class Repo:
    """Where the jobs are stored: a PostgreSQL database, by its DSN.

    Without a DSN: $PGQUEUETOPIA_DSN, else $DATABASE_URL, else libpq's PG* variables. `session_dsn` (else
    $PGQUEUETOPIA_SESSION_DSN, else the DSN) is for a node's one direct connection, where the DSN goes
    through a pooler. The pool opens on first use, holds at most `max_size` connections (10) and waits at
    most `timeout` seconds (30) for a statement. Set `statement_cache_size=0` for PgBouncer below 1.21.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        session_dsn: str | None = None,
        max_size: int = 10,
        timeout: float = 30,
        statement_cache_size: int = 100,
    ) -> None:
        self._dsn = dsn
        self._session_dsn = session_dsn
        self._max_size = max_size
        self._timeout = timeout
        self._statement_cache_size = statement_cache_size
        # One for each event loop that goes on: a pool is of use in its own alone.
        self._homes: dict[asyncio.AbstractEventLoop, Home] = {}

    def __repr__(self) -> str:
        return f"Repo({'open' if any(home.pool for home in self._homes.values()) else 'closed'})"

    @property
    def _home(self) -> Home:
        """That of the loop that runs. What was left open in loops that have been closed is let go."""
        loop = asyncio.get_running_loop()
        if loop not in self._homes:
            for other in [other for other in list(self._homes) if other.is_closed()]:
                self._homes.pop(other, None)
            self._homes[loop] = Home()
        return self._homes[loop]

    @property
    def dsn(self) -> str | None:
        """The DSN of the pool; None stands for libpq's PG* variables."""
        return resolved_dsn(self._dsn)

    @property
    def session_dsn(self) -> str | None:
        """The DSN of a node's direct connection."""
        return resolved_session_dsn(self._session_dsn) or self.dsn

    async def close(self) -> None:
        """Close the pool of this event loop; it opens again on its next use."""
        home = self._home
        pool, home.pool = home.pool, None
        if pool is not None:
            with anyio.move_on_after(self._timeout):
                await pool.close()
            pool.terminate()

    @asynccontextmanager
    async def connection(self, conn: AnyConnection | None = None) -> AsyncIterator[AnyConnection]:
        """The caller's connection, or one of the pool."""
        with translated():
            if conn is not None:
                yield conn
            else:
                pool, pooled = await self._acquire()
                try:
                    yield pooled
                finally:
                    await pool.release(pooled)

    async def _acquire(
        self,
    ) -> "tuple[asyncpg.Pool[asyncpg.Record], asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]":
        """A connection, of a new pool where somebody closes this one meanwhile."""
        home = self._home
        while True:
            pool = home.pool or await self._open(home)
            try:
                return pool, await pool.acquire(timeout=self._timeout)
            except asyncpg.InterfaceError:
                if pool is home.pool:
                    raise

    async def _open(self, home: Home) -> "asyncpg.Pool[asyncpg.Record]":
        async with home.opening:
            if home.pool is None:
                home.pool = await asyncpg.create_pool(
                    self.dsn,
                    min_size=0,
                    max_size=self._max_size,
                    command_timeout=self._timeout,
                    statement_cache_size=self._statement_cache_size,
                    connection_class=PooledConnection,
                )
            return home.pool

    async def create_job(self, scope: str, job: JobRow, conn: AnyConnection | None = None) -> Job:
        columns = [column[0] for column in rows.columns_of([job])]
        [stored] = await self._fetch("create_job", scope, *columns, conn=conn)
        return rows.created_job(scope, job, stored)

    async def create_jobs(
        self, scope: str, jobs: Sequence[JobRow], conn: AnyConnection | None = None
    ) -> list[Job]:
        if len(jobs) == 1:
            return [await self.create_job(scope, jobs[0], conn)]
        stored = await self._fetch("create_jobs", scope, *rows.columns_of(jobs), conn=conn)
        return [rows.created_job(scope, job, row) for job, row in zip(jobs, stored, strict=True)]

    async def get_job(self, scope: str, job_id: int) -> Job | None:
        found = await self._fetch("get_job", scope, job_id)
        return rows.job_of(found[0]) if found else None

    async def list_jobs(self, scope: str, *filters: str | None, after: int, limit: int) -> list[Job]:
        found = await self._fetch("list_jobs", scope, *filters, after, limit)
        return [rows.job_of(row) for row in found]

    async def count_jobs(self, scope: str, *filters: str | None) -> int:
        return int(await self._value("count_jobs", scope, *filters))

    async def status(self, scope: str, queue: str | None) -> dict[str, int]:
        return {row["state"]: row["jobs"] for row in await self._fetch("status", scope, queue)}

    async def executing(self, scope: str, queue: str | None) -> int:
        return int(await self._value("executing", scope, queue))

    async def executing_jobs(self, scope: str, limit: int) -> list[Job]:
        return [rows.job_of(row) for row in await self._fetch("executing_jobs", scope, limit)]

    async def nodes(self, scope: str) -> dict[str, int]:
        """The nodes that run now, and how many Workers each has."""
        return {row["node"]: row["workers"] or 0 for row in await self._fetch("nodes", scope)}

    async def tell_turn(self, scope: str, node: str) -> None:
        """Tell the nodes of the scope that this one has taken a job."""
        await self._fetch("tell_turn", f"{TOOK}{scope} {node}")

    async def stats(self, scope: str, since: datetime | None, last: timedelta | None) -> list[Stats]:
        return [
            Stats(
                queue=row["queue"],
                action=row["action"],
                done=row["done"],
                failed=row["failed"],
                retried=row["retried"],
                wait=Quantiles(*[timedelta(seconds=part) for part in row["waits"]]),
                run=Quantiles(*[timedelta(seconds=part) for part in row["runs"]]),
            )
            for row in await self._fetch("stats", scope, since, last)
        ]

    async def utilisation(self, scope: str, topic: str) -> tuple[int | None, list[tuple[str, int, int]]]:
        """What a config says of a topic's parallelism; how many jobs each node runs, and has launched."""
        [row] = await self._fetch("utilisation", scope, topic)
        return row["parallelism"], [tuple(node) for node in row["nodes"]]

    async def delete_ended(self, scope: str, age: timedelta) -> int:
        """Remove the jobs that ended longer ago; returns how many."""
        return int(await self._value("delete_ended", scope, age))

    async def tell_launched(self, job_id: int, claim: int, event: str) -> None:
        """A run has launched something, or that has ended."""
        await self._fetch("tell_launched", job_id, claim, event)

    async def suspended(self, scope: str, queue: str | None) -> bool:
        return bool(await self._value("suspended", scope, queue))

    async def blocked_queues(self, scope: str, limit: int) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._fetch("blocked_queues", scope, limit)]

    async def end_job(self, scope: str, job_id: int, outcome: str) -> str:
        return str(await self._value("end_job", scope, job_id, outcome))

    async def move_job(self, scope: str, job_id: int, queue: str) -> tuple[int | None, str | None]:
        [row] = await self._fetch("move_job", scope, job_id, queue)
        return row["id"], row["why_not"]

    async def kill_job(self, job_id: int) -> None:
        await self._fetch("kill_job", job_id)

    async def retry_jobs(self, scope: str, job_id: int | None, queue: str | None) -> int:
        return int(await self._value("retry_jobs", scope, job_id, queue))

    async def params(self, job_id: int) -> dict[str, Any]:
        return dict(rows.loaded(await self._value("params", job_id)))

    async def persist(
        self, scope: str, node: str, columns: Sequence[Sequence[Any]], *, keep: bool
    ) -> list[int]:
        return list(await self._value("persist", scope, node, *columns, keep))

    async def write_progress(self, latest: Mapping[tuple[int, int], str]) -> None:
        """Progress as JSON, by a job's id and claim."""
        ids, claims = zip(*latest, strict=True)
        await self._fetch("write_progress", ids, claims, list(latest.values()))

    async def clean(self, scope: str, retention: timedelta, batch: int) -> int:
        """Remove one batch of jobs that ended longer ago; 0 as well if another node is at it."""
        return int(await self._value("clean", scope, retention, batch))

    async def clean_replies(self, scope: str, retention: timedelta, batch: int) -> int:
        return int(await self._value("clean_replies", scope, retention, batch))

    async def configs(self, scope: str, conn: AnyConnection | None = None) -> list[tuple[str, str, str]]:
        found = await self._fetch("list_configs", scope, conn=conn)
        return [(row["scope"], row["key"], row["value"]) for row in found]

    async def set_config(self, scope: str, key: str, value: str, conn: AnyConnection | None) -> None:
        await self._fetch("set_config", scope, key, value, conn=conn)

    async def delete_config(self, scope: str, key: str, conn: AnyConnection | None) -> int:
        return int((await self._fetch("delete_config", scope, key, conn=conn))[0][0])

    async def _fetch(
        self, statement: str, *arguments: Any, conn: AnyConnection | None = None
    ) -> list[asyncpg.Record]:
        # fetch, never fetchrow or fetchval: those leave a portal open in the caller's transaction.
        async with self.connection(conn) as connection:
            try:
                return await connection.fetch(SQL[statement], *arguments)
            except OverflowError as error:
                raise DatabaseRefused(UNREADABLE) from error

    async def _value(self, statement: str, *arguments: Any) -> Any:
        return (await self._fetch(statement, *arguments))[0][0]
