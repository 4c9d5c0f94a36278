"""Steps of several sessions, one at a time, for tests in a fixed order."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import asyncpg

from pgqueuetopia import Job
from pgqueuetopia.db.hearing import Told
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Question, Stepped
from pgqueuetopia.outcome import Settlement
from tests.support import eventually


@asynccontextmanager
async def sessions(dsn: str, *nodes: str) -> AsyncIterator[list[Session]]:
    """One session for each node."""
    async with AsyncExitStack() as stack:
        opened = []
        for node in nodes:
            session = await open_session(dsn, node)
            stack.callback(session.abort)
            opened.append(session)
        yield opened


async def open_session(dsn: str, node: str) -> Session:
    return await Session.open(dsn, "Test", node, Told())


async def look(session: Session, *ended: Ended, room: int = 10, over: bool = False, **known: Any) -> Stepped:
    """One step that settles what ended and claims up to `room` jobs, looking for the queues of the dead."""
    yielding = [one.queue for one in ended] if over else []
    running = {job.queue: job.attempted_at for job in known.pop("running", [])}
    return await session.step(Question(ended, yielding, running, room=room, **{"rescue": True, **known}))


def done(job: Job) -> Ended:
    return Ended(job.queue, job, Settlement.succeeded(None))


def ids(stepped: Stepped) -> list[int]:
    behind = (row["id"] for some in stepped.prefetched.values() for row in some)
    return sorted([*(job.id for job in stepped.claimed), *behind])


async def backend(connection: "asyncpg.Connection[asyncpg.Record]", node: str) -> int:
    return int(
        await connection.fetchval(
            "select pid from pg_stat_activity where datname = current_database() "
            "and application_name like $1",
            f"pgqueuetopia {node} %",
        )
    )


async def kill(dsn: str, node: str) -> None:
    """End a node's session as its death would, and wait until its locks are free."""
    connection = await asyncpg.connect(dsn)
    pid = await backend(connection, node)
    await connection.execute(f"select pg_terminate_backend({pid})")
    await eventually(lambda: is_gone(connection, pid))
    await connection.close()


async def rescued(session: Session, *ended: Ended) -> Stepped:
    """Look until something was claimed: what a dead node ran waits a little."""
    stepped = await look(session, *ended)
    with anyio.fail_after(5):
        while not stepped.claimed:
            await anyio.sleep(stepped.next_ready_in or 0.01)
            stepped = await look(session)
    return stepped


async def is_gone(connection: "asyncpg.Connection[asyncpg.Record]", pid: int) -> bool:
    return not await connection.fetch("select from pg_stat_activity where pid = $1", pid)
