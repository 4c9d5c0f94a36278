"""What the tests share: waiting for a condition, and performers that remember."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from pgqueuetopia import Job, Performer, Queuetopia, Repo, Workers

DEADLINE = 20
# Those of this database: tests that run beside these hold locks of the same keys in theirs.
ADVISORY_LOCKS = """(
  select l.* from pg_locks l join pg_database d on d.oid = l.database
  where l.locktype = 'advisory' and d.datname = current_database()
) l"""


async def eventually(holds: Callable[[], Awaitable[object] | object], *, within: float = DEADLINE) -> None:
    """Wait until a condition holds; TimeoutError after the deadline."""
    with anyio.fail_after(within):
        while True:
            value = holds()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return
            await anyio.sleep(0.005)


class Recorder(Performer):
    """Remembers what it performed, in order; `answer` decides what becomes of a job."""

    def __init__(self, answer: Callable[[Job], Any] = lambda job: None) -> None:
        self.answer = answer
        self.performed: list[Job] = []
        self.failed: list[Job] = []

    async def perform(self, job: Job) -> Any:
        self.performed.append(job)
        value = self.answer(job)
        return await value if isinstance(value, Awaitable) else value

    async def handle_failed_job(self, job: Job) -> None:
        self.failed.append(job)

    @property
    def ids(self) -> list[int]:
        return [job.id for job in self.performed]


@asynccontextmanager
async def an_app(
    dsn: str, performer: Performer | Workers | None = None, **options: Any
) -> AsyncIterator[Queuetopia]:
    """A Queuetopia on the test's database, closed at the end."""
    app = Queuetopia(**{"repo": Repo(dsn), "performer": performer, "scope": "Test", **options})
    try:
        yield app
    finally:
        await app.close()
