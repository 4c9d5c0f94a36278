"""A node's ears for its table queues: one direct connection that listens. Without it a node polls."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import asyncpg
import structlog

from pgqueuetopia.db.driver import CONNECT_TIMEOUT, NEEDS_DIRECT_CONNECTION, Connection, translated
from pgqueuetopia.db.hearing import CONFIGS_CHANNEL
from pgqueuetopia.db.listening import hear, listen
from pgqueuetopia.errors import Misconfigured, QueuetopiaError
from pgqueuetopia.table.names import Names
from pgqueuetopia.table.schema import CHANNEL, sleeping

log = structlog.get_logger("pgqueuetopia")

# In seconds.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
HEARTBEAT = 5.0

# The lock comes first, the horizon later, in a statement of its own: see pgqueuetopia.fall_asleep.
HORIZON = "select pg_current_xact_id()::text::bigint as horizon"
PASSED = "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $1::bigint as passed"
MAY_START = "select pgqueuetopia.may_start($1::text) as may_start"
STARTED = "select pgqueuetopia.started($1::text, 1)"


@dataclass(slots=True)
class Sleep:
    """A queue asleep. Who began before the horizon may not notify; once it is passed, they all have ended."""

    horizon: int
    passed: bool = False


class Ears:
    """What a node hears of inserts and configs, and what it holds so that it is told.

    None of its methods raises for a lost connection: it hears nothing then, and connects again.
    """

    def __init__(self, dsn: str | None, scope: str, node: str, on_ring: Callable[[str | None], None]) -> None:
        """`on_ring` is called with the identity of the queue whose table has news; None: all may have."""
        self._dsn = dsn
        self._scope = scope
        self._node = node
        self._on_ring = on_ring
        self._connection: Connection | None = None
        self._lost = anyio.Event()
        self._turn = anyio.Lock()
        self._sleeps: dict[str, Sleep] = {}
        self._tried = anyio.Event()

    async def listen_for_ever(self) -> None:
        """Connect, and again whenever the connection is lost, until cancelled."""
        pause, told = FIRST_PAUSE, ""
        try:
            while True:
                try:
                    await self._listen()
                    pause, told = FIRST_PAUSE, ""
                    await self._until_lost()
                except Misconfigured:
                    log.info("table_queues_poll", scope=self._scope, hint=NEEDS_DIRECT_CONNECTION)
                    return
                except (QueuetopiaError, TimeoutError) as error:
                    if str(error) != told:
                        told = str(error)
                        log.warning("table_queues_deaf", scope=self._scope, error=told)
                self._lose()
                await anyio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._lose()

    async def tried(self) -> None:
        """Wait until it hears, or could not connect: a transaction that suspends waits only for ears."""
        with anyio.move_on_after(CONNECT_TIMEOUT):
            await self._tried.wait()

    async def may_start(self) -> bool:
        """False while a transaction that suspends is under way; else it waits until `started`."""
        found = await self._ask(MAY_START, self._scope)
        return found is None or bool(found[0]["may_start"])

    async def started(self) -> None:
        """What was claimed since `may_start` has been started."""
        await self._ask(STARTED, self._scope)

    async def fall_asleep(self, names: Names) -> bool:
        """Have inserts notify from now on; False where that cannot be, or is so already."""
        if names.identity in self._sleeps:
            return False
        if await self._ask(f"select pg_advisory_lock_shared({sleeping(names)})") is None:
            return False
        if (found := await self._ask(HORIZON)) is None:
            return False
        self._sleeps[names.identity] = Sleep(found[0]["horizon"])
        return True

    async def wake_up(self, names: Names) -> None:
        """Have inserts notify no longer."""
        if self._sleeps.pop(names.identity, None) is not None:
            await self._ask(f"select pg_advisory_unlock_shared({sleeping(names)})")

    async def may_miss_some(self, names: Names) -> bool:
        """Whether an insert may be under way that does not notify: ask before a look, and look again soon."""
        sleep = self._sleeps.get(names.identity)
        if sleep is None or sleep.passed:
            return False
        found = await self._ask(PASSED, sleep.horizon)
        sleep.passed = bool(found and found[0]["passed"])
        return not sleep.passed

    async def _listen(self) -> None:
        try:
            await self._connect()
        finally:
            self._tried.set()

    async def _connect(self) -> None:
        self._lost = lost = anyio.Event()
        channels = {CHANNEL: self._on_ring, CONFIGS_CHANNEL: lambda _: self._on_ring(None)}
        name = f"pgqueuetopia-tables {self._node}"
        connection = await listen(self._dsn, name, {}, lost.set)
        try:
            # Before it listens: a pooler's connection would go on listening, for somebody else.
            await _check(connection)
            await hear(connection, channels)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._on_ring(None)

    async def _until_lost(self) -> None:
        """Ask now and then whether the connection is alive, for it would not be told."""
        while not self._lost.is_set():
            with anyio.move_on_after(HEARTBEAT):
                await self._lost.wait()
            await self._ask("select 1")

    async def _ask(self, sql: str, *arguments: Any) -> list[asyncpg.Record] | None:
        """The answer; None without a connection."""
        async with self._turn:
            connection = self._connection
            if connection is None or self._lost.is_set():
                return None
            try:
                with translated():
                    answer: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
                    return answer
            except (QueuetopiaError, TimeoutError) as error:
                log.warning("table_queues_deaf", scope=self._scope, error=str(error))
                self._lost.set()
                return None

    def _lose(self) -> None:
        """Drop the connection, and with it all that is held; whoever relied on it looks again."""
        connection, self._connection = self._connection, None
        self._sleeps.clear()
        self._lost.set()
        if connection is not None:
            connection.terminate()
            self._on_ring(None)


async def _check(connection: Connection) -> None:
    """Raise Misconfigured where a pooler stands between: it would hold nothing for us."""
    with translated():
        [[backend]] = await connection.fetch("select pg_backend_pid()")
    if backend != connection.get_server_pid():
        raise Misconfigured(NEEDS_DIRECT_CONNECTION)
