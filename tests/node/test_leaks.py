"""What a node holds after many jobs and many lost sessions: what it held before."""

import asyncio
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from pgqueuetopia import Job, NewJob, Performer, Queuetopia, Repo
from tests.support import ADVISORY_LOCKS, an_app, eventually

# 50,000 in CI, by $LEAK_JOBS: they take a quarter of the whole suite's time.
JOBS = int(os.environ.get("LEAK_JOBS", "3000"))
RECONNECTS = 50
WARM_UP = 5
QUEUES = 100
# What a freshly grown dictionary, a cache or a fragmented heap may add.
MORE_OBJECTS = 2_000
MORE_MEMORY = 8 * 2**20

OTHER_BACKENDS = """
select pid from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""
SESSIONS = "select distinct pid from pgqueuetopia.nodes"
LOCKS = f"select count(*) from {ADVISORY_LOCKS} where granted and mode = 'ExclusiveLock'"


class Counter(Performer):
    """Counts what it performed, and keeps nothing of it."""

    def __init__(self) -> None:
        self.performed = 0

    async def perform(self, job: Job) -> None:
        self.performed += 1


@dataclass(frozen=True)
class Held:
    """What a process and its sessions hold."""

    tasks: int
    backends: int
    objects: int
    memory: int


async def held(connection: "asyncpg.Connection[asyncpg.Record]") -> Held:
    """What is held once the node is at rest: it tries a lock now and then, and gives it back."""
    await eventually(lambda: no_lock_is_held(connection))
    gc.collect()
    return Held(
        tasks=len(asyncio.all_tasks()),
        backends=len(await connection.fetch(OTHER_BACKENDS)),
        objects=len(gc.get_objects()),
        memory=resident(),
    )


async def no_lock_is_held(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return bool((await connection.fetch(LOCKS))[0][0] == 0)


def resident() -> int:
    """The bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_jobs_and_lost_sessions_leave_nothing_behind(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    counter = Counter()
    repo = Repo(dsn, max_size=1)
    async with an_app(dsn, counter, repo=repo, job_retention=0) as app, app.running():
        for _ in range(WARM_UP):
            await a_round(app, counter, connection)
        before = await held(connection)
        for _ in range(RECONNECTS):
            await a_round(app, counter, connection)
        after = await held(connection)
    assert counter.performed == (WARM_UP + RECONNECTS) * JOBS // RECONNECTS
    assert after.tasks == before.tasks
    assert after.backends <= before.backends
    assert after.objects < before.objects + MORE_OBJECTS
    assert after.memory < before.memory + MORE_MEMORY


async def a_round(
    app: Queuetopia, counter: Counter, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Some jobs, a lost session, and the node at rest again."""
    jobs = JOBS // RECONNECTS
    due = counter.performed + jobs
    await app.create_jobs([NewJob(f"q{n % QUEUES}", "a") for n in range(jobs)])
    await eventually(lambda: counter.performed == due)
    await eventually(lambda: all_is_saved(app))
    [[pid]] = await connection.fetch(SESSIONS)
    await connection.fetch("select pg_terminate_backend($1)", pid)
    await eventually(lambda: is_back(connection, pid))


async def all_is_saved(app: Queuetopia) -> bool:
    return (await app.status()).count == 0


async def is_back(connection: "asyncpg.Connection[asyncpg.Record]", old: int) -> bool:
    """Whether the node has a session again, and another one."""
    pids = [row["pid"] for row in await connection.fetch(SESSIONS)]
    return len(pids) == 1 and pids != [old]
