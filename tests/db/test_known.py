"""Who has had a queue reads none of its dead rows again, and overlooks nothing that has come in since."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import anyio
import asyncpg
import pytest

from pgqueuetopia.db import known
from pgqueuetopia.db.known import Known
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Stepped
from tests.db import failpoints
from tests.db.steps import done, ids, kill, look, rescued, sessions
from tests.db.test_front import CHURN, INSERT, PASSING, entries_read
from tests.db.test_statements import are_alone
from tests.support import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SCHEDULED = """
insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at)
values ('Test', 'q', 'a', clock_timestamp() + $1::float8 * interval '1 second')
returning id
"""
TOMORROW = """
insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at, priority)
select 'Test', 'tomorrow ' || p, 'a', now() + interval '1 day', p from unnest(array[0, 7]) p
"""
URGENT = (
    "insert into pgqueuetopia.jobs (scope, queue, action, priority) values ('Test', 'q', 'a', 7) returning id"
)
# How many of them there are between one that runs and the look: none, so that it began lately, or many.
BETWEEN = [0, 200]


def make_it_matter(told: Known) -> None:
    for _ in range(known.IN_A_ROW):
        told.hear(True)


@asynccontextmanager
async def a_knowing_session(dsn: str) -> AsyncIterator[Session]:
    async with sessions(dsn, "a") as [a]:
        connection = await asyncpg.connect(dsn)
        # In each priority, so that a scan need not begin at the start.
        await connection.execute(TOMORROW)
        await connection.close()
        await look(a)
        make_it_matter(a.known)
        yield a


async def following(session: Session, *ended: Ended) -> Stepped:
    """A step that scans from where the last one came to."""
    return await look(session, *ended, rescue=False, everything=False)


async def taken(session: Session) -> Ended:
    """The one job that a step claims, as one that has ended."""
    stepped = await following(session)
    [job] = stepped.claimed
    return replace(done(job), snapshot=stepped.snapshot)


async def held_once(session: Session, connection: Connection) -> None:
    """The queue was the session's, and has run dry."""
    await connection.execute(INSERT, "q", 0)
    assert (await following(session, await taken(session))).claimed == []
    assert session.known.left.keys() == {'"q"'}


async def test_a_queue_that_is_taken_again_does_not_pass_its_dead_rows(
    dsn: str, connection: Connection
) -> None:
    """Somebody's transaction has them kept."""
    holder = await asyncpg.connect(dsn)
    async with a_knowing_session(dsn) as session, holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select pg_current_xact_id(), (select count(*) from pgqueuetopia.jobs)")
        await connection.execute(CHURN.format(queue="'q'"))
        await connection.execute(PASSING.format(count=200))
        await held_once(session, connection)
        await eventually(lambda: are_alone(connection, holder, session._connection))
        entries = await entries_read(session)
        for _ in range(10):
            await held_once(session, connection)
        assert await entries_read(session) - entries < 10 * 100
    await holder.close()


@asynccontextmanager
async def a_late_job(dsn: str, connection: Connection, between: int) -> AsyncIterator[int]:
    """The id of a job that is ahead, and is committed at the end of the block."""
    creator = await asyncpg.connect(dsn)
    async with creator.transaction():
        job_id = await creator.fetchval(SCHEDULED, -1)
        await connection.execute(PASSING.format(count=between))
        yield job_id
    await creator.close()


@pytest.mark.parametrize("between", BETWEEN)
async def test_what_ran_as_the_queue_was_taken_and_has_committed_since_is_found(
    dsn: str, connection: Connection, between: int
) -> None:
    """The queue is taken by the row of a job that is urgent, and has one that is ahead."""
    async with a_knowing_session(dsn) as session:
        async with a_late_job(dsn, connection, between) as ahead:
            await held_once(session, connection)
        await connection.execute(URGENT)
        assert ids(await following(session)) == [ahead]


@pytest.mark.parametrize("between", BETWEEN)
async def test_what_commits_after_many_looks_is_the_next_of_a_queue_that_goes_on(
    dsn: str, connection: Connection, between: int
) -> None:
    async with sessions(dsn, "a") as [session]:
        async with a_late_job(dsn, connection, between) as ahead:
            for _ in range(4):
                await connection.execute(INSERT, "q", 0)
            ended = await taken(session)
            for _ in range(2):
                stepped = await following(session, ended)
                [job] = stepped.claimed
                ended = replace(done(job), snapshot=stepped.snapshot)
        assert ids(await following(session, ended)) == [ahead]


async def nothing_overtakes_what_it_ran(dsn: str, connection: Connection, a: Session, b: Session) -> None:
    """The queue is b's, which dies; an urgent job makes a look at it."""
    await connection.execute(INSERT, "q", 0)
    [running] = (await look(b)).claimed
    await connection.execute(URGENT)
    await kill(dsn, "b")
    assert (await following(a)).claimed == []
    assert ids(await rescued(a)) == [running.id]


async def test_a_queue_whose_next_node_died_is_known_to_be_a_dead_ones(
    dsn: str, connection: Connection
) -> None:
    async with a_knowing_session(dsn) as a, sessions(dsn, "b") as [b]:
        await held_once(a, connection)
        await nothing_overtakes_what_it_ran(dsn, connection, a, b)


async def test_a_node_that_died_had_the_queue_by_a_row_that_committed_while_we_held_it(
    dsn: str, connection: Connection
) -> None:
    """Its transaction is older than ours, and so we did not remove it as we let the queue go."""
    creator = await asyncpg.connect(dsn)
    async with a_knowing_session(dsn) as a, sessions(dsn, "b") as [b]:
        transaction = creator.transaction()
        await transaction.start()
        await creator.fetchval("select pg_current_xact_id()")
        await connection.execute(INSERT, "q", 0)
        ended = await taken(a)
        await creator.fetchval(SCHEDULED, 0)
        await transaction.commit()
        # Or the next look may find the row once more, if somebody else on this server was at work.
        await connection.execute(PASSING.format(count=200))
        stepped = await following(a, ended)
        [second] = stepped.claimed
        assert (await following(a, replace(done(second), snapshot=stepped.snapshot))).claimed == []
        assert a.known.left.keys() == {'"q"'}
        assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue where queue = 'q'") == 1
        await nothing_overtakes_what_it_ran(dsn, connection, a, b)
    await creator.close()


async def test_a_queue_is_let_go_whose_row_somebody_had_locked_as_it_was_left(
    dsn: str, connection: Connection
) -> None:
    """We could not remove it, and have seen it: all that we know of the queue is older than its only row."""
    async with a_knowing_session(dsn) as session, sessions(dsn, "b") as [b]:
        await connection.execute(INSERT, "q", 0)
        await connection.execute(INSERT, "q", 0)
        async with connection.transaction():
            await connection.execute(LOCK_THE_NEWEST)
            first = await taken(session)
            stepped = await following(session, first)
            [second] = stepped.claimed
            ended = replace(done(second), snapshot=stepped.snapshot)
            assert (await following(session, ended)).claimed == []
        assert session.known.left.keys() == {'"q"'}
        assert (await following(session)).claimed == []
        third = await connection.fetchval(SCHEDULED, 0)
        assert ids(await look(b)) == [third], "it is not held any longer"


LOCK_THE_NEWEST = """
select from pgqueuetopia.run_queue
where xid = (select max(xid) from pgqueuetopia.run_queue where queue = 'q') for update
"""


async def test_it_matters_where_scans_from_the_start_take_long(racing_dsn: str) -> None:
    """Several in a row: one may have waited for the processor."""
    async with a_knowing_session(racing_dsn) as a:
        a.known.hear(False)
        for _ in range(known.IN_A_ROW):
            assert not a.known.matters
            await a_slow_look(racing_dsn, a)
            await following(a)
        assert a.known.matters
        await eventually(lambda: matters_no_longer(a))


async def a_slow_look(dsn: str, session: Session) -> None:
    async with (
        failpoints.stopping(dsn, "from the start", "a") as stop,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(look, session)
        await stop.reached()
        await anyio.sleep(0.01)
        await stop.release()


async def matters_no_longer(session: Session) -> bool:
    await look(session)
    return not session.known.matters


def test_what_is_known_is_forgotten_when_it_does_not_matter_or_is_too_much() -> None:
    told = Known()
    told.learn(["q"], [], "as it is left, and was taken before it mattered")
    assert told.left == {}
    told.learn([], ["q"], "as it is taken")
    told.hear(None)
    told.learn(["q"], ["q"], "as it goes on")
    told.learn(["q"], [], "as it is left")
    assert told.columns() == ('{"q"}', '{"as it is taken"}')
    told.hear(False)
    assert told.left == {}
    many = [f"q{n}" for n in range(known.MOST + 1)]
    told.learn([], many, "")
    told.learn(many, [], "")
    assert len(told.left) == len(many)
    told.learn([], [], "")
    assert told.left == {}
    assert told.columns() == (None, None)


def test_a_step_is_told_of_as_many_queues_as_it_needs_those_left_the_longest_ago_first() -> None:
    told = Known()
    queues = [f"q{n:04}" for n in range(1000)]
    told.learn([], queues, "")
    for queue in queues:
        told.learn([queue], [], "")
    # Not one of those that were left before.
    for _ in range(20):
        take_and_leave(told, queues[-1])
    assert len(told_queues(told)) == len(queues)
    # Always the one that was left the longest ago.
    for _ in range(1000):
        take_and_leave(told, told_queues(told)[0])
    assert told_queues(told) == [next(quoted.strip('"') for quoted in told.left)]


def take_and_leave(told: Known, queue: str) -> None:
    told.learn([], [queue], "")
    told.learn([queue], [], "")


def told_queues(told: Known) -> list[str]:
    queues, seen = told.columns()
    assert queues is not None
    assert seen is not None
    assert queues.count(",") == seen.count(",")
    return [queue.strip('"') for queue in queues.strip("{}").split(",")]


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [
        ("500:500:", "500:500:"),
        ("500:510:500,505", "500:500:"),
        ("100:510:100,505", "100:505:100"),
        ("100:510:100,300", "100:510:100,300"),
    ],
)
async def test_a_rounded_snapshot_sees_less(connection: Connection, exact: str, rounded: str) -> None:
    """What is no older than a hundred transactions is as if it was still to come."""
    found = await connection.fetchval("select pgqueuetopia.rounded($1::text::pg_snapshot)::text", exact)
    assert found == rounded
