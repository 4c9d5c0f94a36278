"""Jobs that are not kept go as they end, most of them by one deletion, and leave what the others leave."""

from datetime import timedelta

import asyncpg
import pytest

from pgqueuetopia import Job, Ok, Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Stepped
from pgqueuetopia.outcome import Failure, Settlement
from tests.db.steps import done, ids, look, sessions
from tests.support import an_app

BOOM = Failure("boom")


async def settled(session: Session, *ended: Ended) -> Stepped:
    return await look(session, *ended, keep=False)


async def count(app: Queuetopia) -> int:
    return int((await app.list_jobs()).total)


@pytest.mark.parametrize(
    "settlement",
    [Settlement.succeeded(None), Settlement.succeeded(1), Settlement.abandoned(BOOM), Settlement.cancelled()],
    ids=["plain", "result", "abandoned", "cancelled"],
)
async def test_it_goes_and_the_next_of_its_queue_is_claimed(dsn: str, settlement: Settlement) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = [await app.create_job("q", "a") for _ in range(2)]
        [first] = (await look(a)).claimed
        stepped = await settled(a, Ended("q", first, settlement))
        assert stepped.saved == {jobs[0].id}
        assert ids(stepped) == [jobs[1].id]
        assert await count(app) == 1


async def test_of_several_that_end_at_once_those_that_go_on_stay(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        for queue in ("fine", "late", "moved"):
            await app.create_job(queue, "a")
        fine, late, moved = sorted((await look(a)).claimed, key=lambda job: job.queue)
        stepped = await settled(
            a,
            Ended("late", late, Settlement.retried(BOOM, timedelta(hours=1))),
            Ended("moved", moved, Settlement.moved(BOOM, "elsewhere")),
            done(fine),
        )
        assert stepped.saved == {fine.id, late.id, moved.id}
        assert sorted(job.queue for job in await app.list_jobs()) == ["elsewhere", "late"]


async def test_one_whose_reply_somebody_waits_for_is_replied_to(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        job = await app.create_job("q", "a", reply=True)
        await settled(a, *map(done, (await look(a)).claimed))
        assert await app.reply(job) == Ok(None)
        assert await count(app) == 0


async def test_one_that_had_failed_before(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = [await app.create_job("q", "a") for _ in range(2)]
        [first] = (await look(a)).claimed
        [again] = (await look(a, Ended("q", first, Settlement.retried(BOOM, timedelta(0))))).claimed
        assert ids(await settled(a, done(again))) == [jobs[1].id]
        assert await count(app) == 1


async def test_one_that_another_node_has_claimed_since_is_not_deleted(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a")
        [job] = (await look(a)).claimed
        await claim_again(dsn, job)
        assert (await settled(a, done(job))).saved == frozenset()
        assert await count(app) == 1


async def claim_again(dsn: str, job: Job) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("update pgqueuetopia.jobs set claim = claim + 1 where id = $1", job.id)
    await connection.close()


async def test_one_that_somebody_has_locked_is_busy_and_deleted_later(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        for queue in ("free", "locked"):
            await app.create_job(queue, "a")
        free, locked = sorted((await look(a)).claimed, key=lambda job: job.queue)
        async with connection.transaction():
            await connection.fetch("select from pgqueuetopia.jobs where id = $1 for update", locked.id)
            stepped = await settled(a, done(free), done(locked))
            assert stepped.saved == {free.id}
            assert stepped.busy == {locked.id}
        assert (await settled(a, done(locked))).saved == {locked.id}
        assert await count(app) == 0
