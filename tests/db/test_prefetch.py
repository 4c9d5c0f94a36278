"""Several jobs of a queue claimed at once, in a fixed order: what was prefetched, and what becomes of it."""

from dataclasses import replace
from datetime import timedelta

import anyio
import asyncpg
import pytest
from asyncpg.transaction import Transaction

from pgqueuetopia import Cancelled, Job, Queuetopia
from pgqueuetopia.db.rows import claimed_job_of
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Stepped, settlement_columns
from pgqueuetopia.outcome import SUCCEEDED, Failure, Settlement
from tests.db import failpoints
from tests.db.steps import done, ids, kill, look, rescued, sessions
from tests.db.test_races import STEP_FAILPOINTS
from tests.support import an_app, eventually


async def several(app: Queuetopia, session: Session, jobs: int = 4, **more: object) -> list[Job]:
    """The jobs of a queue behind its first, claimed at once."""
    await app.create_jobs([{"queue": "q", "action": "a", **more}] * (jobs + 1))
    [first] = (await look(session)).claimed
    return jobs_of(await look(session, Ended("q", first, SUCCEEDED, size=16)))


def jobs_of(stepped: Stepped) -> list[Job]:
    """Those that start now, and behind each what was prefetched."""
    return [job for first in stepped.claimed for job in (first, *behind(first, stepped))]


def behind(first: Job, stepped: Stepped) -> list[Job]:
    rows = stepped.prefetched.get(first.queue, [])
    return [claimed_job_of(row, "Test", str(first.attempted_by)) for row in rows]


def one(job: Job, settlement: Settlement = SUCCEEDED, size: int = 16) -> Ended:
    """One of several that has ended."""
    return Ended(job.queue, job, settlement, size=size, one_of_many=True)


def begun(job: Job, *prefetched: Job) -> dict[int, int | None]:
    """The job that runs, with the last that is behind it."""
    return {job.id: prefetched[-1].id if prefetched else None}


async def test_only_the_first_has_started(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        stored = [await app.get_job(job) for job in jobs]
        assert [job.attempts for job in jobs] == [1] * 4, "as the performer is to see them"
        assert [job.attempts for job in stored] == [1, 0, 0, 0]
        assert [job.state for job in stored] == ["executing", "ready", "ready", "ready"]
        assert (await app.status()).executing == 1
        assert [await app.cancel(job) for job in jobs] == [Cancelled.IN_PROGRESS] * 4


async def test_only_the_first_has_started_where_the_last_was_removed_by_hand(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Which was the last is told by the first alone: now each may be one of them."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        *jobs, last = await several(app, a)
        await connection.execute(REMOVE, last.id)
        assert [await app.cancel(job) for job in jobs] == [Cancelled.IN_PROGRESS] * 3


REMOVE = "delete from pgqueuetopia.jobs where id = $1"


@pytest.mark.parametrize("again", [True, False], ids=["tried again", "just acquired"])
async def test_what_is_behind_a_head_that_is_claimed_alone_is_left_alone(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", again: bool
) -> None:
    """Beside a queue that gets several: who holds the next holds up nobody."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await app.create_jobs([{"queue": "q", "action": "a"}] * 3)
        [first] = (await look(a)).claimed
        head, next_ = [await app.create_job("alone", "a") for _ in range(2)]
        ended = [Ended("q", first, SUCCEEDED, size=16)]
        if again:
            [failed] = (await look(a, running=[first])).claimed
            ended.append(one(failed, Settlement.retried(Failure("no"), timedelta(0))))
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", next_.id)
            stepped = await look(a, *ended, over=not again)
        assert not stepped.careful
        assert ids(stepped) == [jobs[1].id, jobs[2].id, head.id]


async def test_their_queue_is_looked_at_when_the_last_has_ended(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        last = await app.create_job("q", "a")
        stepped = await look(a, one(jobs[0]), one(jobs[1]), running=[jobs[2]], begun=begun(*jobs[2:]))
        assert stepped.claimed == []
        assert stepped.saved == {jobs[0].id, jobs[1].id}
        running = await app.get_job(jobs[2])
        assert (running.state, running.attempts) == ("executing", 1)
        assert await app.cancel(jobs[3]) is Cancelled.IN_PROGRESS
        stepped = await look(a, one(jobs[2]), one(jobs[3]))
        assert ids(stepped) == [last.id]
        assert [(await app.get_job(job)).attempts for job in jobs] == [1] * 4


async def test_one_that_was_never_told_of_has_begun_as_long_ago_as_it_ran(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        first, second, *_ = await several(app, a)
        ended = one(second)
        ended.run_time = 0.25
        await look(a, one(first), ended)
        stored = await app.get_job(second)
        assert stored.done_at is not None
        assert stored.attempted_at == stored.done_at - timedelta(seconds=0.25)


async def test_what_is_given_back_is_as_before_and_in_its_place(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        before = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        stepped = await look(a, one(jobs[0]), room=0)
        assert stepped.claimed == []
        stored = [await app.get_job(job) for job in jobs[1:]]
        assert [(job.attempts, job.attempted_at, job.attempted_by, job.state) for job in stored] == [
            (0, None, None, "ready")
        ] * 3
        order = []
        stepped = await look(b)
        while stepped.claimed:
            order += ids(stepped)
            stepped = await look(b, *map(done, stepped.claimed))
        assert order == [job.id for job in (before, *jobs[1:])]


async def test_a_queue_goes_on_with_what_was_given_back_behind_a_success(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        stepped = await look(a, one(jobs[0]), one(jobs[1]))
        assert [job.id for job in jobs_of(stepped)] == [job.id for job in jobs[2:]]


async def test_what_is_given_back_while_another_runs_waits_for_it(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        stepped = await look(a, running=jobs[:1], begun=begun(jobs[0]))
        assert stepped.claimed == []
        assert await app.cancel(jobs[1]) is Cancelled.OK
        assert [job.id for job in jobs_of(await look(a, one(jobs[0])))] == [job.id for job in jobs[2:]]


async def test_nothing_overtakes_one_that_has_failed(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        failed = one(jobs[1], Settlement.retried(Failure("no"), timedelta(hours=1)))
        stepped = await look(a, one(jobs[0]), failed)
        assert stepped.claimed == []
        assert (await app.get_job(jobs[1])).attempts == 1
        await app.retry(jobs[1])
        again = (await look(a)).claimed
        assert [job.id for job in again] == [jobs[1].id]
        stepped = await look(a, Ended("q", again[0], SUCCEEDED, size=16))
        assert [job.id for job in jobs_of(stepped)] == [job.id for job in jobs[2:]]


async def test_one_that_waited_runs_alone(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        again = one(jobs[0], Settlement.retried(Failure("no"), timedelta(0)))
        stepped = await look(a, again)
        assert ids(stepped) == [jobs[0].id]


async def test_what_is_not_due_and_what_is_large_is_not_prefetched(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 3)
        large = await app.create_job("q", "a", {"text": "".join(map(chr, range(0x4E00, 0x5E00)))})
        await app.create_job("q", "a")
        await app.create_job("q", "a", scheduled_at=timedelta(hours=1))
        [first] = (await look(a)).claimed
        jobs = jobs_of(await look(a, Ended("q", first, SUCCEEDED, size=16)))
        assert len(jobs) == 2
        [alone] = (await look(a, *(one(job, size=1) for job in jobs))).claimed
        assert alone.id == large.id
        assert len((await look(a, one(alone))).claimed) == 1, "one for an hour later is behind it"


async def test_no_more_than_asked_for(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a, 8)
        stepped = await look(a, one(jobs[0], size=3))
        assert [job.id for job in jobs_of(stepped)] == [job.id for job in jobs[1:4]]


async def test_several_of_a_queue_take_one_place(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": f"q{n}", "action": "a"} for n in range(4) for _ in range(4)])
        claimed = (await look(a, room=2)).claimed
        stepped = await look(a, *(Ended(job.queue, job, SUCCEEDED, size=3) for job in claimed), room=3)
        assert len(stepped.claimed) == 3
        assert len(jobs_of(stepped)) == 3 + 3 + 1


async def test_a_queue_that_is_acquired_gets_several_where_they_are_asked_for(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        first, second = [await app.create_jobs([{"queue": q, "action": "a"}] * 4) for q in "pq"]
        stepped = await look(a, room=2, size=3)
        assert len(stepped.claimed) == 2
        assert ids(stepped) == [job.id for job in (*first[:3], *second[:3])]
        assert [await app.cancel(job) for job in second] == [*[Cancelled.IN_PROGRESS] * 3, Cancelled.OK]
        stepped = await look(a, *map(one, jobs_of(stepped)))
        assert ids(stepped) == [first[3].id]


async def test_one_that_waited_runs_alone_where_its_queue_is_acquired(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        await look(a, one(jobs[0], Settlement.retried(Failure("no"), timedelta(0))), room=0)
        stepped = await look(a, size=3)
        assert ids(stepped) == [jobs[0].id]


async def test_who_listens_is_told_of_each_start_before_the_next(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a], app.events():
        await app.create_jobs([{"queue": "q", "action": "a"}] * 3)
        [first] = (await look(a)).claimed
        assert len(jobs_of(await look(a, Ended("q", first, SUCCEEDED, size=16)))) == 1
        await app.create_jobs([{"queue": "p", "action": "a"}] * 3)
        assert len(jobs_of(await look(a, size=16))) == 1


async def test_a_dead_nodes_jobs_run_in_order_and_those_prefetched_have_spent_nothing(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        await kill(dsn, "a")
        stepped = await rescued(b)
        ran = []
        while stepped.claimed:
            ran += [(job.id, job.attempts) for job in stepped.claimed]
            stepped = await look(b, *map(done, stepped.claimed))
        assert ran == [(jobs[0].id, 2), *((job.id, 1) for job in jobs[1:])]


async def test_a_dead_nodes_jobs_keep_their_order_where_it_is_not_that_of_their_ids(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        for hours in range(6):
            await app.create_job("q", "a", scheduled_at=timedelta(hours=-hours))
        [first] = (await look(a)).claimed
        jobs = jobs_of(await look(a, Ended("q", first, SUCCEEDED, size=16)))
        await kill(dsn, "a")
        ran, stepped = [], await rescued(b)
        while stepped.claimed:
            ran += ids(stepped)
            stepped = await look(b, *map(done, stepped.claimed))
        assert ran == [5, 4, 3, 2, 1] == [job.id for job in jobs]


@pytest.mark.parametrize("place", STEP_FAILPOINTS)
async def test_a_node_that_dies_anywhere_in_a_step_of_several_loses_nothing(
    racing_dsn: str, place: str
) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        await app.create_jobs([{"queue": queue, "action": "a"} for queue in ("q", "q", "other")])
        plain, telling = map(one, jobs[:2])
        telling.result = "1"
        await failpoints.die_at(racing_dsn, place, "a", look(a, plain, telling))
        written = jobs[:2] if place == "committed" else []
        expected = [
            job.id for job in await app.list_jobs(queue="q") if job.id not in (1, *map(id_of, written))
        ]
        ran: list[int] = []
        ended: list[Ended] = []
        while len(ran) < len(expected) + 1:
            stepped = await rescued(b, *ended)
            ran += [job.id for job in jobs_of(stepped)]
            ended = [one(job) for job in jobs_of(stepped)]
        await look(b, *ended)
        assert [n for n in ran if n in expected] == expected
        assert (await app.list_jobs(state="succeeded")).total == 8


def id_of(job: Job) -> int:
    return job.id


async def test_one_that_comes_in_ahead_is_run_once_those_that_were_claimed_have_ended(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        assert ids(await look(a, *map(one, jobs))) == [ahead.id]


async def test_of_a_dead_nodes_jobs_the_one_that_it_told_of_has_spent_an_attempt(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        await look(a, one(jobs[0]), running=[jobs[1]], begun=begun(*jobs[1:]))
        await kill(dsn, "a")
        [again] = (await rescued(b)).claimed
        assert (again.id, again.attempts) == (jobs[1].id, 2)
        assert [(await app.get_job(job)).attempted_by for job in jobs[2:]] == [None, None]


async def test_what_a_dead_node_tells_late_counts_until_its_queue_is_taken(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        await look(a, one(jobs[0]), running=[jobs[1]], begun=begun(*jobs[1:]))
        await kill(dsn, "a")
        first, second, third = jobs[1:]
        assert await late(app, second) == [second.id]
        assert (await app.get_job(second)).attempts == 1
        assert (await look(b)).claimed == [], "its node may not know yet that it was ended"
        assert await late(app, first, third) == [first.id], "it waits for this one's report alone"
        assert ids(await rescued(b)) == [third.id]


async def test_what_is_behind_a_dead_nodes_job_is_left_alone_where_nothing_was_prefetched(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first, *behind = await app.create_jobs([{"queue": "q", "action": "a"}] * 3)
        assert ids(await look(a)) == [first.id]
        await kill(dsn, "a")
        assert ids(await rescued(b)) == [first.id]
        assert [(await app.get_job(job)).claim for job in (first, *behind)] == [2, 0, 0]


async def test_what_a_dead_node_tells_later_does_not_count_where_the_last_was_removed_by_hand(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first, second, third, last = await several(app, a)
        await connection.execute(REMOVE, last.id)
        await kill(dsn, "a")
        assert (await look(b)).claimed == [], "its node may not know yet that it was ended"
        assert await late(app, first, second, third) == [first.id]
        assert ids(await rescued(b)) == [second.id]


async def late(app: Queuetopia, *jobs: Job) -> list[int]:
    """Tell of jobs without a session, as node a; returns of which it counts."""
    columns = settlement_columns([one(job) for job in jobs], "a")
    return await app.repo.persist("Test", "a", columns, keep=True)


async def test_each_run_of_a_job_has_a_larger_claim_though_nothing_is_written_to_what_is_prefetched(
    dsn: str,
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        await kill(dsn, "a")
        [again] = (await rescued(b)).claimed
        claimed = jobs_of(await look(b, Ended("q", again, SUCCEEDED, size=16)))
        assert [job.id for job in claimed] == [job.id for job in jobs[1:]]
        # The second is the head now, and was prefetched before.
        assert [now.claim - before.claim for now, before in zip(claimed, jobs[1:], strict=True)] == [2, 1, 1]
        assert await late(app, *jobs[1:]) == []


async def test_of_two_that_a_dead_node_has_started_the_first_waits_for_its_report(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """The end of the first could not be written yet: somebody had locked it."""
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first, second, *others = await several(app, a)
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", first.id)
            stepped = await look(a, one(first), running=[second], begun=begun(second, *others))
            assert stepped.busy == {first.id}
        await kill(dsn, "a")
        ran, stepped = [], await rescued(b)
        assert (await app.get_job(second)).next_attempt_at is None
        while stepped.claimed:
            ran += [(job.id, job.attempts) for job in stepped.claimed]
            stepped = await look(b, *map(done, stepped.claimed))
        assert ran == [(first.id, 2), (second.id, 2), *((job.id, 1) for job in others)]


async def test_who_has_looked_at_a_job_before_it_was_prefetched_cannot_cancel_it(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 3)
        [first] = (await look(a)).claimed
        operator = await asyncpg.connect(racing_dsn, server_settings={"application_name": "x operator"})
        answers: list[str] = []

        async def cancel() -> None:
            answers.append(await operator.fetchval("select pgqueuetopia.end_job('Test', 3, 'cancelled')"))

        async with (
            failpoints.stopping(racing_dsn, "queue tried", "operator") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(cancel)
            await stop.reached()
            assert len(jobs_of(await look(a, Ended("q", first, SUCCEEDED, size=16)))) == 2
            await stop.release()
        await operator.close()
        assert answers == ["IN_PROGRESS"]


async def test_one_that_is_being_cancelled_is_not_prefetched(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 4)
        [first] = (await look(a)).claimed
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select pgqueuetopia.end_job('Test', 3, 'cancelled')")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit_once_waited_for, dsn, transaction)
            stepped = await look(a, Ended("q", first, SUCCEEDED, size=16))
        assert [job.id for job in jobs_of(stepped)] == [2, 4]


async def commit_once_waited_for(dsn: str, transaction: Transaction) -> None:
    watcher = await asyncpg.connect(dsn)
    await eventually(
        lambda: watcher.fetch("select from pg_locks where locktype = 'transactionid' and not granted")
    )
    await watcher.close()
    await transaction.commit()


async def test_a_queue_is_not_looked_at_while_one_of_several_cannot_be_written(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = await several(app, a)
        ended = [one(jobs[0]), one(jobs[1])]
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", jobs[0].id)
            stepped = await look(a, *ended)
            assert stepped.claimed == []
            assert stepped.busy == {jobs[0].id}
            assert (await look(a, ended[0])).claimed == []
        assert [job.id for job in jobs_of(await look(a, ended[0]))] == [job.id for job in jobs[2:]]


async def test_where_it_cannot_be_noted_which_runs_the_node_is_told(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        first, *rest = await several(app, a)
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", rest[0].id)
            assert (await look(a, one(first), running=rest[:1], begun=begun(*rest))).careful
        stepped = await look(a, running=rest[:1], begun=begun(*rest), careful=True)
        assert not stepped.careful
        assert [await app.cancel(job) for job in rest] == [Cancelled.IN_PROGRESS] * 3


async def test_a_queue_is_not_looked_at_where_the_last_of_several_is_not_written(dsn: str) -> None:
    """Nor let go: its node looks at it anew."""
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        stale = replace(jobs[1], claim=jobs[1].claim + 1)
        stepped = await look(a, one(jobs[0]), one(stale))
        assert stepped.saved == {jobs[0].id}
        assert stepped.claimed == []
        assert (await look(b)).claimed == []
        assert ids(await look(a, Ended("q"))) == [jobs[1].id]


@pytest.mark.parametrize("topic", [True, False])
async def test_a_job_that_cannot_be_written_holds_its_queue_back_and_a_topics_job_none(
    connection: "asyncpg.Connection[asyncpg.Record]", topic: bool
) -> None:
    busy = await connection.fetchval(
        "insert into pgqueuetopia.jobs (scope, queue, action, topic) values ('T', 'q', 'a', $1) returning id",
        topic,
    )
    queues = await connection.fetchval(
        "select (pgqueuetopia.settled('{p,q}', '{7,8}', '{}', '{}', '{}', '{7,8}', array[$1::int8])).queues",
        busy,
    )
    assert queues == (["p", "q"] if topic else ["p"])


async def test_no_two_nodes_run_a_queue_of_which_several_are_claimed(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        jobs = await several(app, a)
        assert (await look(b)).claimed == []
        await look(a, one(jobs[0]), running=[jobs[1]], begun=begun(*jobs[1:]))
        await app.create_job("q", "a")
        assert (await look(b)).claimed == []
        await look(a, running=[jobs[1]], begun=begun(jobs[1]))
        assert (await look(b)).claimed == []


@pytest.mark.parametrize("careful", [True, False])
async def test_a_careful_step_claims_one_at_a_time(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", careful: bool
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 4)
        [first] = (await look(a)).claimed
        stepped = await look(a, Ended("q", first, SUCCEEDED, size=16), careful=careful)
        assert len(jobs_of(stepped)) == (1 if careful else 3)
