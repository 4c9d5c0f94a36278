"""Whose a row is: races between nodes, and with the application, each in a fixed order."""

import json
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Err, Job, Move, Performer, Repo, Retry
from pgqueuetopia.db.table_rows import Row, Written, job_of, written_of
from pgqueuetopia.node import table as node_table
from pgqueuetopia.node import table_leases
from pgqueuetopia.outcome import Settlement
from tests.proxy import a_proxy
from tests.support import Recorder, eventually
from tests.table.world import World

WAITING = """
select from pg_locks l join pg_stat_activity a on a.pid = l.pid
where not l.granted and l.locktype = 'transactionid' and a.datname = current_database()
"""


def success(row: Row, world: World) -> Written:
    return written_of(row, job_of(row, world.queue, "Test", ""), Settlement.succeeded(None), "")


async def test_a_late_finisher_never_clears_a_live_claim(world: World) -> None:
    await world.insert(1)
    [late] = await world.claim(lease=0.0)
    [live] = await world.claim(lease=300)
    assert live.key == late.key
    async with world.table() as table:
        assert await table.settle([success(late, world)]) == set()
        assert await table.renew([late], [2**60], [None], 300) == set()
        assert await table.still_held([late]) == set()
        assert json.loads(await world.private() or "{}")["claim"] == live.claim
        assert await table.settle([success(live, world)]) == {0}
    assert await world.lock() is None


async def test_one_statement_settles_what_is_ours_and_leaves_what_is_not(world: World) -> None:
    await world.insert(1, 2)
    late = await world.claim(lease=0.0)
    [live] = await world.claim(lease=300, room=1)
    async with world.table() as table:
        done = await table.settle([success(row, world) for row in late])
    assert [late[n].key for n in done] == [row.key for row in late if row.key != live.key]


async def test_a_token_never_comes_twice_even_if_the_private_column_is_emptied(world: World) -> None:
    names = world.queue.names
    await world.insert(1)
    [first] = await world.claim(lease=300)
    await world.connection.execute(
        f"update {world.relation} set {names.lock} = 0, {names.private} = null where id = 1"
    )
    [second] = await world.claim(lease=300)
    assert (second.claim or 0) > (first.claim or 0)
    async with world.table() as table:
        assert await table.settle([success(first, world)]) == set()


async def test_a_row_that_its_application_has_cancelled_in_sql_is_not_brought_back(world: World) -> None:
    await world.insert(1)
    [row] = await world.claim()
    await world.connection.execute(f"update {world.relation} set {world.queue.names.lock} = null")
    retried = replace(success(row, world), outcome=None, wait=0, private="{}")
    async with world.table() as table:
        assert await table.settle([retried]) == set()
    assert await world.lock() is None


async def test_a_row_that_somebody_has_locked_holds_up_no_other(world: World) -> None:
    recorder = Recorder()
    await world.insert(1, 2)
    async with world.app(recorder) as app, world.locked(1), app.running():
        await eventually(lambda: [job.key for job in recorder.performed] == [world.key(2)])


async def test_a_row_that_was_locked_runs_soon_after_it_is_free(world: World) -> None:
    recorder = Recorder()
    world.declare(poll_interval=60)
    await world.insert(1)
    async with world.app(recorder) as app, AsyncExitStack() as stack:
        async with world.locked(1):
            await stack.enter_async_context(app.running())
            await anyio.sleep(0.1)
            assert not recorder.performed
        await eventually(lambda: recorder.performed, within=5)


async def test_an_outcome_waits_for_a_row_that_somebody_has_locked(world: World) -> None:
    go_on = anyio.Event()
    recorder = Recorder(lambda job: go_on.wait())
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: recorder.performed)
        async with world.locked(1):
            go_on.set()
            await anyio.sleep(0.1)
        await eventually(lambda: is_finished(world))
    assert len(recorder.performed) == 1
    assert await world.column("name") == "busy"


async def test_an_outcome_that_must_wait_holds_up_no_other(world: World) -> None:
    go_on = anyio.Event()
    recorder = Recorder(lambda job: go_on.wait())
    async with world.running(recorder):
        await world.insert(1, 2)
        await eventually(lambda: len(recorder.performed) == 2)
        async with world.locked(1):
            go_on.set()
            await eventually(lambda: has_finished(world, 2), within=5)
        await eventually(lambda: is_finished(world))


async def has_finished(world: World, number: int) -> bool:
    return await world.lock(number) is None


async def is_finished(world: World) -> bool:
    return await world.lock() is None


async def test_a_living_node_keeps_its_row_longer_than_stale_timeout(world: World) -> None:
    world.declare(stale_timeout=0.3, concurrency=1)
    first, second = Recorder(lambda job: anyio.sleep(1.2)), Recorder()
    async with world.running(first):
        await world.insert(1)
        await eventually(lambda: first.performed)
        async with world.running(second):
            await eventually(lambda: is_finished(world))
    assert (len(first.performed), len(second.performed)) == (1, 0)


async def test_no_row_is_kept_past_max_job_time(photos: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be stopped: others have its row, and what it comes to late counts for nothing."""
    monkeypatch.setattr(table_leases, "GRACE", 0.2)
    photos.declare(stale_timeout=0.3, max_job_time=0.3, concurrency=1)
    threads: list[int] = []

    class Hanging(Performer):
        def perform(self, job: Job) -> None:
            threads.append(job.attempts)
            time.sleep(1.5)

    second = Recorder()
    async with photos.running(Hanging()):
        await photos.insert(1)
        await eventually(lambda: threads)
        async with photos.running(second):
            await eventually(lambda: second.performed, within=1.3)
            await eventually(lambda: is_finished(photos))
    assert second.performed[0].attempts == 2


async def test_progress_of_a_row_writes_no_other(world: World) -> None:
    go_on = anyio.Event()

    async def answer(job: Job) -> None:
        if job.key == world.key(1):
            await job.progress("half")
        await go_on.wait()

    async with world.running(Recorder(answer)):
        await world.insert(1, 2)
        await eventually(lambda: is_leased(world, 2))
        before = await world.lock(1), await world.lock(2)
        await eventually(lambda: has_told(world))
        assert await world.lock(1) != before[0]
        assert await world.lock(2) == before[1]
        go_on.set()


async def is_leased(world: World, number: int) -> bool:
    return "claim" in (await world.private(number) or "")


async def has_told(world: World) -> bool:
    return "half" in (await world.private(1) or "")


async def test_a_row_never_overlaps_a_run_of_its_own_that_goes_on_in_a_thread(
    photos: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_leases, "GRACE", 0.2)
    monkeypatch.setattr(node_table, "OVERLAP_PAUSE", 0.1)
    photos.declare(stale_timeout=0.3, max_job_time=0.3)
    running: list[int] = []
    most: list[int] = []

    class Hanging(Performer):
        def perform(self, job: Job) -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(1.2 if len(most) == 1 else 0)
            running.pop()

    async with photos.running(Hanging()):
        await photos.insert(1)
        await eventually(lambda: is_finished(photos))
    assert most == [1, 1]


async def test_a_row_that_cannot_be_renewed_is_stopped_and_runs_again(world: World) -> None:
    """Somebody holds it locked for longer than its lease: it is still ours, and its job is not lost."""
    world.declare(stale_timeout=0.3)
    recorder = Recorder(lambda job: anyio.sleep(60 if len(recorder.performed) == 1 else 0))
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: recorder.performed)
        async with world.locked(1):
            await anyio.sleep(0.6)
        await eventually(lambda: len(recorder.performed) == 2)
        await eventually(lambda: is_finished(world))
    # The attempt is given back, unless the row is claimed in the moment between its release and that.
    assert [job.attempts for job in recorder.performed] in ([1, 1], [1, 2])


async def test_a_process_that_was_frozen_after_a_claim_starts_nothing(photos: World) -> None:
    made: list[object] = []

    def task(key: object, queue: str) -> tuple[str, dict[str, object]]:
        made.append(key)
        # As if the process had been stopped here, until its lock had run out.
        time.sleep(0.5 if len(made) == 1 else 0)
        return "run", {}

    photos.declare(stale_timeout=0.3, task=task)
    recorder = Recorder()
    async with photos.running(recorder):
        await photos.insert(1)
        await eventually(lambda: is_finished(photos))
    assert (len(made), len(recorder.performed)) == (2, 1)


async def test_a_node_leaves_even_if_the_database_cannot_be_reached(dsn: str, roaches: World) -> None:
    recorder = Recorder(lambda job: anyio.sleep(60))
    async with a_proxy(dsn) as (proxy, through):
        roaches.declare(poll_interval=0.05)
        async with roaches.running(recorder, repo=Repo(through, timeout=1), shutdown=0.1):
            await roaches.insert(1)
            await eventually(lambda: recorder.performed)
            await proxy.cut()
            left_at = time.monotonic()
        assert time.monotonic() - left_at < 15
    assert "claim" in (await roaches.private() or ""), "its lock runs out, and others run it"


async def test_a_node_that_was_cut_off_stops_its_runs_before_others_may_have_them(
    dsn: str, roaches: World
) -> None:
    stopped: list[float] = []
    begun: list[float] = []

    async def answer(job: Job) -> None:
        try:
            await anyio.sleep(60)
        finally:
            stopped.append(time.monotonic())

    roaches.declare(stale_timeout=1.5, poll_interval=0.05)
    first, second = Recorder(answer), Recorder()
    async with a_proxy(dsn) as (proxy, through), AsyncExitStack() as stack:
        await stack.enter_async_context(roaches.running(first, repo=Repo(through, timeout=1), shutdown=0.1))
        await roaches.insert(1)
        await eventually(lambda: first.performed)
        await proxy.cut()
        second.answer = lambda job: begun.append(time.monotonic())
        async with roaches.running(second):
            await eventually(lambda: begun)
        proxy.heal()
    assert stopped[0] < begun[0]
    assert second.performed[0].attempts == 2


async def test_a_node_that_lost_its_row_stops_the_run(world: World) -> None:
    stopped: list[object] = []

    async def answer(job: Job) -> None:
        try:
            await anyio.sleep(60)
        finally:
            stopped.append(job.key)

    world.declare(stale_timeout=0.3)
    recorder = Recorder(answer)
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: recorder.performed)
        assert await app.table("classify").cancel(world.key(1)) is Cancelled.OK
        await eventually(lambda: stopped)
    assert await is_finished(world)


async def test_a_row_that_is_updated_while_it_runs_runs_again_when_it_has_ended(photos: World) -> None:
    photos.declare(rerun_when=["name"])
    await photos.migrate(photos.queue)
    go_on = anyio.Event()
    recorder = Recorder(lambda job: go_on.wait())
    async with photos.running(recorder):
        await photos.insert(1)
        await eventually(lambda: recorder.performed)
        await photos.connection.execute(f"update {photos.relation} set name = 'new'")
        await anyio.sleep(0.1)
        assert len(recorder.performed) == 1, "not while it runs"
        go_on.set()
        await eventually(lambda: len(recorder.performed) == 2)
        await eventually(lambda: is_finished(photos))
    assert [job.attempts for job in recorder.performed] == [1, 1]


async def test_rerun_when_runs_a_row_only_if_one_of_its_columns_has_changed(photos: World) -> None:
    photos.declare(rerun_when=["name"])
    await photos.migrate(photos.queue)
    recorder = Recorder()
    async with photos.running(recorder):
        await photos.insert(1)
        await eventually(lambda: is_finished(photos))
        await photos.connection.execute(f"update {photos.relation} set name = name, tenant = 'else'")
        assert await is_finished(photos)
        await photos.connection.execute(f"update {photos.relation} set name = 'new'")
        await eventually(lambda: len(recorder.performed) == 2)


async def test_a_moved_row_becomes_a_job_in_the_same_commit(photos: World) -> None:
    photos.declare(failure_mode=Retry(1, finally_=Move("dead")))
    recorder = Recorder(lambda job: Err("no") if job.queue == "classify" else None)
    async with photos.running(recorder) as app:
        await photos.insert(1)
        await eventually(lambda: len(recorder.performed) == 3)
        assert (await app.table("classify").status()).abandoned == 1
    dead = recorder.performed[-1]
    assert (dead.queue, dead.action, dead.params, dead.key) == ("dead", "run", {"key": 1}, None)
    assert json.loads(await photos.private() or "{}")["moved_to"] == "dead"


async def test_a_row_that_is_not_ours_any_longer_is_not_moved(photos: World) -> None:
    await photos.insert(1)
    [late] = await photos.claim(lease=0.0)
    await photos.claim(lease=300)
    job = job_of(late, photos.queue, "Test", "")
    async with photos.table() as table:
        assert not await table.move(success(late, photos), job, "dead")
    assert await photos.connection.fetchval("select count(*) from pgqueuetopia.jobs") == 0


async def test_nodes_that_stand_in_each_others_way_lose_nothing(roaches: World) -> None:
    await roaches.insert(*range(1, 101))
    claimed: list[object] = []

    async def claim() -> None:
        async with roaches.table() as table:
            while rows := await table.claim(7, "a node", 300, 0):
                claimed.extend(row.key for row in rows)
                await table.settle([success(row, roaches) for row in rows])

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(claim)
    assert len(claimed) == len(set(claimed)) == 100
    async with roaches.app() as app:
        assert (await app.table("classify").status()).count == 0


async def test_a_statement_that_must_be_tried_again_is(roaches: World) -> None:
    """At SERIALIZABLE who waited for another's commit is refused with 40001."""
    await roaches.insert(1)
    told: list[Cancelled] = []

    async def cancel() -> None:
        async with roaches.app() as app:
            told.append(await app.table("classify").cancel(1))

    async with anyio.create_task_group() as tasks, roaches.locked(1):
        tasks.start_soon(cancel)
        await eventually(lambda: is_waited_for(roaches.dsn))
    assert told == [Cancelled.OK]
    assert await is_finished(roaches)


async def is_waited_for(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return bool(await connection.fetch(WAITING))
    finally:
        await connection.close()
