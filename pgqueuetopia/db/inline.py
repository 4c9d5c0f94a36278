"""A session that claims one job at a time: what tests perform jobs with, instead of a node."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.db.driver import CONNECT_TIMEOUT, Connection, translated
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.errors import JobNotFound
from pgqueuetopia.job import Job

# In seconds.
STATEMENT_TIMEOUT = 30
CLOSE_TIMEOUT = 2


@dataclass(frozen=True, slots=True)
class Head:
    """The first job of a queue."""

    job: int
    queue: str


class InlineSession:
    """Beside the pool, which may have no connection to spare while a job runs; its end frees the locks."""

    def __init__(self, connection: Connection, scope: str, node: str) -> None:
        self._connection = connection
        self._scope = scope
        self._node = node

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str | None, scope: str, node: str) -> AsyncIterator["InlineSession"]:
        """Connect, and close at the end."""
        with translated():
            connection = await asyncpg.connect(
                dsn,
                timeout=CONNECT_TIMEOUT,
                command_timeout=STATEMENT_TIMEOUT,
                server_settings={"application_name": f"pgqueuetopia {node}"},
            )
        try:
            yield cls(connection, scope, node)
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await connection.close()
            connection.terminate()

    async def newest(self) -> int:
        """The id of the scope's newest job."""
        [[newest]] = await self._fetch("testing_newest", self._scope)
        return int(newest)

    async def next_head(self, queue: str | None, passed: Iterable[str], newest: int) -> Head | None:
        """The head to be performed next; one that is not due only up to the id `newest`."""
        found = await self._fetch("testing_next", self._scope, queue, list(passed), newest)
        return Head(found[0]["id"], found[0]["queue"]) if found else None

    @asynccontextmanager
    async def claimed(self, job_id: int) -> AsyncIterator[Job]:
        """Claim a job, due or not, and hold its queue meanwhile. Raises JobNotFound if it cannot be had."""
        queue = await self._lock(job_id)
        try:
            yield await self._claim(job_id)
        finally:
            await self._fetch("testing_unlock", self._scope, queue)

    async def _lock(self, job_id: int) -> str:
        found = await self._fetch("testing_lock", self._scope, job_id)
        if found and found[0]["locked"]:
            return str(found[0]["queue"])
        raise JobNotFound(f"Scope {self._scope!r} has no job {job_id} to perform: {_why_not(found)}.")

    async def _claim(self, job_id: int) -> Job:
        for row in await self._fetch("testing_claim", self._scope, job_id, self._node):
            return rows.claimed_job_of(rows.row_of(row["job"]), self._scope, self._node)
        raise JobNotFound(f"Scope {self._scope!r} has no job {job_id} to perform: it has just ended.")

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        with translated():
            return await self._connection.fetch(SQL[statement], *arguments)


def _why_not(found: list[asyncpg.Record]) -> str:
    if not found:
        return "it does not exist"
    if found[0]["outcome"]:
        return f"it has ended ({found[0]['outcome']})"
    return f"its queue {found[0]['queue']!r} runs at this moment"
