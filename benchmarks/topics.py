"""A topic that runs a hundred jobs at once, beside as many blocking queues."""

from collections.abc import Callable

from benchmarks.figures import Figure, ratio
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE, SECONDS, Nothing
from pgqueuetopia import NewJob, Queuetopia, Repo, Topic

ROUNDS = 5
JOBS = 10_000
AT_ONCE = 100


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The share of the blocking queues' speed that the topic has, round by round."""
    shares = []
    for round_ in range(1, ROUNDS + 1):
        async with server.database() as dsn:
            blocking = await jobs_per_second(dsn, [f"q{n % AT_ONCE}" for n in range(JOBS)])
        async with server.database() as dsn:
            topic = await jobs_per_second(dsn, ["topic"] * JOBS)
        shares.append(topic / blocking)
        tell(f"round {round_} of {ROUNDS}: topic {topic:,.0f}, blocking queues {blocking:,.0f} jobs/s")
    return [ratio(f"{JOBS:,} jobs of one topic, {AT_ONCE} at once, beside {AT_ONCE} blocking queues", shares)]


async def jobs_per_second(dsn: str, queues: list[str]) -> float:
    """Create the jobs, and then have one node run them."""
    performer = Nothing(len(queues))
    app = Queuetopia(
        repo=Repo(dsn),
        performer=performer,
        scope=SCOPE,
        concurrency=AT_ONCE,
        topics=[Topic("topic", AT_ONCE)],
    )
    await app.create_jobs([NewJob(queue, "nothing") for queue in queues])
    async with app.running():
        await performer.all_started.wait()
    await app.close()
    async with connected(dsn) as connection:
        return len(queues) / float(await connection.fetchval(SECONDS, SCOPE))
