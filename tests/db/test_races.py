"""Races in a fixed order: two sessions, stopped between the statements of step()."""

from datetime import timedelta
from pathlib import Path

import anyio
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Job, Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Stepped, settlement_columns
from pgqueuetopia.outcome import SUCCEEDED, Failure, Settlement
from tests.db import failpoints
from tests.db.steps import done, ids, kill, look, rescued, sessions
from tests.support import ADVISORY_LOCKS, Recorder, an_app, eventually

STRANDED = Path(__file__).with_name("stranded.sql").read_text(encoding="utf-8")
STEP_FAILPOINTS = [
    "scanned",
    "locked",
    "plain ones written",
    "replied",
    "moved",
    "persisted",
    "taken",
    "before look",
    "looked",
    "before acquire",
    "before commit",
    "committed",
]


async def test_a_job_that_another_node_has_just_finished_is_not_run_again(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        first, second = [await app.create_job("q", "a") for _ in range(2)]
        [claimed] = (await look(a)).claimed
        assert claimed.id == first.id
        results: list[Stepped] = []

        async def look_from_b() -> None:
            results.append(await look(b))

        async with (
            failpoints.stopping(racing_dsn, "scanned", "b") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look_from_b)
            await stop.reached()
            assert (await look(a, done(claimed), room=0, over=True)).claimed == []
            await stop.release()
        assert ids(results[0]) == [], "the row by which it came to the queue is gone"
        assert not await is_locked(racing_dsn, "q")
        running = (await look(b)).claimed
        assert [job.id for job in running] == [second.id]
        await app.create_job("q", "a")
        await look(b, running=running, rescue=False)
        await kill(racing_dsn, "b")
        assert await stranded(racing_dsn) == []


async def stranded(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch(STRANDED)
    await connection.close()
    return found


async def test_nobody_claims_before_the_outcome_has_committed(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        failing = await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        results: list[Stepped] = []

        async def fail() -> None:
            await look(a, retried(claimed, timedelta(hours=1)))

        async def look_from_b() -> None:
            results.append(await look(b))

        async with (
            failpoints.stopping(racing_dsn, "before commit", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(fail)
            await stop.reached()
            await app.create_job("q", "a")
            assert await is_locked(racing_dsn, "q")
            tasks.start_soon(look_from_b)
            await eventually(lambda: results)
            await stop.release()
        assert ids(results[0]) == [], "the job that failed waits for an hour"
        assert ids(await look(b)) == []
        assert (await app.get_job(failing)).state == "retrying"


def retried(job: Job, delay: timedelta) -> Ended:
    return Ended(job.queue, job, Settlement.retried(Failure("no"), delay))


async def is_locked(dsn: str, queue: str) -> bool:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch(
        f"select from {ADVISORY_LOCKS} where granted and mode = 'ExclusiveLock'"
        " and (classid::bigint << 32) | objid::bigint = pgqueuetopia.lock_key('queue', 'Test', $1)",
        queue,
    )
    await connection.close()
    return bool(found)


async def test_a_queue_is_still_locked_between_commit_and_unlock(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        _, second = [await app.create_job("q", "a") for _ in range(2)]
        [claimed] = (await look(a)).claimed

        async def finish() -> None:
            await look(a, done(claimed), room=0, over=True)

        async with (
            failpoints.stopping(racing_dsn, "committed", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(finish)
            await stop.reached()
            contended = await look(b)
            assert ids(contended) == []
            assert contended.next_ready_in is not None
            assert contended.next_ready_in <= 0.05
            await stop.release()
        assert ids(await look(b)) == [second.id]


async def test_a_job_that_commits_between_look_and_commit_is_not_stranded(
    racing_dsn: str,
) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        creator = await asyncpg.connect(racing_dsn)
        transaction = creator.transaction()
        await transaction.start()
        late = await app.create_job("q", "a", conn=creator)

        async def finish() -> None:
            assert ids(await look(a, done(claimed))) == []

        async with (
            failpoints.stopping(racing_dsn, "before commit", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(finish)
            await stop.reached()
            await transaction.commit()
            await stop.release()
        assert await creator.fetch(STRANDED) == []
        await creator.close()
        assert ids(await look(a)) == [late.id]


async def test_a_job_that_commits_after_the_look_at_a_queue_is_not_stranded(racing_dsn: str) -> None:
    """Its row is there when the queue, found empty, is let go."""
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed

        async def finish() -> None:
            assert ids(await look(a, done(claimed), room=0)) == []

        async with (
            failpoints.stopping(racing_dsn, "looked", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(finish)
            await stop.reached()
            late = await app.create_job("q", "a")
            await stop.release()
        assert await stranded(racing_dsn) == []
        assert ids(await look(a)) == [late.id]


@pytest.mark.parametrize("change", ["queue = 'other'", "scheduled_at = now() + interval '1 hour'"])
async def test_a_job_that_is_moved_by_hand_between_look_and_claim_is_not_run_where_it_was(
    racing_dsn: str, change: str
) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        moved, stays = [await app.create_job("q", "a") for _ in range(2)]
        results: list[Stepped] = []

        async def look_from_a() -> None:
            results.append(await look(a))

        async with (
            failpoints.stopping(racing_dsn, "taken", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look_from_a)
            await stop.reached()
            connection = await asyncpg.connect(racing_dsn)
            await connection.execute(f"update pgqueuetopia.jobs set {change} where id = $1", moved.id)
            await connection.close()
            await stop.release()
        assert (results[0].claimed, results[0].again) == ([], ["q"])
        stepped = await look(a, Ended("q"))
        assert [job.id for job in stepped.claimed if job.queue == "q"] == [stays.id]


async def test_a_job_that_commits_after_the_look_at_a_queue_that_goes_on_is_not_stranded(
    racing_dsn: str,
) -> None:
    """The drained queue's new row must not be taken for a surplus one by the scan that follows."""
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        other = await app.create_job("other", "a")
        creator = await asyncpg.connect(racing_dsn)
        transaction = creator.transaction()
        await transaction.start()
        late = await app.create_job("q", "a", conn=creator)
        running: list[Job] = []

        async def finish() -> None:
            running.extend((await look(a, done(claimed))).claimed)
            assert [job.id for job in running] == [other.id]

        async with (
            failpoints.stopping(racing_dsn, "before acquire", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(finish)
            await stop.reached()
            await transaction.commit()
            await stop.release()
        await creator.close()
        assert ids(await look(a, running=running)) == [late.id]


@pytest.mark.parametrize("place", ["replied", "moved", "before commit", "committed"])
async def test_a_job_that_is_moved_is_there_once_wherever_its_node_dies(racing_dsn: str, place: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        await app.create_job("q", "a", {"x": 1}, reply=True)
        [claimed] = (await look(a)).claimed
        moved = Ended("q", claimed, Settlement.moved(Failure("no"), "dead"))
        await failpoints.die_at(racing_dsn, place, "a", look(a, moved))
        dead = await app.list_jobs(queue="dead")
        assert (await app.get_job(claimed)).outcome == ("moved" if place == "committed" else None)
        assert len(dead) == (place == "committed")
        if not dead:
            [again] = (await rescued(b)).claimed
            await look(b, Ended("q", again, Settlement.moved(Failure("no"), "dead")))
            dead = await app.list_jobs(queue="dead")
        [copy] = dead
        assert (copy.params, copy.moved_from, copy.reply) == ({"x": 1}, claimed.id, True)
        assert (await app.get_job(claimed)).outcome == "moved"


@pytest.mark.parametrize("place", STEP_FAILPOINTS)
async def test_a_node_that_dies_anywhere_in_a_step_loses_nothing(racing_dsn: str, place: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        await app.create_jobs([{"queue": f"q{n % 3}", "action": "a"} for n in range(6)])
        claimed = (await look(a, room=2)).claimed
        plain, telling = map(done, claimed)
        telling.result = "1"
        await failpoints.die_at(racing_dsn, place, "a", look(a, plain, telling, room=3, over=True))
        ran: list[int] = []
        ended: list[Ended] = []
        while len(ran) < 6 - (len(claimed) if place == "committed" else 0):
            stepped = await rescued(b, *ended)
            ran += ids(stepped)
            ended = [done(job) for job in stepped.claimed]
        await look(b, *ended)
        finished = {job.id for job in claimed} if place == "committed" else set()
        assert sorted(ran) == sorted(set(range(1, 7)) - finished)
        for queue in ("q0", "q1", "q2"):
            in_queue = [job.id for job in await app.list_jobs(queue=queue)]
            assert [n for n in ran if n in in_queue] == [n for n in in_queue if n in ran]
        assert (await app.list_jobs(state="succeeded")).total == 6


async def test_nothing_overtakes_a_job_whose_node_died(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first = await app.create_job("q", "a")
        assert ids(await look(a)) == [first.id]
        await kill(dsn, "a")
        earlier = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        [again] = (await rescued(b)).claimed
        assert (again.id, again.attempts, again.claim) == (first.id, 2, 2)
        assert ids(await look(b, done(again))) == [earlier.id]


async def test_what_a_dead_node_ran_waits_a_little_however_often_it_was_run_before(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        job = await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        [claimed] = (await look(a, retried(claimed, timedelta(0)))).claimed
        assert claimed.attempts == 2
        await kill(dsn, "a")
        assert (await look(b)).claimed == [], "its node may not know yet that it was ended"
        assert ids(await rescued(b)) == [job.id]


async def test_what_a_dead_node_ran_and_somebody_has_locked_holds_up_no_other_queue(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        locked = await app.create_job("q", "a")
        await look(a)
        await kill(dsn, "a")
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", locked.id)
            behind, other = await app.create_job("q", "a"), await app.create_job("other", "a")
            # Not by the row that its node has taken, but by that of the job behind it.
            stepped = await look(b, rescue=False)
            assert ids(stepped) == [other.id]
        again = await rescued(b, *map(done, stepped.claimed))
        assert ids(again) == [locked.id], "nothing has overtaken it"
        assert (await app.get_job(behind)).attempts == 0


@pytest.mark.parametrize(
    "settlement",
    [
        Settlement.retried(Failure("no"), timedelta(minutes=1)),
        Settlement.blocked(Failure("no")),
        Settlement.snoozed(timedelta(minutes=1)),
        Settlement.abandoned(Failure("no")),
        Settlement.moved(Failure("no"), "dead"),
    ],
    ids=["retried", "blocked", "snoozed", "abandoned", "moved"],
)
async def test_an_outcome_of_which_the_node_has_not_heard_that_it_was_written_is_written_once(
    racing_dsn: str, settlement: Settlement
) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        [again] = (await look(a, retried(claimed, timedelta(0)))).claimed
        ended = Ended("q", again, settlement)
        await failpoints.die_at(racing_dsn, "committed", "a", look(a, ended))
        written = await app.get_job(again)
        columns = settlement_columns([ended], "a")
        assert await app.repo.persist("Test", "a", columns, keep=True) == []
        assert await app.get_job(again) == written
        assert (await app.list_jobs(queue="dead")).total == (written.outcome == "moved")


async def test_an_outcome_of_which_the_node_has_not_heard_does_not_end_a_job_that_was_brought_back(
    racing_dsn: str,
) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        job = await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        await failpoints.die_at(racing_dsn, "committed", "a", look(a, done(claimed)))
        await app.retry(job)
        columns = settlement_columns([done(claimed)], "a")
        assert await app.repo.persist("Test", "a", columns, keep=True) == []
        assert ids(await look(b)) == [job.id]


async def test_a_job_that_waits_equally_long_each_time_fails_each_time(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        job = await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        await look(a, retried(claimed, timedelta(milliseconds=1)))
        [again] = (await rescued(a)).claimed
        await look(a, retried(again, timedelta(milliseconds=1)))
        assert len((await app.get_job(job)).errors) == 2


async def test_the_report_of_a_node_that_lost_its_session_ends_the_wait_for_it(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        job = await app.create_job("q", "a")
        [claimed] = (await look(a)).claimed
        await kill(dsn, "a")
        assert (await look(b)).claimed == []
        stopped = Ended(claimed.queue, claimed, Settlement.interrupted())
        assert await app.repo.persist("Test", "a", settlement_columns([stopped], "a"), keep=True) == [job.id]
        assert ids(await look(b)) == [job.id]


async def test_a_job_that_comes_in_ahead_of_a_queue_that_goes_on_is_the_next(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        first, second = [await app.create_job("q", "a") for _ in range(2)]
        [claimed] = (await look(a)).claimed
        assert claimed.id == first.id
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        [claimed] = (await look(a, done(claimed))).claimed
        assert claimed.id == ahead.id
        [claimed] = (await look(a, done(claimed))).claimed
        assert claimed.id == second.id


@pytest.mark.parametrize("rescue", [False, True])
async def test_a_job_that_comes_in_ahead_while_steps_pass_is_the_next(dsn: str, rescue: bool) -> None:
    """What the steps remove of rows behind a job that runs does not stand for it."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        first, second = [await app.create_job("q", "a") for _ in range(2)]
        stepped = await look(a)
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        await app.create_job("q", "a")
        for room in (10, 0):
            passed = await look(a, running=stepped.claimed, rescue=rescue, room=room)
            assert passed.claimed == []
        [claimed] = stepped.claimed
        assert claimed.id == first.id
        stepped = await look(a, Ended("q", claimed, SUCCEEDED, snapshot=stepped.snapshot))
        assert ids(stepped) == [ahead.id]
        [claimed] = stepped.claimed
        assert ids(await look(a, Ended("q", claimed, SUCCEEDED, snapshot=stepped.snapshot))) == [second.id]


async def test_a_job_of_a_transaction_that_commits_while_the_one_behind_it_runs_is_the_next(dsn: str) -> None:
    """It began first, so it is ahead; its row is older than the look at which the other one was claimed."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        creator = await asyncpg.connect(dsn)
        transaction = creator.transaction()
        await transaction.start()
        late = await app.create_job("q", "a", conn=creator)
        first = await app.create_job("q", "a")
        stepped = await look(a)
        assert ids(stepped) == [first.id]
        await transaction.commit()
        await creator.close()
        await app.create_job("q", "a")
        await look(a, running=stepped.claimed)
        [claimed] = stepped.claimed
        assert ids(await look(a, Ended("q", claimed, SUCCEEDED, snapshot=stepped.snapshot))) == [late.id]


async def test_a_job_that_came_in_ahead_of_one_that_waited_is_the_next(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        waited = await app.create_job("q", "a")
        stepped = await look(a)
        await look(a, failed(stepped, timedelta(0)), room=0, over=True)
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        await app.create_job("q", "a")
        stepped = await look(a)
        assert ids(stepped) == [waited.id], "nothing overtakes it"
        assert ids(await look(a, ended(stepped))) == [ahead.id]


def ended(stepped: Stepped) -> Ended:
    """Of the one job that a step has claimed."""
    [job] = stepped.claimed
    return Ended(job.queue, job, SUCCEEDED, snapshot=stepped.snapshot)


def failed(stepped: Stepped, delay: timedelta) -> Ended:
    [job] = stepped.claimed
    return Ended(job.queue, job, Settlement.retried(Failure("no"), delay), snapshot=stepped.snapshot)


async def test_a_queue_that_is_acquired_by_a_late_row_begins_with_what_was_left_of_it(dsn: str) -> None:
    """Its slice was over: the row that it left is due later, and stands for jobs before the late one."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a", scheduled_at=timedelta(hours=-2))
        second = await app.create_job("q", "a", scheduled_at=timedelta(hours=-2))
        stepped = await look(a)
        await look(a, ended(stepped), room=0, over=True)
        late = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        stepped = await look(a)
        assert ids(stepped) == [second.id]
        assert ids(await look(a, ended(stepped))) == [late.id]


async def test_a_job_ahead_of_one_that_waits_is_run_when_that_is_cancelled(dsn: str) -> None:
    """The row of a queue whose head waits stands for all its jobs, wherever they are."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        waits = await app.create_job("q", "a")
        await look(a, failed(await look(a), timedelta(hours=1)), over=True)
        ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
        assert ids(await look(a)) == []
        await app.cancel(waits)
        assert ids(await look(a)) == [ahead.id]


async def test_a_job_that_commits_between_lock_and_look_ahead_of_all_others_is_the_first(
    racing_dsn: str,
) -> None:
    """The row by which the queue was locked names a later place."""
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        results: list[Stepped] = []

        async def look_from_a() -> None:
            results.append(await look(a))

        async with (
            failpoints.stopping(racing_dsn, "locked", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look_from_a)
            await stop.reached()
            ahead = await app.create_job("q", "a", scheduled_at=timedelta(hours=-1))
            await stop.release()
        assert ids(results[0]) == [ahead.id]


async def test_a_job_that_is_brought_back_takes_its_old_place_in_a_queue_that_goes_on(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        jobs = [await app.create_job("q", "a") for _ in range(4)]
        await app.cancel(jobs[0])
        await app.cancel(jobs[3])
        [claimed] = (await look(a)).claimed
        await app.retry(jobs[3])
        await app.retry(jobs[0])
        order = [claimed]
        for _ in range(3):
            order += (await look(a, done(order[-1]))).claimed
        assert [job.id for job in order] == [jobs[n].id for n in (1, 0, 2, 3)]


async def test_a_job_that_kills_its_node_is_abandoned_like_any_other(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        poison = await app.create_job("q", "poison", max_attempts=10)
        behind = await app.create_job("q", "work")
        for n in range(10):
            async with sessions(dsn, f"n{n}") as [session]:
                assert ids(await rescued(session)) == [poison.id]
                await kill(dsn, f"n{n}")
        async with app.running():
            await eventually(lambda: performer.performed)
        abandoned = await app.get_job(poison)
    assert performer.ids == [behind.id]
    assert (abandoned.state, abandoned.attempts) == ("abandoned", 10)
    assert "died" in abandoned.errors[-1]["error"]


async def test_a_job_that_kills_its_node_in_its_last_attempt_blocks_its_queue_where_that_was_asked_for(
    dsn: str,
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, on_exhausted="block") as app:
        poison = await app.create_job("q", "poison", max_attempts=1)
        async with sessions(dsn, "a") as [a]:
            assert ids(await look(a)) == [poison.id]
            await kill(dsn, "a")
        async with app.running():
            await eventually(lambda: blocked_for_good(app))
            other = await app.create_job("other", "a")
            await eventually(lambda: performer.performed)
            assert await blocked_for_good(app) == [poison.id]
        stored = await app.get_job(poison)
    assert performer.ids == [other.id]
    # It was claimed twice, by the node that died and by the one that found it, and has failed once.
    assert (stored.claim, len(stored.errors)) == (2, 1)


async def blocked_for_good(app: Queuetopia) -> list[int]:
    """The jobs that wait for an operator."""
    return [blocked.head for blocked in await app.blocked_queues() if blocked.next_attempt_at is None]


async def test_a_row_left_by_a_dead_node_is_taken_only_by_a_rescue(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [_, b]:
        async with sessions(dsn, "c") as [c]:
            job = await app.create_job("q", "a")
            assert ids(await look(c)) == [job.id]
            assert ids(await look(b)) == [], "c holds it"
            await kill(dsn, "c")
        assert ids(await look(b, rescue=False)) == []
        assert ids(await rescued(b)) == [job.id]


async def test_a_late_outcome_is_fenced_by_the_claim(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        await app.create_job("q", "a")
        [late] = (await look(a)).claimed
        await kill(dsn, "a")
        [again] = (await rescued(b)).claimed
        columns = settlement_columns([done(late)], "a")
        assert await app.repo.persist("Test", "a", columns, keep=True) == []
        assert (await app.get_job(late)).state == "executing"
        assert (await look(b, done(again))).saved == {again.id}


@pytest.mark.parametrize("late", [0, 1], ids=["the first", "the second"])
async def test_of_several_outcomes_each_is_fenced_by_its_own_claim(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", late: int
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": queue, "action": "a"} for queue in "pq"])
        claimed = (await look(a)).claimed
        other = claimed.pop(1 - late)
        # Claimed twice, and the late one since: in the database it has the claim that the other one tells of.
        [other] = (
            await look(a, Ended(other.queue, other, Settlement.interrupted()), running=claimed)
        ).claimed
        await connection.execute("update pgqueuetopia.jobs set claim = 2 where id = $1", claimed[0].id)
        assert (claimed[0].claim, other.claim) == (1, 2)
        stepped = await look(a, done(other), done(claimed[0]))
        assert stepped.saved == {other.id}
        assert (await app.get_job(claimed[0])).done_at is None


async def test_a_late_outcome_that_nobody_else_claimed_is_saved(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a")
        [late] = (await look(a)).claimed
        await kill(dsn, "a")
        assert await app.repo.persist("Test", "a", settlement_columns([done(late)], "a"), keep=True) == [
            late.id
        ]
        assert (await app.get_job(late)).state == "succeeded"


async def test_a_second_row_of_a_held_queue_is_surplus(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a")
        running = (await look(a)).claimed
        for _ in range(3):
            await app.create_job("q", "a")
        assert ids(await look(a, running=running, rescue=False)) == []
        assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue") == 1


@pytest.mark.parametrize("room", [1, 10])
async def test_the_rows_of_a_queue_that_goes_on_and_on_do_not_pile_up(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", room: int
) -> None:
    """It is never let go, for it is never empty when its job has ended."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": "q", "action": "a"}] * 2)
        stepped = await look(a)
        for number in range(30):
            await app.create_job("q", "a")
            [claimed] = stepped.claimed
            ended = Ended("q", claimed, SUCCEEDED, snapshot=stepped.snapshot)
            stepped = await look(a, ended, room=room, over=number % 3 == 2)
        assert len(stepped.claimed) == 1
        assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue") <= 2 + 3


async def test_rows_behind_a_running_job_are_tidied_even_by_a_node_that_is_full(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a")
        running = (await look(a)).claimed
        for _ in range(3):
            await app.create_job("q", "a")
        await look(a, running=running, room=0)
        assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue") == 1


@pytest.mark.parametrize("dies", [False, True], ids=["ends", "dies"])
async def test_a_queue_that_came_from_another_server_by_a_dump_leaves_no_row_that_is_taken(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", dies: bool
) -> None:
    """Its row tells of a transaction that is still to come here: as if nobody could see it yet."""
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        first, second = [await app.create_job("q", "a") for _ in range(2)]
        await connection.execute("update pgqueuetopia.run_queue set xid = '9000000000'")
        claimed = await look(a)
        assert ids(claimed) == [first.id]
        if dies:
            await kill(dsn, "a")
            claimed = await rescued(b)
            assert ids(claimed) == [first.id]
        session = b if dies else a
        claimed = await look(session, *map(done, claimed.claimed))
        assert ids(claimed) == [second.id]
        assert ids(await look(session, *map(done, claimed.claimed))) == []
        assert await connection.fetch("select from pgqueuetopia.run_queue where taken") == []


async def test_a_head_row_that_somebody_has_locked_holds_up_its_queue_alone(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        held = await app.create_job("held", "a")
        behind = await app.create_job("held", "a")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", held.id)
        async with app.running():
            others = await app.create_jobs([{"queue": f"q{n}", "action": "a"} for n in range(20)])
            await eventually(lambda: len(performer.performed) == len(others))
            assert held.id not in performer.ids
            assert behind.id not in performer.ids
            await transaction.rollback()
            await eventually(lambda: behind.id in performer.ids)
    assert [job.id for job in performer.performed if job.queue == "held"] == [held.id, behind.id]


async def test_an_outcome_whose_row_somebody_has_locked_is_saved_later(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    gate = anyio.Event()
    performer = Recorder(lambda job: gate.wait() if job.queue == "held" else None)
    async with an_app(dsn, performer) as app, app.running():
        held = await app.create_job("held", "a")
        behind = await app.create_job("held", "a")
        await eventually(lambda: performer.performed)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", held.id)
        gate.set()
        for n in range(5):
            await app.create_job(f"q{n}", "a")
        await eventually(lambda: len(performer.performed) == 6)
        assert performer.ids.count(held.id) == 1
        assert behind.id not in performer.ids
        assert await is_locked(dsn, "held"), "the queue is held as long as its outcome is not saved"
        await transaction.rollback()
        await eventually(lambda: behind.id in performer.ids)
        assert (await app.get_job(held)).attempts == 1
    assert performer.ids.count(held.id) == 1


async def test_a_suspension_waits_for_the_jobs_that_are_being_started(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await app.create_job("q", "a")
        await app.create_job("q2", "a")
        steps: list[Stepped] = []
        suspended = anyio.Event()

        async def claim() -> None:
            steps.append(await look(a, room=1))

        async def suspend() -> None:
            await app.suspend()
            suspended.set()

        async with (
            failpoints.stopping(racing_dsn, "locked", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(claim)
            await stop.reached()
            tasks.start_soon(suspend)
            await eventually(lambda: waits_for_a_lock(racing_dsn))
            await stop.release()
            await eventually(lambda: steps)
            assert not suspended.is_set(), "what was claimed has not been started yet"
            await a.started()
            await suspended.wait()
        assert len(steps[0].claimed) == 1
        after = await look(a, running=steps[0].claimed)
        assert (after.claimed, after.suspended) == ([], True)


async def test_a_suspension_is_not_kept_waiting_by_what_would_be_claimed_meanwhile(dsn: str) -> None:
    """The session that holds the lock it waits for would be given it again, before it."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a], anyio.create_task_group() as tasks:
        await app.create_job("q", "a")
        await app.create_job("q2", "a")
        first = await look(a, room=1)
        tasks.start_soon(app.suspend)
        await eventually(lambda: waits_for_a_lock(dsn))
        second = await look(a, running=first.claimed, starting=1)
        assert (len(first.claimed), second.claimed, second.held_up) == (1, [], True)
        await a.started()


async def test_a_suspension_waits_for_each_of_the_steps_whose_jobs_are_being_started(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a], anyio.create_task_group() as tasks:
        await app.create_job("q", "a")
        await app.create_job("q2", "a")
        suspended = anyio.Event()

        async def suspend() -> None:
            await app.suspend()
            suspended.set()

        claimed = (await look(a, room=1)).claimed
        claimed += (await look(a, room=1, running=claimed, starting=1)).claimed
        assert len(claimed) == 2
        tasks.start_soon(suspend)
        await eventually(lambda: waits_for_a_lock(dsn))
        await look(a, running=claimed, starting=1)
        assert await waits_for_a_lock(dsn), "what one of the two has claimed has not been started yet"
        assert not suspended.is_set()
        await a.started()
        await suspended.wait()


async def test_a_suspension_that_gives_up_on_one_node_holds_up_the_others_until_it_commits(
    racing_dsn: str,
) -> None:
    """What another node claimed meanwhile, it would start after that."""
    operator = await asyncpg.connect(racing_dsn)
    await operator.execute("alter function pgqueuetopia.wait_for_starts set lock_timeout = '50ms'")
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as [a, b]:
        frozen = await app.create_job("q", "a")
        assert ids(await look(a)) == [frozen.id], "and it does not tell that it has started it"
        await app.create_job("other", "a")
        async with operator.transaction():
            await operator.execute("update pgqueuetopia.job_configs set value = 'true'")
            stepped = await look(b)
            assert (stepped.claimed, stepped.held_up) == ([], True)
        stepped = await look(b)
        assert (stepped.claimed, stepped.suspended) == ([], True)
    await operator.close()


@pytest.mark.parametrize("scope", ["Test", "*"])
async def test_a_queue_that_is_resumed_while_a_job_of_it_is_being_created_is_not_stranded(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", scope: str
) -> None:
    """Who resumes does not see the job, and who looks at it does not see that its queue is resumed."""
    creator = await asyncpg.connect(dsn)
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await connection.execute(
            "insert into pgqueuetopia.job_configs (scope, key, value) values ($1, 'q_suspended', 'true')",
            scope,
        )
        creating, resuming = creator.transaction(), connection.transaction()
        await creating.start()
        job = await app.create_job("q", "a", conn=creator)
        await resuming.start()
        await connection.execute("delete from pgqueuetopia.job_configs where key = 'q_suspended'")
        await creating.commit()
        assert ids(await look(a)) == []
        await resuming.commit()
        await eventually(lambda: claims(a, job))
    await creator.close()


async def claims(session: Session, job: Job) -> bool:
    return ids(await look(session)) == [job.id]


async def waits_for_a_lock(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch(f"select from {ADVISORY_LOCKS} where objsubid = 1 and not granted")
    await connection.close()
    return bool(found)


async def test_a_job_that_was_inserted_before_the_node_slept_is_found_when_it_commits(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """It tested for sleepers, found none, and so it does not notify."""
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        transaction = connection.transaction()
        await transaction.start()
        await app.create_job("q", "a", conn=connection)
        async with app.running():
            await eventually(lambda: is_asleep(dsn))
            assert performer.performed == []
            await transaction.commit()
            await eventually(lambda: performer.performed, within=5)


async def is_asleep(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetchval(
        f"select count(*) from {ADVISORY_LOCKS} where mode = 'ShareLock'"
        " and (classid::bigint << 32) | objid::bigint = pgqueuetopia.lock_key('sleeping', 'Test')"
    )
    await connection.close()
    return bool(found)


@pytest.mark.parametrize(
    ("holds", "sleeps"), [("pg_advisory_lock", False), ("pg_advisory_lock_shared", True)]
)
async def test_who_asks_for_sleepers_is_not_taken_for_one(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", holds: str, sleeps: bool
) -> None:
    """Another creator has the lock exclusively while it asks, and may lose the processor then."""
    other = await asyncpg.connect(dsn)
    await other.execute(f"select {holds}(pgqueuetopia.lock_key('sleeping', 'Test'))")
    assert await connection.fetchval("select pgqueuetopia.is_held('sleeping', 'Test')") is sleeps
    await other.close()
    mine = f"select from {ADVISORY_LOCKS} where l.pid = pg_backend_pid()"
    assert not await connection.fetch(mine), "what it locked to find out is unlocked"


async def test_creators_notify_only_while_somebody_sleeps(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    heard: list[object] = []

    def hear(*notified: object) -> None:
        heard.append(notified)

    await connection.add_listener("pgqueuetopia_jobs", hear)
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await connection.execute("select 1")
        heard.clear()
        await app.create_job("q", "a")
        await connection.execute("select 1")
        assert heard == []
        await a.fall_asleep()
        await app.create_job("q", "a")
        await eventually(lambda: heard)
        await a.wake_up()
        heard.clear()
        await app.create_job("q", "a")
        await connection.execute("select 1")
        assert heard == []
    await connection.remove_listener("pgqueuetopia_jobs", hear)


async def is_waited(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """Whether a creator asks who sleeps, and who listens."""
    return bool(await connection.fetchval(WAITING) != 0)


WAITING = "select pg_sequence_last_value('pgqueuetopia.waiting')"


async def test_creators_ask_who_sleeps_as_long_as_one_does(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with sessions(dsn, "a", "b") as [a, b]:
        await look(a)
        assert not await is_waited(connection)
        await a.fall_asleep()
        await b.fall_asleep()
        await a.wake_up()
        await look(a)
        assert await is_waited(connection)
        # A session's own lock does not keep it from taking the same alone.
        await look(b)
        assert await is_waited(connection)
        await b.wake_up()
        assert not await is_waited(connection)


async def test_creators_ask_no_longer_for_who_waited_and_is_gone(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as [a, b]:
        await b.fall_asleep()
        b.abort()
        async with app.events():
            await eventually(lambda: no_sleeper(connection))
            await look(a)
            assert await is_waited(connection)
        await eventually(lambda: nobody_waits(connection, a))


async def no_sleeper(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return not await connection.fetchval("select pgqueuetopia.is_held('sleeping', 'Test')")


async def nobody_waits(connection: "asyncpg.Connection[asyncpg.Record]", session: Session) -> bool:
    await look(session)
    return not await is_waited(connection)


async def test_creators_ask_after_a_crash_too(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """What is not logged starts anew after a crash: a sequence without a value."""
    heard: list[object] = []
    listener = await asyncpg.connect(dsn)
    await listener.add_listener("pgqueuetopia_jobs", lambda *notified: heard.append(notified))
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await a.fall_asleep()
        await connection.execute("alter sequence pgqueuetopia.waiting restart")
        heard.clear()
        await app.create_job("q", "a")
        await eventually(lambda: heard)
    await listener.close()


async def test_who_falls_asleep_as_the_last_one_wakes_up_is_notified(racing_dsn: str) -> None:
    async with sessions(racing_dsn, "a", "b") as [a, b]:
        await b.fall_asleep()

        async def sleep() -> None:
            await a.fall_asleep()

        async with (
            failpoints.stopping(racing_dsn, "nobody waits", "b") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(b.wake_up)
            await stop.reached()
            tasks.start_soon(sleep)
            await eventually(lambda: waits_for_a_lock(racing_dsn))
            await stop.release()
        racing = await asyncpg.connect(racing_dsn)
        assert await is_waited(racing)
        await racing.close()


async def test_the_horizon_covers_the_newest_transaction_that_runs(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Its id is not below a snapshot's xmax, for nothing newer has ended."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        transaction = connection.transaction()
        await transaction.start()
        job = await app.create_job("q", "a", conn=connection)
        horizon, _ = await a.fall_asleep()
        assert (await look(a)).horizon < horizon, "a transaction that may not notify is under way"
        await transaction.commit()
        seen = await look(a)
        assert ids(seen) == [job.id]
        # Transactions of other databases count, too: they end in their own time.
        await eventually(lambda: has_passed(a, horizon))


async def has_passed(session: Session, horizon: int) -> bool:
    return (await look(session, room=0)).horizon >= horizon


async def test_who_commits_after_the_horizon_was_noted_has_seen_the_sleeper(racing_dsn: str) -> None:
    """The lock comes first: a creator that the horizon does not wait for must notify."""
    heard: list[object] = []
    listener = await asyncpg.connect(racing_dsn)
    await listener.add_listener("pgqueuetopia_jobs", lambda *notified: heard.append(notified))
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        await eventually(lambda: heard)
        heard.clear()

        async def sleep() -> None:
            await a.fall_asleep()

        async with (
            failpoints.stopping(racing_dsn, "asleep", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(sleep)
            await stop.reached()
            await app.create_job("q", "a")
            await eventually(lambda: heard)
            await stop.release()
    await listener.close()


async def test_a_job_that_is_being_cancelled_is_not_claimed(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        job = await app.create_job("q", "a")
        results: list[Cancelled] = []

        async def cancel() -> None:
            canceller = await asyncpg.connect(
                racing_dsn, server_settings={"application_name": "pgqueuetopia canceller"}
            )
            answer = await canceller.fetchval("select pgqueuetopia.end_job('Test', $1, 'cancelled')", job.id)
            results.append(Cancelled(answer))
            await canceller.close()

        async with (
            failpoints.stopping(racing_dsn, "queue tried", "canceller") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(cancel)
            await stop.reached()
            assert (await look(a)).claimed == []
            await stop.release()
        assert results == [Cancelled.OK]
        assert (await look(a)).claimed == []


async def test_a_job_that_is_being_claimed_is_not_cancelled(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as [a]:
        job = await app.create_job("q", "a")
        results: list[Cancelled] = []

        async def cancel() -> None:
            results.append(await app.cancel(job))

        async def claim() -> None:
            await look(a)

        async with (
            failpoints.stopping(racing_dsn, "before commit", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(claim)
            await stop.reached()
            tasks.start_soon(cancel)
            await anyio.wait_all_tasks_blocked()
            assert results == []
            await stop.release()
        assert results == [Cancelled.IN_PROGRESS]


OTHER_FAILPOINTS = [
    "from the start",
    "queue tried",
    "asleep",
    "nobody waits",
    "lined up",
    "before start",
    "adopted",
]


def test_every_failpoint_is_used() -> None:
    assert sorted(set(failpoints.names())) == sorted([*STEP_FAILPOINTS, *OTHER_FAILPOINTS])
