"""What operators do with the rows of a table queue."""

from collections.abc import Callable
from typing import Any, Protocol

import anyio

from pgqueuetopia.db.configs import Configs
from pgqueuetopia.db.table import SUSPENDED, Table
from pgqueuetopia.db.table_rows import job_of
from pgqueuetopia.db.table_sql import STATES
from pgqueuetopia.errors import JobNotFound, Misconfigured
from pgqueuetopia.job import Job, integer_faults
from pgqueuetopia.options import refuse
from pgqueuetopia.status import Cancelled
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.status import TableStatus

# In seconds.
DRAINED_LOOK = 0.05


class Pausing(Protocol):
    """Who suspends and resumes queues: a Queuetopia."""

    configs: Configs

    async def suspend(self, queue: str | None = None, *, local: bool = False) -> None:
        """Suspend a queue, or all."""

    async def resume(self, queue: str | None = None, *, local: bool = False) -> None:
        """Resume it, or all."""


class TableOperations:
    """One table queue of a Queuetopia: `app.table("classify_photos")`."""

    def __init__(self, table: Table, scope: str, app: Pausing, is_paused: Callable[[str], bool]) -> None:
        """`is_paused` says whether a queue is suspended here alone."""
        self._table = table
        self._scope = scope
        self._app = app
        self._is_paused = is_paused

    @property
    def queue(self) -> TableQueue:
        """What was declared."""
        return self._table.queue

    async def status(self) -> TableStatus:
        """How many rows are in each state (Honeydew). It reads the rows that have not ended, and no other."""
        name = self.queue.queue
        suspended = self._is_paused(name) or await self._table.suspended()
        return TableStatus(queue=name, suspended=suspended, **await self._table.status())

    async def filter(self, state: str, *, limit: int = 1_000) -> list[Job]:
        """The jobs of the rows in a state: "abandoned", as in Honeydew, and any other of status.

        Those due longest first, at most `limit`. A job has its row's `key`, its attempts and errors, and, in
        progress, `last_progress` and the node that runs it; not what `task` makes of it. Raises Misconfigured
        for another state, and for a limit below 1.
        """
        if state not in STATES:
            raise Misconfigured(f"A row is {', '.join(STATES)}; there is no state {state!r}.")
        refuse(integer_faults("limit", limit, least=1))
        rows = await self._table.in_state(state, limit)
        return [job_of(row, self.queue, self._scope, state) for row in rows]

    async def cancel(self, key: Any) -> Cancelled:
        """Have a row not run, or not again: OK, or NOT_FOUND where there is no such row (Honeydew).

        OK for a row that has ended or that runs, too: what its run comes to counts for nothing, and its node
        stops it when it hears of it. Never IN_PROGRESS.
        """
        found = await self._table.cancel(self.queue.values(key))
        await self._table.ring()
        return Cancelled.OK if found else Cancelled.NOT_FOUND

    async def retry(self, key: Any) -> None:
        """Have a row run now, its attempts counted anew, whether it waits, was abandoned or has ended.

        Raises JobNotFound where there is no such row, and for one that runs.
        """
        if not await self._table.retry(self.queue.values(key)):
            names = self.queue.names
            raise JobNotFound(f"{names.relation} has no row {key!r} that does not run.")
        await self._table.ring()

    async def suspend(self, *, local: bool = False, wait: bool = False) -> None:
        """Claim no row any more: on every node, by the config `<queue>_suspended`, or (`local`) here.

        Those that run go on; with `wait` it returns when they have ended, on whichever node.
        """
        await self._app.suspend(self.queue.queue, local=local)
        # The rows tell, and nobody rings for them.
        while wait and (await self._table.status())["in_progress"]:  # noqa: ASYNC110
            await anyio.sleep(DRAINED_LOOK)

    async def resume(self, *, local: bool = False) -> None:
        """Undo `suspend`. A suspension of everything stays, and so does one by the other kind."""
        if local:
            await self._app.resume(self.queue.queue, local=True)
        else:
            await self._app.configs.set(f"{self.queue.queue}_{SUSPENDED}", "false")
