"""How long does a job of a rare queue wait beside a flood, where room is scarce?"""

import statistics
from collections.abc import Callable
from datetime import timedelta

import anyio

from benchmarks.figures import Figure
from benchmarks.server import Server, connected
from pgqueuetopia import Job, NewJob, Performer, Queuetopia, Repo, Topic
from tests.support import eventually

FLOOD = 1_000_000
RARE = 50
CONCURRENCY = 10
SECONDS_EACH = 0.01
INSERT = """
insert into pgqueuetopia.jobs (scope, queue, action, topic)
select 'Bench', $1, 'sleep', $2 from generate_series(1, $3)
"""


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The waits of rare jobs, beside nothing, a blocking queue and a topic with a million jobs."""
    figures = []
    for beside, flood, topic in (("nothing", 0, False), ("a queue", FLOOD, False), ("a topic", FLOOD, True)):
        async with server.database() as dsn:
            waits = await waits_beside(dsn, flood, topic=topic)
        of = f" of {flood:,} jobs" if flood else ""
        figures.append(
            Figure(
                f"wait of a rare job beside {beside}{of}",
                f"{statistics.median(waits) * 1000:.0f} ms",
                f"worst {max(waits) * 1000:.0f} ms of {len(waits)}",
            )
        )
        tell(f"{beside}: {figures[-1].median}")
    return figures


async def waits_beside(dsn: str, flood: int, *, topic: bool) -> list[float]:
    """Create a rare job now and then, while one node with little room works on the flood."""
    waited: list[timedelta] = []
    app = Queuetopia(
        repo=Repo(dsn, timeout=600),
        performer=Sleeper(waited),
        scope="Bench",
        concurrency=CONCURRENCY,
        topics=[Topic("flood", 100)] if topic else [],
    )
    async with connected(dsn) as connection:
        await connection.execute(INSERT, "flood", topic, flood, timeout=600)
    async with app.running():
        for n in range(RARE):
            await anyio.sleep(0.1)
            await app.create_jobs([NewJob(f"rare{n % 3}", "sleep", {"rare": True})])
        await eventually(lambda: len(waited) == RARE, within=60)
    await app.close()
    return [wait.total_seconds() for wait in waited]


class Sleeper(Performer):
    """Works for a moment, and notes how long rare jobs have waited."""

    def __init__(self, waited: list[timedelta]) -> None:
        self._waited = waited

    async def perform(self, job: Job) -> None:
        if job.params.get("rare") and job.attempted_at:
            self._waited.append(job.attempted_at - job.scheduled_at)
        await anyio.sleep(SECONDS_EACH)
