"""A node's one direct connection: it listens, holds the locks and calls step(); its death is the node's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.db.driver import (
    CONNECT_TIMEOUT,
    NEEDS_DIRECT_CONNECTION,
    Connection,
    keep_alive,
    translated,
)
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.errors import DatabaseUnavailable, Misconfigured
from pgqueuetopia.job import Job
from pgqueuetopia.outcome import Settlement

JOBS_CHANNEL = "pgqueuetopia_jobs"
CONFIGS_CHANNEL = "pgqueuetopia_configs"

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


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When each side gives the other up, in seconds, from how long a node may keep its queues unheard.

    A node that has heard nothing for `heartbeat` asks, and gives up `client` later: it stops its jobs
    before the server, after `server`, gives up on the node and hands its locks on.
    """

    server: float

    @property
    def heartbeat(self) -> float:
        """How often a node that is idle asks for a sign of life."""
        return self.server / 4

    @property
    def client(self) -> float:
        """How long a node waits for an answer."""
        return self.server / 2

    def settings(self) -> dict[str, str]:
        """The server's side of it."""
        milliseconds = str(int(self.server * 1000))
        return {
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "idle_session_timeout": milliseconds,
            "tcp_user_timeout": milliseconds,
            "tcp_keepalives_idle": str(max(1, int(self.server / 3))),
            "tcp_keepalives_interval": str(max(1, int(self.server / 6))),
            "tcp_keepalives_count": "3",
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """A held queue whose job has ended, to be settled and looked at again.

    `job` is None where a held queue is only to be looked at. `after` is where the queue was, if the job
    is done with: the scheduled_at and id of that job. `slice_since` is when the queue's slice began, by the
    node's clock.
    """

    queue: str
    job: Job | None = None
    settlement: Settlement | None = None
    result: str | None = None
    after: tuple[datetime, int] | None = None
    slice_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did, and when to look again."""

    claimed: list[Job]
    saved: frozenset[int]
    busy: frozenset[int]
    again: list[str]
    suspended: bool
    held_up: bool
    careful: bool
    crowded: bool
    next_ready_in: float | None
    horizon: int


class Session:
    """One node on the database. Any error means that the session, and every lock it held, is lost."""

    def __init__(self, connection: Connection, scope: str, node: str, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.scope = scope
        self.node = node
        self._connection = connection
        self._starting = False
        self.sleeping = False
        self.lost = False
        self._ping = f"ping {node}"
        self._answered = False

    @classmethod
    async def open(
        cls,
        dsn: str | None,
        scope: str,
        node: str,
        *,
        on_jobs: Callable[[], None],
        on_join: Callable[[], None],
        on_config: Callable[[str], None],
        on_lost: Callable[[], None],
        timeout: float = 15,
    ) -> "Session":
        """Connect, listen, and be seen by the other nodes.

        After `timeout` seconds without a sign of life the server drops the session, and its locks with it.
        The callbacks ring when jobs came in, when another node joined, when a config of the scope changed
        (with its key), and when the session is lost. Raises DatabaseUnavailable, and Misconfigured where a
        pooler stands between.
        """
        deadlines = Deadlines(timeout)
        name = {"application_name": f"pgqueuetopia {node}"}
        # anyio's deadline, for it is not lost where a cancellation is swallowed on the way.
        with translated(), anyio.fail_after(CONNECT_TIMEOUT):
            connection = await asyncpg.connect(
                dsn,
                command_timeout=deadlines.client,
                server_settings=SERVER_SETTINGS | deadlines.settings() | name,
            )
        session = cls(connection, scope, node, deadlines)
        try:
            await session._prepare(on_jobs, on_join, on_config)
        except BaseException:
            session.abort()
            raise
        connection.add_termination_listener(lambda _: session._hear_end(on_lost))
        return session

    async def _prepare(
        self,
        on_jobs: Callable[[], None],
        on_join: Callable[[], None],
        on_config: Callable[[str], None],
    ) -> None:
        keep_alive(self._connection, timeout=self.deadlines.server)
        with translated():
            [[backend]] = await self._connection.fetch("select pg_backend_pid()")
            if backend != self._connection.get_server_pid():
                raise Misconfigured(NEEDS_DIRECT_CONNECTION)
            await self._connection.add_listener(
                JOBS_CHANNEL, lambda *heard: self._hear_jobs(str(heard[-1]), on_jobs, on_join)
            )
            await self._connection.add_listener(
                CONFIGS_CHANNEL, lambda *heard: self._hear_config(str(heard[-1]), on_config)
            )
        await self._fetch("announce_node", self.scope)
        # A step that claims nothing: what is missing, in the database or in our rights, is told now.
        await self.step([], [], [], [], 0, rescue=False, keep=True)

    def _hear_end(self, on_lost: Callable[[], None]) -> None:
        self.lost = True
        on_lost()

    def _hear_jobs(self, payload: str, on_jobs: Callable[[], None], on_join: Callable[[], None]) -> None:
        if payload == self._ping:
            self._answered = True
        elif payload == f"joined {self.scope}":
            on_join()
        elif payload == self.scope:
            on_jobs()

    def _hear_config(self, payload: str, on_config: Callable[[str], None]) -> None:
        scope, key = json.loads(payload)
        if scope in ("*", self.scope):
            on_config(key)

    async def step(
        self,
        ended: Sequence[Ended],
        slice_over: Sequence[bool],
        running: Sequence[str],
        avoid: Sequence[str],
        room: int,
        *,
        rescue: bool,
        keep: bool,
        started: bool = True,
        careful: bool = False,
    ) -> Stepped:
        """Persist what ended and claim the next jobs, for all queues of this node, in one round trip.

        Unless everything that was claimed before has `started`, `room` must be 0. A `careful` step passes
        over rows that somebody has locked; another one waits for them a little, and then becomes careful.
        """
        [row] = await self._fetch(
            "step",
            self.scope,
            self.node,
            *settlement_columns(ended, self.node),
            [one.queue for one in ended],
            [one.after and one.after[0] for one in ended],
            [one.after and one.after[1] for one in ended],
            slice_over,
            running,
            avoid,
            room,
            rescue,
            keep,
            self._starting and started,
            careful,
        )
        stepped = _stepped(row, self.scope)
        self._starting = bool(stepped.claimed) or (self._starting and not started)
        return stepped

    async def started(self) -> None:
        """The jobs that the last step claimed have been started."""
        if self._starting:
            self._starting = False
            await self._fetch("started", self.scope)

    async def fall_asleep(self) -> tuple[int, bool]:
        """Have creators notify from now on. Returns the horizon, and whether no other node runs.

        What began before the horizon may not notify: look until step's own horizon has passed it.
        """
        [row] = await self._fetch("fall_asleep", self.scope)
        self.sleeping = True
        return row["horizon"], row["alone"]

    async def wake_up(self) -> None:
        """Have creators notify no longer."""
        if self.sleeping:
            self.sleeping = False
            await self._fetch("wake_up", self.scope)

    async def ping(self) -> None:
        """Is the session alive, and do notifications arrive? Raises DatabaseUnavailable if not."""
        self._answered = False
        await self._fetch("ping", self._ping)
        # What the server notifies comes before its answer, and is heard in the next turn of the loop.
        await anyio.lowlevel.checkpoint()
        if not self._answered:
            raise DatabaseUnavailable("Notifications do not arrive any longer.")

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
            return await self._connection.fetch(SQL[statement], *arguments)


def _stepped(row: asyncpg.Record, scope: str) -> Stepped:
    return Stepped(
        claimed=[rows.job_of(job, scope=scope, state="executing") for job in row["claimed"]],
        saved=frozenset(row["saved"]),
        busy=frozenset(row["busy"]),
        again=row["again"],
        suspended=row["suspended"],
        held_up=row["held_up"],
        careful=row["careful"],
        crowded=row["crowded"],
        next_ready_in=row["next_ready_in"],
        horizon=row["horizon"],
    )


def settlement_columns(ended: Sequence[Ended], node: str) -> tuple[list[Any], ...]:
    """What ended as one array for each column: id, claim, outcome, delay, spent, error, result."""
    return (
        [one.job and one.job.id for one in ended],
        [one.job and one.job.claim for one in ended],
        [one.settlement and one.settlement.outcome for one in ended],
        [one.settlement and one.settlement.delay for one in ended],
        [one.settlement and one.settlement.attempt_spent for one in ended],
        [_error(one, node) for one in ended],
        [one.result for one in ended],
    )


def _error(one: Ended, node: str) -> str | None:
    if one.job is None or one.settlement is None:
        return None
    return rows.error_entry(one.settlement.failure, one.job.attempts, node)
