"""What chaos is done to: a server, nodes behind proxies, and a creator of jobs."""

import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import asyncpg

from pgqueuetopia import NewJob, Queuetopia, QueuetopiaError, Repo, embedded
from pgqueuetopia.db import migrations
from tests.acceptance.cluster import Cluster, NodeProcess
from tests.acceptance.node import SCOPE
from tests.pooler import a_pooler
from tests.proxy import Proxy, a_proxy
from tests.support import eventually

QUEUES = 300
# Queues of short jobs that come in bursts: a node claims several of one at once.
HOT_QUEUES = 20
BURST = 20
PREFETCH = 16
SESSION_TIMEOUT = float(os.environ.get("CHAOS_SESSION_TIMEOUT", "4"))
END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgqueuetopia %'
"""
SUSPEND = "update pgqueuetopia.job_configs set value = $1 where scope = '*' and key = 'suspended'"


@dataclass(slots=True)
class Place:
    """Where a node runs: its proxy stays, its process may be killed and started again."""

    proxy: Proxy
    dsn: str
    node: NodeProcess


@dataclass(slots=True)
class World:
    """Everything that can break, and what was done to it."""

    dsn: str
    directory: Path
    app: Queuetopia
    cluster: Cluster
    pooled: bool
    places: list[Place] = field(default_factory=list)
    created: int = 0
    ending: bool = False

    def any_place(self) -> Place:
        return random.choice(self.places)

    def start(self, dsn: str) -> NodeProcess:
        pooled = ["--pooled"] if self.pooled else []
        return self.cluster.start(
            f"--session-dsn={dsn}",
            f"--session-timeout={SESSION_TIMEOUT}",
            f"--prefetch={PREFETCH}",
            "--shutdown=5",
            *pooled,
        )

    async def execute(self, sql: str, *arguments: object) -> None:
        """Run SQL, on a server that may be coming back."""
        while True:
            try:
                connection = await asyncpg.connect(self.dsn, timeout=5)
                try:
                    await connection.fetch(sql, *arguments)
                    return
                finally:
                    await connection.close()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await anyio.sleep(0.05)

    async def create(self) -> None:
        """Create jobs until the end, in order, whatever happens to the server."""
        while not self.ending:
            with suppress(QueuetopiaError):
                jobs = [a_job() for _ in range(5)] + (a_burst() if random.random() < 0.2 else [])
                self.created += len(await self.app.create_jobs(jobs))
            await anyio.sleep(0.04)

    async def restart(self, how: signal.Signals) -> float:
        """Stop the server, fast (SIGINT) or at once (SIGQUIT), and start it; returns when it was back."""
        pid = int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, how)
        await eventually(lambda: not is_alive(pid))
        await anyio.to_thread.run_sync(embedded.start, self.directory)
        await self.execute("select 1")
        return time.monotonic()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def a_job() -> NewJob:
    """Up to a second of work; one in thirty works for longer than a session lives unheard."""
    long = random.random() < 1 / 30
    seconds = random.uniform(1, 2) * SESSION_TIMEOUT if long else random.random()
    return work(f"q{random.randrange(QUEUES)}", seconds)


def a_burst() -> list[NewJob]:
    """Jobs of one queue that take up to 4 ms, and one in a hundred a tenth of a second."""
    queue = f"hot{random.randrange(HOT_QUEUES)}"
    return [work(queue, random.random() * (0.1 if random.random() < 0.01 else 0.004)) for _ in range(BURST)]


def work(queue: str, seconds: float) -> NewJob:
    """A job that takes so long; one in ten fails once."""
    return NewJob(
        queue,
        "work",
        {"seconds": seconds, "failures": int(random.random() < 0.1)},
        max_backoff=0.3,
        max_attempts=1_000_000,
    )


@asynccontextmanager
async def a_world(directory: Path, nodes: int, *, pooled: bool) -> AsyncIterator[World]:
    """A migrated server, and nodes that reach it through proxies; all else may go through a pooler."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(embedded.start(directory / "server"))
        await migrations.up(server.dsn)
        shared = stack.enter_context(a_pooler(server.dsn)) if pooled else server.dsn
        app = Queuetopia(repo=Repo(shared, timeout=5, statement_cache_size=0 if pooled else 100), scope=SCOPE)
        stack.push_async_callback(app.close)
        cluster = Cluster(shared, directory)
        stack.callback(cluster.kill_all)
        world = World(server.dsn, server.directory, app, cluster, pooled)
        for _ in range(nodes):
            proxy, dsn = await stack.enter_async_context(a_proxy(server.dsn))
            world.places.append(Place(proxy, dsn, world.start(dsn)))
        yield world
