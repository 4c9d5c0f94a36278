"""A queue is run in the turn of its priority, whatever had it looked at."""

from datetime import timedelta

import anyio
import asyncpg
import pytest

from pgqueuetopia import Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended
from pgqueuetopia.outcome import Failure, Settlement
from tests.db.steps import ids, look, sessions
from tests.support import an_app

SUSPENDED = "insert into pgqueuetopia.job_configs (scope, key, value) values ($1, 'urgent_suspended', 'true')"


async def flood(app: Queuetopia) -> None:
    """Queues of a lower priority, but not the usual one, that are due as well."""
    await app.create_jobs([{"queue": f"q{n}", "action": "a", "priority": 1} for n in range(3)])


async def next_one(session: Session) -> list[int]:
    """The first job that is claimed; the queue that a job was moved from is looked at, too, and is empty."""
    with anyio.fail_after(5):
        while not (found := ids(await look(session, room=1))):
            pass
    return found


@pytest.mark.parametrize("scope", ["Test", "*"])
async def test_a_queue_that_is_resumed_comes_before_those_of_lower_priority(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", scope: str
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await connection.execute(SUSPENDED, scope)
        urgent = await app.create_job("urgent", "a", priority=10)
        assert ids(await look(a)) == [], "its queue is suspended"
        await flood(app)
        await connection.execute("delete from pgqueuetopia.job_configs where key = 'urgent_suspended'")
        assert await next_one(a) == [urgent.id]


@pytest.mark.parametrize("change", ["scheduled_at = now()", "scheduled_at = now(), queue = 'other'"])
async def test_a_job_that_is_rescheduled_comes_before_those_of_lower_priority(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", change: str
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        urgent = await app.create_job("urgent", "a", priority=10, scheduled_at=timedelta(hours=1))
        await flood(app)
        await connection.execute(f"update pgqueuetopia.jobs set {change} where id = $1", urgent.id)
        assert await next_one(a) == [urgent.id]


async def test_a_job_whose_wait_is_cut_short_comes_before_those_of_lower_priority(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        urgent = await app.create_job("urgent", "a", priority=10)
        [claimed] = (await look(a)).claimed
        waits = Settlement.retried(Failure("no"), timedelta(hours=1))
        assert ids(await look(a, Ended("urgent", claimed, waits))) == []
        await flood(app)
        await app.retry(urgent)
        assert await next_one(a) == [urgent.id]
