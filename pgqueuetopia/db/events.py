"""Events, for those who listen: one connection of a Queuetopia, however many do."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Self

import anyio
import structlog

from pgqueuetopia.db.driver import Connection, translated
from pgqueuetopia.db.listening import listen
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.event import Event, events_of

log = structlog.get_logger("pgqueuetopia")

CHANNEL = "pgqueuetopia_events"
# To begin to wait is to set a sequence: where a role reads only by default, too.
SERVER_SETTINGS = {"default_transaction_read_only": "off"}
# In seconds.
LOOK_EVERY = 15.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class Events(AsyncIterator[Event]):
    """What one subscriber has not read yet: the newest `most` events. `lost` counts those that were dropped.

    `interruptions` counts the lost connections: what happened meanwhile was not told.
    """

    def __init__(self, queue: str | None, most: int) -> None:
        self._queue = queue
        self._most = most
        self._unread: deque[Event] = deque(maxlen=most)
        self._rung = asyncio.Event()
        self._ended = False
        self.lost = 0
        self.interruptions = 0

    def put(self, told: Sequence[Event]) -> None:
        """Keep events, in place of the oldest where there is no room."""
        wanted = told if self._queue is None else [one for one in told if one.queue in (self._queue, None)]
        if wanted:
            self.lost += max(0, len(self._unread) + len(wanted) - self._most)
            self._unread.extend(wanted)
            self._rung.set()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event, once there is one; the end, once the Queuetopia was closed."""
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._rung.clear()
            await self._rung.wait()
        return self._unread.popleft()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._rung.set()


class Broadcast:
    """Hands events to all who subscribed; connected as long as there are any."""

    def __init__(self, repo: Repo, scope: str) -> None:
        self._repo = repo
        self._scope = scope
        self._subscribers: set[Events] = set()
        self._listening: asyncio.Task[None] | None = None

    async def subscribe(self, queue: str | None, most: int) -> Events:
        """Whatever is committed after this has returned is told. Raises DatabaseUnavailable."""
        events = Events(queue, most)
        self._subscribers.add(events)
        try:
            if self._listening is None:
                connected = await self._connect()
                if self._listening is None:
                    self._listening = asyncio.create_task(
                        self._listen(*connected), name="pgqueuetopia events"
                    )
                else:
                    connected[0].terminate()
        except BaseException:
            self._subscribers.discard(events)
            raise
        return events

    async def unsubscribe(self, events: Events) -> None:
        """The last one ends the connection."""
        self._subscribers.discard(events)
        if not self._subscribers:
            await self.close()

    async def close(self) -> None:
        """Drop the connection; for those who still listen it is the end."""
        for events in self._subscribers:
            events.end()
        self._subscribers.clear()
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, connection: Connection, lost: anyio.Event) -> None:
        """Stay connected; connect again after a loss."""
        while True:
            try:
                await _until_lost(connection, lost)
            finally:
                connection.terminate()
            connection, lost = await self._connected_again()

    async def _connected_again(self) -> tuple[Connection, anyio.Event]:
        pause = FIRST_PAUSE
        while True:
            try:
                connected = await self._connect()
                for events in self._subscribers:
                    events.interruptions += 1
                return connected
            except QueuetopiaError as error:
                log.warning("events_interrupted", error=str(error))
                await anyio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect(self) -> tuple[Connection, anyio.Event]:
        """A connection that is told of events, and whether it is lost."""
        lost = anyio.Event()
        connection = await listen(
            self._repo.session_dsn, "pgqueuetopia-events", {CHANNEL: self._hear}, lost.set, SERVER_SETTINGS
        )
        try:
            with translated():
                await connection.fetch(SQL["listen_to_events"], self._scope)
        except BaseException:
            connection.terminate()
            raise
        return connection, lost

    def _hear(self, payload: str) -> None:
        told = events_of(payload)
        # A notification tells of one scope.
        if told[0].scope in (self._scope, "*"):
            for events in self._subscribers:
                events.put(told)


async def _until_lost(connection: Connection, lost: anyio.Event) -> None:
    """Ask now and then whether the connection is alive."""
    try:
        while not lost.is_set():
            with anyio.move_on_after(LOOK_EVERY):
                await lost.wait()
            with translated():
                await connection.fetch("select")
    except QueuetopiaError:
        return
