"""Where a step begins to scan the run queue: not at its start, while a node is busy."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeAlias

import asyncpg
import pytest

from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Question, Stepped
from tests.db.steps import done, look, open_session, sessions
from tests.db.test_statements import MISLEADING, are_alone, read
from tests.support import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

INSERT = "insert into pgqueuetopia.jobs (scope, queue, action, priority) values ('Test', $1, 'a', $2)"
LATE = """
insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at)
values ('Test', $1, 'a', now() - interval '1 second')
"""
SCHEDULED = """
insert into pgqueuetopia.jobs (scope, queue, action, priority, scheduled_at)
values ('Test', $1, 'a', $2, now() + interval '1 day')
"""
# Rows that came and went, one transaction each.
CHURN = """
do $$ declare came tid; gone tid[]; begin
  for n in 1 .. 2000 loop
    insert into pgqueuetopia.run_queue (scope, queue, ready_at)
    values ('Test', {queue}, now() - interval '1 minute') returning ctid into came;
    gone := gone || came;
    if n % 100 = 0 then delete from pgqueuetopia.run_queue where ctid = any (gone); commit; end if;
  end loop;
end $$
"""
# Transactions that come and go.
PASSING = "do $$ begin for n in 1 .. {count} loop perform pg_current_xact_id(); commit; end loop; end $$"


@pytest.fixture
async def session(dsn: str) -> AsyncIterator[Session]:
    session = await open_session(dsn, "node")
    yield session
    await session.close()


async def claimed(session: Session, **options: Any) -> list[str]:
    """The queues that a step claims from, in their order."""
    stepped = await session.step(Question(room=10, **options))
    return [job.queue for job in stepped.claimed]


async def test_a_step_that_goes_on_finds_what_came_in_since(session: Session, connection: Connection) -> None:
    await connection.execute(INSERT, "a", 0)
    assert await claimed(session) == ["a"]
    await connection.execute(INSERT, "b", 0)
    assert await claimed(session, everything=False) == ["b"]
    assert await claimed(session, everything=False) == []


async def test_what_is_due_later_does_not_hide_what_comes_in_now(
    session: Session, connection: Connection
) -> None:
    """In a priority in which there is nothing else, and in one for which there was no room."""
    await connection.execute(SCHEDULED, "tomorrow", 0)
    await connection.execute(SCHEDULED, "tomorrow", 7)
    for number in range(10):
        await connection.execute(INSERT, f"urgent{number}", 7)
    assert len(await claimed(session)) == 10
    await connection.execute(INSERT, "now", 0)
    await connection.execute(INSERT, "now, and urgent", 7)
    assert await claimed(session, everything=False) == ["now, and urgent", "now"]


async def test_what_is_due_since_before_the_front_is_found_by_a_look_at_everything(
    session: Session, connection: Connection
) -> None:
    await connection.execute(INSERT, "a", 0)
    assert await claimed(session) == ["a"]
    await connection.execute(LATE, "late")
    assert await claimed(session, everything=False) == []
    assert await claimed(session) == ["late"]


async def test_a_priority_that_is_new_is_found_by_a_look_at_everything(
    session: Session, connection: Connection
) -> None:
    await connection.execute(INSERT, "a", 0)
    assert await claimed(session) == ["a"]
    await connection.execute(INSERT, "b", 7)
    assert await claimed(session, everything=False) == []
    assert await claimed(session) == ["b"]
    await connection.execute(INSERT, "c", 7)
    await connection.execute(INSERT, "d", 0)
    assert await claimed(session, everything=False) == ["c", "d"]


async def test_a_scan_that_had_no_room_goes_on_with_what_it_left(
    session: Session, connection: Connection
) -> None:
    for number in range(25):
        await connection.execute(INSERT, f"q{number:02}", number % 2)
    found = [await claimed(session, everything=first) for first in (True, False, False, False)]
    urgent = [f"q{number:02}" for number in range(1, 25, 2)]
    others = [f"q{number:02}" for number in range(0, 25, 2)]
    assert [sorted(queues) for queues in found] == [
        urgent[:10],
        sorted(urgent[10:] + others[:8]),
        others[8:],
        [],
    ]


async def test_dead_rows_that_nobody_may_remove_are_passed_once(
    dsn: str, session: Session, connection: Connection
) -> None:
    """Somebody's transaction has them kept."""
    holder = await asyncpg.connect(dsn)
    async with holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select 1 from pgqueuetopia.jobs")
        await connection.execute(CHURN.format(queue="'gone ' || n % 10"))
        await connection.execute(INSERT, "a", 0)
        assert await claimed(session) == ["a"]
        await eventually(lambda: are_alone(connection, holder, session._connection))
        entries = await entries_read(session)
        for number in range(10):
            await connection.execute(INSERT, f"b{number}", 0)
            assert await claimed(session, everything=False) == [f"b{number}"]
        assert await entries_read(session) - entries < 10 * 100
    await holder.close()


FULL = """
insert into pgqueuetopia.jobs (scope, queue, action)
select 'Test', 'other ' || i % 1000, 'a' from generate_series(1, 20000) i
"""


@pytest.mark.parametrize("analysed", [0, 1, 100, 20_000])
async def test_a_queue_that_goes_on_does_not_pass_its_dead_rows(
    dsn: str, connection: Connection, analysed: int
) -> None:
    """Somebody's transaction has them kept, and may come in ahead. Statistics know nothing, or mislead."""
    if analysed:
        await connection.execute(MISLEADING.format(rows=analysed))
    await connection.execute(FULL)
    holder = await asyncpg.connect(dsn)
    async with sessions(dsn, "node") as [session], holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select pg_current_xact_id(), (select count(*) from pgqueuetopia.jobs)")
        stepped = await look(session, room=1)
        await connection.execute(CHURN.format(queue=f"'{stepped.claimed[0].queue}'"))
        await connection.execute(PASSING.format(count=200))
        await eventually(lambda: are_alone(connection, holder, session._connection))
        # The look after the churn may pass it, the others have seen it.
        stepped = await following(session, stepped)
        entries = await entries_read(session)
        for _ in range(10):
            stepped = await following(session, stepped)
        assert await entries_read(session) - entries < 10 * 100
    await holder.close()


OTHERS = """
insert into pgqueuetopia.jobs (scope, queue, action, done_at, outcome)
select 'Test', 'other', 'a', now(), 'succeeded' from generate_series(1, 20000)
"""


@pytest.mark.parametrize("keep", [True, False])
async def test_a_plan_that_was_made_for_one_job_is_good_for_many(
    dsn: str, connection: Connection, keep: bool
) -> None:
    """Of each statement that writes to a job: of a table that is small a planner may as soon read all."""
    async with sessions(dsn, "node") as [session]:
        await connection.execute(INSERT, "a", 0)
        await connection.execute("analyze pgqueuetopia.jobs, pgqueuetopia.run_queue")
        [job] = (await look(session, keep=keep)).claimed
        await connection.execute(SEVERAL)
        await connection.execute("vacuum analyze pgqueuetopia.jobs")
        stepped = await look(session, replace(done(job), size=4), keep=keep)
        await note(session, stepped)
        await connection.execute(OTHERS)
        await eventually(lambda: are_alone(connection, session._connection))
        entries = await entries_read(session)
        ended = [replace(done(one), one_of_many=True) for one in stepped.claimed]
        assert (await look(session, *ended, rescue=False, everything=False, keep=keep)).saved
        await connection.execute(INSERT, "b", 0)
        stepped = await look(session, rescue=False, everything=False)
        await note(session, stepped)
        assert await entries_read(session) - entries < 200


# Fewer than would fill a page.
SEVERAL = (
    "insert into pgqueuetopia.jobs (scope, queue, action) select 'Test', 'a', 'a' from generate_series(1, 3)"
)


async def note(session: Session, stepped: Stepped) -> None:
    """A step that tells which job runs, and that nothing is behind it."""
    [job] = stepped.claimed
    await look(session, room=0, rescue=False, running=[job], begun={job.id: None})


# Jobs that came and went, of which nothing was kept.
ENDED = """
insert into pgqueuetopia.jobs (scope, queue, action) select 'Test', 'q', 'a' from generate_series(1, 2000);
delete from pgqueuetopia.jobs;
delete from pgqueuetopia.run_queue
"""


@pytest.mark.parametrize("analysed", [0, 1, 20_000])
async def test_a_queue_that_is_acquired_and_runs_dry_does_not_pass_its_dead_jobs(
    dsn: str, connection: Connection, analysed: int
) -> None:
    """Somebody's transaction has them kept. Statistics know nothing, or mislead."""
    if analysed:
        await connection.execute(MISLEADING.format(rows=analysed))
    holder = await asyncpg.connect(dsn)
    async with sessions(dsn, "node") as [session], holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select pg_current_xact_id(), (select count(*) from pgqueuetopia.jobs)")
        await connection.execute(ENDED)
        await eventually(lambda: are_alone(connection, holder, session._connection))
        entries = await entries_read(session)
        for _ in range(10):
            await connection.execute(INSERT, "q", 0)
            stepped = await look(session, rescue=False, everything=False)
            [job] = stepped.claimed
            dry = await look(
                session, replace(done(job), snapshot=stepped.snapshot), rescue=False, everything=False
            )
            assert dry.claimed == []
        assert await entries_read(session) - entries < 10 * 100
    await holder.close()


async def following(session: Session, stepped: Stepped) -> Stepped:
    """The step that settles the one job that another has claimed, and claims the next of its queue."""
    [job] = stepped.claimed
    ended = replace(done(job), snapshot=stepped.snapshot)
    return await look(session, ended, room=1, rescue=False, everything=False)


async def entries_read(session: Session) -> int:
    return (await read(session._connection))[1]
