"""A node of table queues alone, for a database that can hold no other jobs."""

import anyio
import anyio.abc
import structlog

from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.tables import Tables

log = structlog.get_logger("pgqueuetopia")

# What a cancelled job has to come to its end, in seconds.
GRACE = 5.0


class TableNode:
    """As Node, without a session and without queues of its own."""

    def __init__(self, name: str, plan: Plan, tables: Tables) -> None:
        self.name = name
        self._plan = plan
        self._tables = tables
        self._left = anyio.Event()
        self._leaving = False
        self._log = log.bind(scope=plan.scope, node=name)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Until it has left; started once its tables were looked at. Who is cancelled leaves in order."""
        try:
            await self._tables.check()
            with anyio.CancelScope(shield=True):
                self._log.info("node_started")
                task_status.started()
                await self._tables.run()
                self._log.info("node_left")
        finally:
            self._left.set()

    async def leave(self) -> None:
        """Claim nothing more, let the jobs end for `shutdown` seconds, cancel the rest, and go."""
        if self._leaving:
            await self._left.wait()
            return
        self._leaving = True
        self._tables.leave()
        with anyio.move_on_after(self._plan.shutdown):
            await self._left.wait()
        if not self._left.is_set():
            self.hurry()
            with anyio.move_on_after(GRACE):
                await self._left.wait()
            self._tables.give_up()
            await self._left.wait()

    def hurry(self) -> None:
        """Cancel what runs; it counts as interrupted, not as failed, and runs again first."""
        self._tables.interrupt()

    def wake(self) -> None:
        """Look now: something that the database does not tell has changed."""
        self._tables.wake()
