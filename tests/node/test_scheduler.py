"""Where much has ended a step settles half of it: the other half stays held, and takes up its room."""

from collections import defaultdict
from datetime import timedelta

import asyncpg
import pytest

from pgqueuetopia import Job, NewJob
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Question, Stepped
from pgqueuetopia.node.held import SHARE
from pgqueuetopia.slices import LONGEST_SLICE, SLICE, Slice
from tests.support import Recorder, an_app, eventually

MANY = 3 * SHARE
# An idle node has a few, but none of a queue.
LOCKS = """
select count(*) < 10 from pg_locks l
join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and a.datname = current_database() and a.application_name like 'pgqueuetopia %'
"""
# Whoever locks a queue that is marked as held waits for a report of the job that ran.
TAKEN_FOR_DEAD = "select from pgqueuetopia.jobs where next_attempt_at is not null"
CLAIMED = "select count(*) from pgqueuetopia.jobs where attempted_at is not null and done_at is null"


def jobs(queues: int, each: int) -> list[NewJob]:
    return [NewJob(f"q{n % queues}", "a") for n in range(queues * each)]


SLEEPS = "select pgqueuetopia.is_held('sleeping', 'Test')"


async def test_a_job_that_is_due_since_long_calls_a_node_out_of_its_sleep(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """It looks for what is new first, does not find it there, and looks at everything."""
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        for ago in (0, 3_600):
            await eventually(lambda: connection.fetchval(SLEEPS))
            await app.create_job("q", "a", scheduled_at=timedelta(seconds=-ago))
            await eventually(lambda: performer.performed)
            performer.performed.clear()


async def test_a_node_that_is_called_as_it_falls_asleep_looks_for_the_queues_of_the_dead_all_the_same(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look for them while it is alone: nobody else would find them for a minute."""
    rescues: list[bool] = []
    asleep, step = Session.fall_asleep, Session.step

    async def fall_asleep(self: Session) -> tuple[int, bool]:
        answer = await asleep(self)
        rescues.clear()
        await self._connection.execute("notify pgqueuetopia_jobs, 'Test'")
        return answer

    async def noted(self: Session, question: Question) -> Stepped:
        rescues.append(question.rescue)
        return await step(self, question)

    monkeypatch.setattr(Session, "fall_asleep", fall_asleep)
    monkeypatch.setattr(Session, "step", noted)
    async with an_app(dsn, Recorder()) as app, app.running():
        await eventually(lambda: len(rescues) > 1)
        assert not rescues[0], "called: what is new comes first"
        await eventually(lambda: any(rescues), within=5)


@pytest.mark.parametrize("prefetch", [1, 16])
async def test_what_the_next_step_settles_does_not_run_again_and_is_held_once(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", prefetch: int
) -> None:
    """Jobs come in all the while, and with each a reason to look at its queue."""
    performer = Recorder()
    async with an_app(dsn, performer, concurrency=1_000, prefetch=prefetch) as app:
        created = await app.create_jobs(jobs(MANY, 10))
        async with app.running():
            for _ in range(20):
                created += await app.create_jobs(jobs(MANY, 1))
            await eventually(lambda: len(performer.performed) >= len(created), within=60)
            await eventually(lambda: connection.fetchval(LOCKS))
    assert not await connection.fetch(TAKEN_FOR_DEAD)
    assert by_queue(performer.performed) == by_queue(created)


def by_queue(jobs: list[Job]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for job in jobs:
        found[job.queue].append(job.id)
    return found


async def test_what_the_next_step_settles_takes_up_its_room(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    most = 0
    async with an_app(dsn, performer, concurrency=MANY) as app:
        await app.create_jobs(jobs(3 * MANY, 5))
        async with app.running():
            while len(performer.performed) < 15 * MANY:
                most = max(most, await connection.fetchval(CLAIMED))
    assert MANY / 2 < most <= MANY


def test_a_slice_is_over_by_what_the_jobs_took_or_by_the_time_that_they_have_been_at_it() -> None:
    assert not Slice(since=0.0).is_over(LONGEST_SLICE)
    assert Slice(since=0.0).is_over(LONGEST_SLICE + 0.01)
    assert Slice(since=0.0, used=SLICE + 0.01).is_over(0.2)
