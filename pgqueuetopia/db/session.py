"""A node's one direct connection: it listens, holds the locks and calls step(); its death is the node's."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from pgqueuetopia.db.arrays import numbers, texts, times
from pgqueuetopia.db.deadlines import Deadlines
from pgqueuetopia.db.driver import (
    CONNECT_TIMEOUT,
    NEEDS_DIRECT_CONNECTION,
    Connection,
    keep_alive,
    translated,
)
from pgqueuetopia.db.hearing import Hearing, Told
from pgqueuetopia.db.known import Known
from pgqueuetopia.db.listening import hear
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.db.step import (
    NO_LINES,
    Ended,
    Question,
    Stepped,
    queue_columns,
    settlement_columns,
    stepped_of,
)
from pgqueuetopia.errors import DatabaseUnavailable, Misconfigured

# Prepared when a session opens: a partition between a statement's preparation and its execution would leave
# the server waiting for the rest, a state in which none of its timeouts but TCP's counts.
STATEMENTS = (
    "announce_node",
    "step",
    "started",
    "fall_asleep",
    "wake_up",
    "ping",
    "list_configs",
    "end_stalled",
)

SERVER_SETTINGS = {
    # Locking first and reading in a later statement needs a new snapshot for each statement.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "lock_timeout": "200ms",
    # The plans of step() walk indexes from a few rows, whatever the statistics say.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "enable_memoize": "off",
    "enable_sort": "off",
    "jit": "off",
}


class Session:
    """One node on the database. Any error means that the session, and every lock it held, is lost."""

    def __init__(
        self,
        connection: Connection,
        scope: str,
        node: str,
        deadlines: Deadlines,
        told: Told,
    ) -> None:
        self.deadlines = deadlines
        self._patience = deadlines.heartbeat + deadlines.client
        self.scope = scope
        self.node = node
        self._connection = connection
        self._statements: dict[str, PreparedStatement] = {}
        # How many steps have claimed jobs of which the server does not know yet that they have been started.
        self._unstarted = 0
        self._least_claim = 0
        # Where the scan of the run queue goes on: priorities, and a time for each.
        self._front: tuple[list[int] | None, list[datetime] | None] = None, None
        self._topic_fronts: str | None = None
        self.known = Known()
        self.sleeping = False
        self.lost = False
        self._hearing = Hearing(scope, f"ping {node}", told)
        self._heard_at = 0.0

    @classmethod
    async def open(
        cls,
        dsn: str | None,
        scope: str,
        node: str,
        told: Told,
        *,
        timeout: float = 15,
        workers: int | None = None,
    ) -> "Session":
        """Connect, listen, and be seen by the other nodes.

        After `timeout` seconds without a sign of life the server drops the session, and its locks with it.
        `workers` is shown by status. Raises DatabaseUnavailable, and Misconfigured where a pooler stands
        between.
        """
        deadlines = Deadlines(timeout)
        # The other nodes read from it when to give this one up (end_stalled), and status the workers.
        parts = ["pgqueuetopia", node, f"{deadlines.server:g}", *([str(workers)] if workers else [])]
        name = {"application_name": " ".join(parts)}
        # anyio's deadline, for it is not lost where a cancellation is swallowed on the way.
        with translated(), anyio.fail_after(CONNECT_TIMEOUT):
            connection = await asyncpg.connect(
                dsn,
                command_timeout=deadlines.client,
                server_settings=SERVER_SETTINGS | deadlines.settings() | name,
            )
        session = cls(connection, scope, node, deadlines, told)
        try:
            await session._prepare()
        except BaseException:
            session.abort()
            raise
        connection.add_termination_listener(lambda _: session._hear_end(told))
        return session

    async def _prepare(self) -> None:
        keep_alive(self._connection, timeout=self.deadlines.server)
        with translated():
            [[backend]] = await self._connection.fetch("select pg_backend_pid()")
            if backend != self._connection.get_server_pid():
                raise Misconfigured(NEEDS_DIRECT_CONNECTION)
            await hear(self._connection, self._hearing.channels())
            for name in STATEMENTS:
                self._statements[name] = await self._connection.prepare(SQL[name])
        [row] = await self._fetch("announce_node", self.scope)
        self._least_claim = row["least_claim"]
        await anyio.sleep(row["calm_in"])
        # A step that claims nothing: what is missing, in the database or in our rights, is told now.
        await self.step(Question())

    def _hear_end(self, told: Told) -> None:
        self.lost = True
        told.lost()

    async def step(self, question: Question) -> Stepped:
        """Persist what ended, and claim the next jobs, for all queues, in one round trip."""
        lasts = question.lasts()
        [[answer]] = await self._fetch("step", self.scope, self.node, self._asked(question, lasts))
        if answer["priorities"]:
            self._front = answer["priorities"], answer["fronts"]
        self._topic_fronts = answer["topic_fronts"]
        stepped = stepped_of(answer, self.scope, self.node)
        self._unstarted = question.starting + bool(stepped.claimed)
        self.known.hear(answer["drags"])
        if self.known.matters:
            self.known.learn(lasts, stepped.queues(), stepped.snapshot)
        return stepped

    def _asked(self, question: Question, lasts: Mapping[str, Ended]) -> tuple[Any, ...]:
        """A question, with what this session adds to it, as a pgqueuetopia.question (0007_step.up.sql)."""
        ids, claims, *settlements, run_times = settlement_columns(
            question.ended, self.node, keep=question.keep
        )
        return (
            numbers(ids),
            numbers(claims),
            *[column or None for column in settlements],
            numbers(run_times),
            *queue_columns(lasts.values()),
            texts(question.yielding),
            question.size,
            numbers(question.begun),
            numbers(question.begun.values()),
            texts(question.running),
            times(question.running.values()),
            question.avoid,
            question.room,
            question.rescue,
            self.sleeping,
            question.keep,
            question.queues_suspended,
            self._unstarted - question.starting,
            self._least_claim,
            question.careful,
            *((None, None) if question.everything else self._front),
            self._topic_fronts if question.lines else None,
            *self.known.columns(),
            *(question.lines.columns() if question.lines else NO_LINES),
        )

    async def started(self) -> None:
        """The jobs that the steps before have claimed have been started."""
        if self._unstarted:
            steps, self._unstarted = self._unstarted, 0
            await self._fetch("started", self.scope, steps)

    async def fall_asleep(self) -> tuple[int, bool]:
        """Have creators notify from now on. Returns the horizon, and whether no other node runs.

        What began before the horizon may not notify: look until step's own horizon has passed it.
        """
        # Before the answer: what we have locked may not be taken for nobody's (step).
        self.sleeping = True
        [row] = await self._fetch("fall_asleep", self.scope)
        return row["horizon"], row["alone"]

    async def wake_up(self) -> None:
        """Have creators notify no longer."""
        if self.sleeping:
            self.sleeping = False
            await self._fetch("wake_up", self.scope)

    async def ping(self) -> None:
        """Is the session alive, and do notifications arrive? Raises DatabaseUnavailable if not."""
        self._hearing.answered = False
        await self._fetch("ping", self._hearing.ping)
        # What the server notifies comes before its answer, and is heard in the next turn of the loop.
        await anyio.lowlevel.checkpoint()
        if not self._hearing.answered:
            raise DatabaseUnavailable("Notifications do not arrive any longer.")

    async def end_stalled(self) -> int:
        """End sessions of other nodes that the server waits for in vain; returns how many."""
        return len(await self._fetch("end_stalled"))

    async def configs(self) -> list[tuple[str, str, str]]:
        """The configs that speak to this scope, as (scope, key, value)."""
        return [
            (row["scope"], row["key"], row["value"]) for row in await self._fetch("list_configs", self.scope)
        ]

    async def close(self) -> None:
        """Leave: the locks are free when this returns."""
        with anyio.move_on_after(2):
            await self._connection.close()
        self.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._connection.terminate()

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        with translated():
            if self._connection.is_closed():
                raise DatabaseUnavailable("The node's session is closed.")
            asked_at = time.monotonic()
            answer: list[asyncpg.Record] = await self._statements[statement].fetch(*arguments)
        # Not the time of the answer: it may have lain there while this process was frozen.
        self._heard_at = asked_at
        return answer

    @property
    def is_fresh(self) -> bool:
        """Whether the server still keeps our locks, for all we know: it was heard of not long ago."""
        # Not the loop's time: uvloop's stands still within a turn of the loop.
        silence = time.monotonic() - self._heard_at
        return not self.lost and silence < self._patience
