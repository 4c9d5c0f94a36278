"""Topics on the database: slots and jobs are locked, in a fixed order of two sessions."""

from collections.abc import Sequence
from datetime import timedelta

import anyio
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Job, Queuetopia
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Lines, Question, Stepped
from pgqueuetopia.outcome import Failure, Settlement
from tests.db import failpoints
from tests.db.steps import done, ids, kill, sessions
from tests.support import ADVISORY_LOCKS, an_app, eventually

EXCLUSIVE = f"select count(*) from {ADVISORY_LOCKS} where objsubid = 1 and mode = 'ExclusiveLock'"


class Slots:
    """A session and the slots of topic t that it holds."""

    def __init__(self, session: Session, parallelism: int = 4) -> None:
        self.session = session
        self.parallelism = parallelism
        self.held: dict[int, int] = {}

    async def look(self, *ended: Ended, room: int = 10, everything: bool = True) -> Stepped:
        """One step that settles what ended and claims up to `room` jobs."""
        over = {one.job.id for one in ended if one.job}
        for one in ended:
            one.slot = self.held[one.job.id] if one.job else None
        held = [("t", slot, job, job in over) for job, slot in self.held.items()]
        stepped = await self.session.step(
            Question(
                ended,
                room=room,
                rescue=True,
                everything=everything,
                lines=Lines([("t", self.parallelism, room, None)], held),
            )
        )
        self.held = {job: slot for job, slot in self.held.items() if job not in over}
        self.held |= {job.id: slot for job, slot in zip(stepped.claimed, stepped.slots, strict=True)}
        return stepped


async def inserted(app: Queuetopia, number: int, priority: int = 0) -> list[int]:
    """So many jobs of topic t."""
    rows = await connection_of(
        app,
        f"""
        insert into pgqueuetopia.jobs (scope, queue, action, topic, priority)
        select 'Test', 't', 'a', true, {priority} from generate_series(1, {number}) returning id
    """,
    )
    return [row["id"] for row in rows]


async def connection_of(app: Queuetopia, sql: str) -> Sequence[asyncpg.Record]:
    async with app.repo.connection() as connection:
        return list(await connection.fetch(sql))


async def no_lock_is_left(app: Queuetopia) -> bool:
    [row] = await connection_of(app, EXCLUSIVE)
    return bool(row["count"] == 0)


def failed(job: Job, delay: timedelta) -> Ended:
    return Ended(job.queue, job, Settlement.retried(Failure("no"), delay))


async def test_two_nodes_together_run_no_more_than_the_parallelism(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        jobs = await inserted(app, 10)
        mine = (await a.look(room=3)).claimed
        theirs = (await b.look()).claimed
        assert [job.id for job in mine + theirs] == jobs[:4]
        assert ids(await b.look()) == ids(await a.look()) == []
        assert {(await app.get_job(job)).state for job in jobs[:4]} == {"executing"}
        assert ids(await a.look(done(mine[1]))) == [jobs[4]]
        assert ids(await b.look(done(theirs[0]))) == [jobs[5]]
        assert sorted({**a.held, **b.held}.values()) == [1, 2, 3, 4]


async def test_a_slot_that_is_not_needed_any_longer_is_let_go(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        await inserted(app, 4)
        claimed = (await a.look()).claimed
        await a.look(*map(done, claimed))
        assert await no_lock_is_left(app)
        await inserted(app, 4)
        assert len((await b.look()).claimed) == 4


async def test_what_a_dead_node_ran_waits_for_its_report_and_takes_up_room_meanwhile(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        jobs = await inserted(app, 6)
        assert len((await a.look(room=3)).claimed) == 3
        await kill(dsn, "a")
        found = await b.look(room=4)
        assert ids(found) == [jobs[3]], "three may still run"
        running = found.claimed
        ran = [job.id for job in running]
        with anyio.fail_after(5):
            while len(ran) < 6:
                stepped = await b.look(*map(done, running))
                running = stepped.claimed
                ran += ids(stepped)
        assert sorted(ran) == jobs


async def test_a_job_that_another_node_has_run_meanwhile_is_not_run_again(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        [job] = await inserted(app, 1)
        looked: list[Stepped] = []

        async def look() -> None:
            looked.append(await b.look())

        async with (
            failpoints.stopping(racing_dsn, "lined up", "b") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look)
            await stop.reached()
            [claimed] = (await a.look()).claimed
            await a.look(done(claimed))
            await stop.release()
        assert looked[0].claimed == []
        assert (await app.get_job(job)).claim == 1
        assert await no_lock_is_left(app)


async def test_a_job_whose_node_dies_while_another_looks_waits_for_its_report(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        await inserted(app, 1)
        looked: list[Stepped] = []

        async def look() -> None:
            looked.append(await b.look())

        async with (
            failpoints.stopping(racing_dsn, "lined up", "b") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look)
            await stop.reached()
            assert len((await a.look()).claimed) == 1
            await kill(racing_dsn, "a")
            await stop.release()
        assert looked[0].claimed == []


async def test_a_job_that_was_cancelled_after_it_was_lined_up_is_not_started(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as opened:
        [a] = map(Slots, opened)
        [job] = await inserted(app, 1)
        looked: list[Stepped] = []

        async def look() -> None:
            looked.append(await a.look())

        async with (
            failpoints.stopping(racing_dsn, "before start", "a") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(look)
            await stop.reached()
            assert await app.cancel(job) is Cancelled.OK
            await stop.release()
        assert looked[0].claimed == []
        assert await no_lock_is_left(app)
        assert (await app.get_job(job)).state == "cancelled"


async def test_a_job_that_runs_is_in_progress_and_the_others_can_be_cancelled(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as opened:
        [a] = map(Slots, opened)
        first, second = await inserted(app, 2)
        await a.look(room=1)
        assert await app.cancel(first) is Cancelled.IN_PROGRESS
        assert await app.cancel(second) is Cancelled.OK
        assert (await app.get_job(first)).state == "executing"


async def test_a_row_that_somebody_has_locked_holds_up_no_other(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as opened:
        [a] = map(Slots, opened)
        locked, *others = await inserted(app, 4)
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", locked)
            stepped = await a.look()
            assert ids(stepped) == others
            assert stepped.careful
            assert (await a.look(*map(done, stepped.claimed))).claimed == []
        assert await no_lock_is_left(app)
        assert ids(await a.look()) == [locked]


async def test_an_outcome_that_cannot_be_written_keeps_its_slot(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as opened:
        a, b = map(Slots, opened, (1, 1))
        first, second = await inserted(app, 2)
        [claimed] = (await a.look()).claimed
        slot = a.held[first]
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", first)
            assert (await a.look(done(claimed))).busy == {first}
            assert ids(await b.look()) == []
        a.held[first] = slot
        assert ids(await a.look(done(claimed))) == [second]


async def test_a_failed_job_lets_the_others_pass_and_comes_back_when_it_is_due(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as opened:
        [a] = map(Slots, opened, [1])
        jobs = await inserted(app, 3)
        [claimed] = (await a.look()).claimed
        stepped = await a.look(failed(claimed, timedelta(hours=1)))
        assert ids(stepped) == [jobs[1]]
        stepped = await a.look(failed(stepped.claimed[0], timedelta(0)))
        assert ids(stepped) == [jobs[2]], "the one due longest"
        stepped = await a.look(done(stepped.claimed[0]))
        assert ids(stepped) == [jobs[1]]
        stepped = await a.look(done(stepped.claimed[0]))
        assert stepped.next_ready_in == pytest.approx(3600, abs=60)


async def test_a_scan_that_goes_on_from_its_front_comes_to_the_lower_priorities_too(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as opened:
        [a] = map(Slots, opened)
        low = await inserted(app, 2)
        high = await inserted(app, 2, priority=5)
        stepped = await a.look(room=1)
        for expected in [high[1], low[0], low[1]]:
            stepped = await a.look(*map(done, stepped.claimed), room=1, everything=False)
            assert ids(stepped) == [expected]
        [late] = await inserted(app, 1)
        assert ids(await a.look(*map(done, stepped.claimed), everything=False)) == [late]


async def test_a_job_that_somebody_has_locked_is_adopted_later(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as opened:
        [a] = map(Slots, opened)
        locked, other = [(await app.create_job("t", "a")).id for _ in range(2)]
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", locked)
            await a.look()
            assert ids(await a.look()) == [other]
        await eventually(lambda: is_claimed(a, locked))


async def is_claimed(slots: Slots, job: int) -> bool:
    return ids(await slots.look()) == [job]


async def test_a_job_of_a_dead_node_that_somebody_has_locked_holds_up_no_other(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        locked, other = await inserted(app, 2)
        await a.look(room=1)
        await kill(dsn, "a")
        async with connection.transaction():
            await connection.execute("select from pgqueuetopia.jobs where id = $1 for update", locked)
            assert ids(await b.look()) == [other]
        await eventually(lambda: is_claimed(b, locked))


async def test_a_job_that_is_adopted_and_started_is_not_cancelled_by_its_queues_lock(racing_dsn: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a") as opened:
        [a] = map(Slots, opened)
        job = await app.create_job("t", "a")
        outside = await asyncpg.connect(racing_dsn)
        told: list[str] = []

        async def cancel() -> None:
            told.append(
                await outside.fetchval("select pgqueuetopia.end_job('Test', $1, 'cancelled')", job.id)
            )

        await outside.execute("set application_name = 'pgqueuetopia operator'")
        async with (
            failpoints.stopping(racing_dsn, "queue tried", "operator") as stop,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(cancel)
            await stop.reached()
            assert ids(await a.look()) == [], "its queue is locked"
            # As if the node had come first, and the operator had read the job before.
            await connection_of(app, "update pgqueuetopia.jobs set topic = true")
            assert ids(await a.look()) == [job.id]
            await stop.release()
        assert told == ["IN_PROGRESS"]
        await outside.close()


@pytest.mark.parametrize("place", ["lined up", "adopted", "before start", "before commit", "committed"])
async def test_a_node_that_dies_anywhere_in_a_step_loses_nothing(racing_dsn: str, place: str) -> None:
    async with an_app(racing_dsn) as app, sessions(racing_dsn, "a", "b") as opened:
        a, b = map(Slots, opened)
        jobs = await inserted(app, 6)
        claimed = (await a.look(room=2)).claimed
        # Of somebody who does not know the topic.
        jobs.append((await app.create_job("t", "a")).id)
        await failpoints.die_at(racing_dsn, place, "a", a.look(*map(done, claimed)))
        running: list[Job] = []

        async def all_is_done() -> bool:
            running[:] = (await b.look(*map(done, running))).claimed
            return not (await app.status()).count

        await eventually(all_is_done)
        assert [(await app.get_job(job)).state for job in jobs] == ["succeeded"] * 7
        assert await no_lock_is_left(app)
