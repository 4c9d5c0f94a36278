"""A node of a table queue as a process: python -m tests.table.node DSN JOURNAL, until it is told to stop."""

import sys
from pathlib import Path

import anyio

from pgqueuetopia import Job, Performer, Queuetopia, Repo, TableQueue
from tests.acceptance.node import Journal

STALE_TIMEOUT = 2.0
QUEUE = TableQueue("classify", table="photos", stale_timeout=STALE_TIMEOUT, concurrency=20)


class Journalist(Performer):
    """Writes down when it works on what."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def perform(self, job: Job) -> None:
        with self._journal.run(job):
            await anyio.sleep(0.005)


async def main(dsn: str, journal: Path) -> None:
    app = Queuetopia(
        repo=Repo(dsn), performer=Journalist(Journal(journal)), scope="Test", table_queues=[QUEUE]
    )
    await app.run()
    await app.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
