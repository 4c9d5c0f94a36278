"""What became of jobs, for those who wait for it: one connection, however many wait."""

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass

import anyio
import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.db.driver import Connection, translated
from pgqueuetopia.db.listening import listen
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.errors import DatabaseUnavailable, QueuetopiaError
from pgqueuetopia.outcome import Err, Moved, Ok, Reply, Retrying

CHANNEL = "pgqueuetopia_replies"
SERVER_SETTINGS = {"enable_seqscan": "off", "jit": "off"}
# In seconds: how long the connection is kept when nobody waits, and how often it is asked all the same.
LINGER = 10.0
LOOK_EVERY = 30.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
# Of how many jobs it is remembered which reply was read last.
MOST_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """Somebody who waits for a job's next reply."""

    job: int
    after: int
    found: "asyncio.Future[tuple[int, Reply]]"


class Replies:
    """The replies of jobs, in their order, each once for each of these."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._asking: dict[int, set[Asking]] = {}
        self._due: set[int] = set()
        self._rung = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._read: OrderedDict[int, int] = OrderedDict()

    async def next(self, job: int, timeout: float) -> Reply | None:
        """The reply after the one that was read last, once it is there; None after `timeout` seconds."""
        if timeout <= 0:
            return await self._there(job)
        asking = Asking(job, self._read.get(job, 0), asyncio.get_running_loop().create_future())
        self._asking.setdefault(job, set()).add(asking)
        self._ring(job)
        try:
            with anyio.move_on_after(timeout):
                number, reply = await asking.found
                self._remember(job, number)
                return reply
        finally:
            self._forget(asking)
        return None

    async def _there(self, job: int) -> Reply | None:
        """The next reply if it is there: to listen for it would take longer than somebody will wait."""
        async with self._repo.connection() as connection:
            for row in await connection.fetch(SQL["replies"], [job], [self._read.get(job, 0)]):
                self._remember(job, row["id"])
                return _reply_of(row)
        return None

    async def close(self) -> None:
        """Drop the connection; who still waits is told so by DatabaseUnavailable."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    def _ring(self, job: int) -> None:
        if self._listening is None:
            # An event belongs to the loop that waits for it first.
            self._rung = asyncio.Event()
            self._listening = asyncio.create_task(self._listen(), name="pgqueuetopia replies")
        self._due.add(job)
        self._rung.set()

    def _remember(self, job: int, number: int) -> None:
        self._read[job] = number
        self._read.move_to_end(job)
        if len(self._read) > MOST_REMEMBERED:
            self._read.popitem(last=False)

    def _forget(self, asking: Asking) -> None:
        others = self._asking[asking.job]
        others.discard(asking)
        if not others:
            del self._asking[asking.job]

    async def _listen(self) -> None:
        """While somebody waits: hear, and read; connect again after a loss."""
        pause = FIRST_PAUSE
        try:
            while self._asking:
                try:
                    await self._listen_once()
                except DatabaseUnavailable:
                    await anyio.sleep(pause * random.uniform(0.5, 1.5))
                    pause = min(pause * 2, LONGEST_PAUSE)
        except QueuetopiaError as error:
            self._tell(error)
        finally:
            self._listening = None
            self._tell(DatabaseUnavailable("The Queuetopia was closed while a reply was waited for."))

    async def _listen_once(self) -> None:
        connection = await self._connect()
        try:
            # What was told while nobody listened is read now.
            self._due |= self._asking.keys()
            while await self._is_wanted():
                self._rung.clear()
                await self._look(connection)
        finally:
            connection.terminate()

    async def _is_wanted(self) -> bool:
        """Wait for news; False when nobody has waited for a while."""
        with anyio.move_on_after(LOOK_EVERY if self._asking else LINGER):
            await self._rung.wait()
            return True
        self._due |= self._asking.keys()
        return bool(self._asking)

    async def _connect(self) -> Connection:
        connection = await listen(
            self._repo.session_dsn,
            "pgqueuetopia-replies",
            {CHANNEL: lambda job: self._hear(int(job))},
            self._rung.set,
            SERVER_SETTINGS,
        )
        self._rung.set()
        return connection

    def _hear(self, job: int) -> None:
        if job in self._asking:
            self._due.add(job)
            self._rung.set()

    async def _look(self, connection: Connection) -> None:
        """Read the next replies of all jobs that somebody asks for, in one statement."""
        due, self._due = self._due, set()
        asking = [one for job in due for one in self._asking.get(job, ())]
        with translated():
            found = await connection.fetch(
                SQL["replies"], [one.job for one in asking], [one.after for one in asking]
            )
        replies = {(row["job"], row["after"]): row for row in found}
        for one in asking:
            row = replies.get((one.job, one.after))
            if row is not None and not one.found.done():
                one.found.set_result((row["id"], _reply_of(row)))

    def _tell(self, error: Exception) -> None:
        for asking in [one for askings in self._asking.values() for one in askings]:
            if not asking.found.done():
                asking.found.set_exception(error)


def _reply_of(row: asyncpg.Record) -> Reply:
    value = None if row["value"] is None else rows.loaded(row["value"])
    match row["kind"]:
        case "ok":
            return Ok(value)
        case "retrying":
            return Retrying(str(value))
        case "moved":
            return Moved(str(value))
        case _:
            return Err(value)
