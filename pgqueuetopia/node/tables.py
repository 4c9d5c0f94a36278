"""The table queues of a node: a loop for each, and the ears that they share."""

from collections.abc import Sequence
from dataclasses import replace

import anyio
import structlog

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.table import Table
from pgqueuetopia.db.table_ears import Ears
from pgqueuetopia.errors import DatabaseUnavailable
from pgqueuetopia.failure import FailurePolicy
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.table import TableLoop
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.workers import Workers

log = structlog.get_logger("pgqueuetopia")


class Tables:
    """What a node runs of its Queuetopia's table queues."""

    def __init__(
        self,
        queues: Sequence[TableQueue],
        repo: Repo,
        plan: Plan,
        policy: FailurePolicy,
        performer: BasePerformer | Workers,
        node: str,
    ) -> None:
        """`policy` is that of the Queuetopia. Each queue has its own workers (Honeydew)."""
        self._left = anyio.Event()
        hears = any(queue.dialect.notifies for queue in queues)
        self._ears = Ears(repo.session_dsn, plan.scope, node, self._hear) if hears else None
        self._tables = [
            Table(repo, queue, plan.scope, alone_suspended=plan.per_queue_suspension) for queue in queues
        ]
        self._loops = [
            TableLoop(table, plan, _policy_of(table.queue, policy), performer, self._ears, node)
            for table in self._tables
        ]

    @property
    def are_all_there_is(self) -> bool:
        """Whether their database can hold no other jobs."""
        return bool(self._tables) and not self._tables[0].queue.dialect.has_jobs

    async def check(self) -> None:
        """Raise NotMigrated for a table that is no queue. A database that is away is waited for later."""
        for table in self._tables:
            try:
                await table.prepare()
            except (DatabaseUnavailable, TimeoutError) as error:
                log.warning("database_unavailable", queue=table.queue.queue, error=str(error))

    async def run(self) -> None:
        """Until `leave`, and all that ran is written."""
        try:
            await self._run()
        finally:
            self._left.set()

    async def _run(self) -> None:
        async with anyio.create_task_group() as tasks:
            if self._ears is not None:
                tasks.start_soon(self._ears.listen_for_ever, name="ears")
                await self._ears.tried()
            async with anyio.create_task_group() as loops:
                for loop in self._loops:
                    loops.start_soon(loop.run, name=f"table queue {loop.queue.queue}")
            tasks.cancel_scope.cancel()

    async def end(self) -> None:
        """Claim nothing more, and wait until all that ran is written."""
        self.leave()
        await self._left.wait()

    def leave(self) -> None:
        """Claim nothing more."""
        for loop in self._loops:
            loop.leave()

    def interrupt(self) -> None:
        """Cancel what runs; it runs again, and first."""
        for loop in self._loops:
            loop.interrupt()

    def give_up(self) -> None:
        """Go without what cannot be written."""
        for loop in self._loops:
            loop.give_up()

    def wake(self) -> None:
        """Look now."""
        self._hear(None)

    def _hear(self, identity: str | None) -> None:
        for loop in self._loops:
            if identity in (None, loop.queue.names.identity):
                loop.ring()


def _policy_of(queue: TableQueue, policy: FailurePolicy) -> FailurePolicy:
    """What follows a failure: by the queue's own mode, else the Queuetopia's. A row never blocks others."""
    mode = queue.failure_mode or policy.modes.get(queue.queue, policy.mode)
    return replace(policy, on_exhausted="abandon", mode=mode, modes={})
