"""A queue with very many rows in the run queue: a step does a part of them, and others go on."""

from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import anyio
import asyncpg
import pytest

from pgqueuetopia import Job
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended
from tests.db import failpoints
from tests.db.steps import done, ids, kill, look, sessions
from tests.support import an_app

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

STRANDED = Path(__file__).with_name("stranded.sql").read_text(encoding="utf-8")
# Of one queue, in one step; and of one priority in a scan.
MOST = 50_000
SCANNED = 10_000
MANY = 2 * MOST + 10_000


async def rows_of(connection: Connection, queue: str = "q") -> int:
    return int(
        await connection.fetchval("select count(*) from pgqueuetopia.run_queue where queue = $1", queue)
    )


async def crowd(
    connection: Connection,
    queue: str = "q",
    number: int = MANY,
    place: str = "-infinity",
    ready_in: str = "-1 minute",
) -> None:
    """As many rows as so many transactions leave that create a job each, or change its place."""
    await connection.execute(
        f"""
        insert into pgqueuetopia.run_queue (scope, queue, ready_at, place)
        select 'Test', $1, now() + interval '{ready_in}', '{place}' from generate_series(1, {number})
        """,
        queue,
    )


async def claimed_soon(session: Session, *, steps: int = 10) -> list[Job]:
    """What is claimed first, by one of the next steps."""
    claimed: list[Job] = []
    while steps and not claimed:
        steps -= 1
        stepped = await look(session)
        claimed = stepped.claimed
        if not stepped.more:
            await anyio.sleep(stepped.next_ready_in or 0)
    return claimed


@pytest.mark.parametrize("ready_in", ["-1 minute", "1 hour"])
async def test_a_queue_is_run_when_steps_have_removed_what_it_has_too_much_of(
    dsn: str, connection: Connection, ready_in: str
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        job = await app.create_job("q", "a", scheduled_at=timedelta(minutes=-1))
        await crowd(connection, ready_in=ready_in)
        left = await rows_of(connection)
        for everything in (True, False):
            stepped = await look(a, rescue=everything, everything=everything)
            assert (stepped.claimed, stepped.more) == ([], True)
            now = await rows_of(connection)
            assert left - MOST - 1 <= now < left - MOST / 2
            left = now
            assert await connection.fetch(STRANDED) == []
        assert ids(await look(a, rescue=False, everything=False)) == [job.id]
        assert await rows_of(connection) == 1


async def test_another_node_goes_on_with_it(dsn: str, connection: Connection) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        job = await app.create_job("q", "a")
        await crowd(connection)
        assert [ids(await look(node)) for node in (a, b, a)] == [[], [], [job.id]]


@pytest.mark.parametrize("place", ["locked", "taken", "before commit", "committed"])
async def test_a_node_that_dies_as_it_removes_some_loses_nothing(racing_dsn: str, place: str) -> None:
    connection = await asyncpg.connect(racing_dsn)
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        job = await app.create_job("q", "a")
        await crowd(connection)
        await failpoints.die_at(racing_dsn, place, "a", look(a))
        assert (await rows_of(connection) < MANY) == (place == "committed")
        assert await connection.fetch(STRANDED) == []
        assert [one.id for one in await claimed_soon(b)] == [job.id]
    await connection.close()


async def test_the_first_of_the_places_that_were_removed_is_where_it_begins(
    dsn: str, connection: Connection
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(days=-1))
        await crowd(connection, place="now")
        # By whose row it is locked.
        await app.create_job("q", "a", priority=1)
        assert [one.id for one in await claimed_soon(a)] == [ahead.id]


async def test_nothing_overtakes_a_job_whose_node_died(dsn: str, connection: Connection) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first = await app.create_job("q", "a")
        assert ids(await look(a)) == [first.id]
        await app.create_job("q", "a", scheduled_at=timedelta(days=-1))
        await crowd(connection)
        await kill(dsn, "a")
        [claimed] = await claimed_soon(b)
        assert (claimed.id, claimed.attempts) == (first.id, 2)


async def test_a_queue_that_is_paused_loses_them_in_some_steps(dsn: str, connection: Connection) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        job = await app.create_job("q", "a")
        await crowd(connection)
        await app.suspend("q")
        for _ in range(3):
            assert (await look(a)).claimed == []
        assert await rows_of(connection) == 0
        await app.resume("q")
        assert ids(await look(a)) == [job.id]


async def test_a_queue_that_is_let_go_leaves_them_to_who_meets_them(dsn: str, connection: Connection) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        await crowd(connection, number=2 * MANY)
        assert ids(await look(a, done(claimed), room=0)) == []
        assert await rows_of(connection) >= 2 * MANY - 2 * MOST - 1
        job = await app.create_job("q", "a")
        assert [one.id for one in await claimed_soon(b)] == [job.id]


async def test_what_comes_in_ahead_is_the_next_wherever_very_much_does(
    dsn: str, connection: Connection
) -> None:
    """Not only of the queue of which so much came in."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        for queue in ("q", "r"):
            await app.create_jobs([{"queue": queue, "action": "a"}] * 2)
        stepped = await look(a)
        running = {job.queue: job for job in stepped.claimed}
        ahead = [
            (await app.create_job(queue, "a", scheduled_at=timedelta(days=-1))).id for queue in ("q", "r")
        ]
        await crowd(connection, "q")
        ended = [
            Ended(queue, running[queue], done(running[queue]).settlement, snapshot=stepped.snapshot)
            for queue in ("q", "r")
        ]
        assert ids(await look(a, *ended, rescue=False)) == ahead
        assert await rows_of(connection) >= MANY - MOST


@pytest.mark.parametrize("rescue", [False, True])
@pytest.mark.parametrize("place", ["-infinity", "infinity"], ids=["ahead", "behind"])
async def test_what_came_in_for_a_queue_that_runs_hides_no_other(
    dsn: str, connection: Connection, rescue: bool, place: str
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 2)
        first = await look(a)
        running = first.claimed
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(days=-1))
        await crowd(connection, number=3 * SCANNED, place=place)
        other = await app.create_job("other", "a")
        found: list[int] = []
        while not found:
            left = await rows_of(connection)
            stepped = await look(a, running=running, rescue=rescue)
            found += ids(stepped)
            running += stepped.claimed
            assert found or (stepped.more and await rows_of(connection) < left)
        assert found == [other.id]
        ended = Ended("q", running[0], done(running[0]).settlement, snapshot=first.snapshot)
        assert ids(await look(a, ended, running=running[1:], rescue=rescue)) == [ahead.id]


async def test_what_came_in_ahead_of_a_job_of_a_full_node_hides_no_queue_from_others(
    dsn: str, connection: Connection
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        await app.create_job("q", "a")
        running = (await look(a)).claimed
        await crowd(connection, number=3 * SCANNED)
        other = await app.create_job("other", "a")
        await look(a, running=running, room=0)
        assert ids(await look(b)) == [other.id]


async def test_what_came_in_behind_a_job_of_a_full_node_goes_in_some_steps(
    dsn: str, connection: Connection
) -> None:
    """As much of it as is ahead does not come in between."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a")
        running = (await look(a)).claimed
        await crowd(connection, number=MOST)
        await crowd(connection, number=MOST, place="infinity")
        for _ in range(3):
            left = await rows_of(connection)
            await look(a, running=running, room=0)
            assert left - MOST <= await rows_of(connection)
        assert await rows_of(connection) == 2
