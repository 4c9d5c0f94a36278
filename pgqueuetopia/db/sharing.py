"""Shared commits: what several tasks of one process create at once travels in one statement."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pgqueuetopia.errors import DatabaseRefused, InvalidJob
from pgqueuetopia.job import Job, JobRow

MOST_JOBS = 1_000
# Of all params in one statement.
MOST_CHARACTERS = 4_000_000

Store = Callable[[Sequence[JobRow]], Awaitable[list[Job]]]


@dataclass(frozen=True, slots=True)
class Creation:
    """One caller's job, and where the caller waits for it."""

    row: JobRow
    stored: "asyncio.Future[Job]"


class SharedCommits:
    """Stores what was asked for while the statement before was under way; nobody waits to be joined."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Creation] = []
        self._sending: asyncio.Task[None] | None = None

    async def create(self, row: JobRow) -> Job:
        """Store one job. Who is cancelled while the job is under way does not take it back."""
        loop = asyncio.get_running_loop()
        if self._sending is not None and self._sending.get_loop() is not loop:
            # Another thread's, or one that was closed over it: nobody there could call us.
            return (await self._store([row]))[0]
        creation = Creation(row, loop.create_future())
        self._waiting.append(creation)
        if self._sending is None:
            # A task of its own: a caller that is cancelled must not take the others' statement along.
            self._sending = asyncio.create_task(self._send_all(), name="pgqueuetopia create_job")
        return await creation.stored

    async def _send_all(self) -> None:
        batch: list[Creation] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                await self._send(batch)
        finally:
            self._sending = None
            # Only where this task is cancelled, with its loop, does anybody still wait.
            for creation in batch + self._waiting:
                creation.stored.cancel()
            self._waiting.clear()

    def _next_batch(self) -> list[Creation]:
        """What waits, as far as one statement should carry it; always something."""
        number = characters = 0
        while number < min(len(self._waiting), MOST_JOBS) and characters < MOST_CHARACTERS:
            characters += len(self._waiting[number].row.params)
            number += 1
        batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return [creation for creation in batch if not creation.stored.done()]

    async def _send(self, batch: Sequence[Creation]) -> None:
        """Store a batch; where the database refuses it each is stored alone, so that only a bad one fails."""
        try:
            jobs = await self._store([creation.row for creation in batch]) if batch else []
        except Exception as error:
            if isinstance(error, InvalidJob | DatabaseRefused) and len(batch) > 1:
                await self._send_apart(batch)
            else:
                _tell(batch, error)
        else:
            for creation, job in zip(batch, jobs, strict=True):
                if not creation.stored.done():
                    creation.stored.set_result(job)

    async def _send_apart(self, batch: Sequence[Creation]) -> None:
        for creation in batch:
            await self._send([creation])


def _tell(batch: Sequence[Creation], error: Exception) -> None:
    for creation in batch:
        if not creation.stored.done():
            creation.stored.set_exception(error)
