"""Does a job ever wait that was inserted, and committed late, while the node fell asleep?

A node that falls asleep as often as it can, beside transactions that stay open for up to 200 ms between
insert and commit. A wake-up that is lost would cost until `poll_interval`, a minute.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from benchmarks import scale
from benchmarks.figures import Figure, latencies
from benchmarks.server import Server, connected
from pgqueuetopia import Job, Performer, Queuetopia, Repo
from pgqueuetopia.node import scheduler
from tests.support import eventually

SCOPE = "Waking"
JOBS = scale.count(1_000)
CREATORS = 3
# In seconds.
OPEN = 0.2
BETWEEN = 0.05


class Started(Performer):
    """Notes when each job was started."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    async def perform(self, job: Job) -> None:
        self.at[job.id] = time.monotonic()


@contextmanager
def _no_linger() -> Iterator[None]:
    """A node sleeps as soon as it has nothing to do."""
    before, scheduler.LINGER = scheduler.LINGER, 0.0
    try:
        yield
    finally:
        scheduler.LINGER = before


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """From each commit to the start of its job."""
    performer = Started()
    committed: dict[int, float] = {}
    tell(f"{JOBS} transactions, each open for 0 to {OPEN:g} s")
    async with server.database() as dsn:
        app = Queuetopia(repo=Repo(dsn), performer=performer, scope=SCOPE)
        with _no_linger():
            async with app.running():
                async with anyio.create_task_group() as tasks:
                    for number in range(CREATORS):
                        tasks.start_soon(_create, app, dsn, number, committed)
                await eventually(lambda: len(performer.at) == len(committed), within=90)
        await app.close()
    waits = [max(performer.at[job] - at, 0.0) for job, at in committed.items()]
    return [latencies("falling asleep all the time: from a late commit to the start of its job", waits)]


async def _create(app: Queuetopia, dsn: str, number: int, committed: dict[int, float]) -> None:
    async with connected(dsn) as connection:
        for job in range(JOBS // CREATORS):
            async with connection.transaction():
                created = await app.create_job(f"q{number}_{job % 10}", "nothing", conn=connection)
                await anyio.sleep(random.uniform(0, OPEN))
            committed[created.id] = time.monotonic()
            await anyio.sleep(random.uniform(0, BETWEEN))
