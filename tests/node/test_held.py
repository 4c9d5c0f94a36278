"""What a node holds, in a fixed order, by the answers of real steps."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from pgqueuetopia import Job, Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Stepped
from pgqueuetopia.node.held import Held
from pgqueuetopia.outcome import SUCCEEDED
from tests.db.steps import look, sessions
from tests.support import an_app

LOCK = "select from pgqueuetopia.jobs where id = $1 for update"
CLAIM_ANEW = "update pgqueuetopia.jobs set claim = claim + 1 where id = $1"


@asynccontextmanager
async def several_held(dsn: str) -> AsyncIterator[tuple[Queuetopia, Session, Held, Job]]:
    """One of a few jobs of a queue that were claimed at once, which is being run."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [session]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 5)
        held = Held(lambda: session.is_fresh, lambda queue: True, lambda: None)
        [head] = (await settle(held, session, [])).claimed
        assert held.end(head, SUCCEEDED, None) is None
        [job] = (await settle(held, session, held.take(halves=True), size=4)).claimed
        yield app, session, held, job


async def settle(held: Held, session: Session, taken: list[Ended], size: int = 1) -> Stepped:
    for one in taken:
        one.size = size
    running = [hold.job for hold in held.running.values()]
    stepped = await look(session, *taken, running=running)
    held.learn(taken, stepped)
    return stepped


def ended(held: Held) -> list[int]:
    return [one.job.id for one in held.ended if one.job]


async def test_what_could_not_be_written_comes_before_what_has_ended_since(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """The last of a queue tells whether the queue is looked at, and from where."""
    async with several_held(dsn) as (_, session, held, job):
        following = held.end(job, SUCCEEDED, None)
        assert following is not None
        taken = held.take(halves=True)
        async with connection.transaction():
            await connection.execute(LOCK, job.id)
            stepped = await look(session, *taken, running=[following])
            held.end(following, SUCCEEDED, None)
            held.learn(taken, stepped)
        assert stepped.busy == {job.id}
        assert ended(held) == [job.id, following.id]


async def test_what_a_step_could_not_settle_comes_before_what_has_ended_since(dsn: str) -> None:
    async with several_held(dsn) as (_, _, held, job):
        following = held.end(job, SUCCEEDED, None)
        assert following is not None
        taken = held.take(halves=True)
        held.end(following, SUCCEEDED, None)
        held.put_back(taken)
        assert ended(held) == [job.id, following.id]


async def test_a_queue_of_which_the_last_outcome_is_lost_is_held_and_looked_at(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with several_held(dsn) as (app, session, held, job):
        await connection.execute(CLAIM_ANEW, job.id)
        held.running["q"].prefetched.clear()
        assert held.end(job, SUCCEEDED, None) is None
        assert not (await settle(held, session, held.take(halves=True))).claimed
        assert [(one.queue, one.job) for one in held.ended] == [("q", None)]
        assert list(held.unsettled()) == ["q"]
        [again] = (await settle(held, session, held.take(halves=True))).claimed
        assert again.id == job.id
        assert (await app.get_job(job)).outcome is None


async def test_what_was_prefetched_is_given_back_where_it_may_not_be_started(dsn: str) -> None:
    async with several_held(dsn) as (_, _, held, job):
        assert held.running["q"].prefetched
        held.running["q"].began = time.monotonic() - 60
        held.give_back_late()
        assert not held.running["q"].prefetched
        assert held.count_starting() == 1
        assert held.begin(job)
        assert held.count_starting() == 0
        assert held.end(job, SUCCEEDED, None) is None
