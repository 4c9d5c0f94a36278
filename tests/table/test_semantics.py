"""What Honeydew's Ecto Poll Queue promises, in every shape that a table may have."""

import json
from dataclasses import replace
from datetime import timedelta

import anyio
import pytest

from pgqueuetopia import (
    Abandon,
    Cancelled,
    Err,
    ExponentialRetry,
    Job,
    JobNotFound,
    Misconfigured,
    Retry,
    Snooze,
    Success,
    TableOperations,
    TableStatus,
    Worker,
    Workers,
    action,
)
from pgqueuetopia.db import table_migration
from pgqueuetopia.performer import Performer
from tests.conftest import execute
from tests.support import Recorder, eventually
from tests.table.world import World


class Impatient(Recorder):
    """Has no row wait for its next attempt."""

    def backoff(self, job: Job) -> timedelta:
        return timedelta(0)


async def has(table: TableOperations, wanted: TableStatus) -> bool:
    return await table.status() == wanted


async def is_empty(table: TableOperations) -> bool:
    return await has(table, TableStatus(queue="classify"))


async def is_abandoned(table: TableOperations) -> bool:
    return await has(table, TableStatus(queue="classify", abandoned=1))


async def is_finished(world: World) -> bool:
    return await world.lock() is None


def keys(recorder: Recorder) -> list[object]:
    return [job.key for job in recorder.performed]


async def test_a_row_that_is_inserted_runs(world: World) -> None:
    recorder = Recorder()
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: keys(recorder) == [world.key(1)])
    [job] = recorder.performed
    assert (job.queue, job.action, job.params) == ("classify", "run", {"key": world.key(1)})
    assert (job.attempts, job.state, job.scope) == (1, "executing", "Test")


async def test_a_row_that_was_inserted_while_no_node_ran_runs(world: World) -> None:
    recorder = Recorder()
    await world.insert(1)
    async with world.running(recorder):
        await eventually(lambda: keys(recorder) == [world.key(1)])


async def test_a_job_exists_if_and_only_if_its_row_was_committed(world: World) -> None:
    recorder = Recorder()
    async with world.running(recorder):
        transaction = world.connection.transaction()
        await transaction.start()
        await world.insert(1)
        await transaction.rollback()
        async with world.connection.transaction():
            await world.insert(2)
        await eventually(lambda: recorder.performed)
    assert keys(recorder) == [world.key(2)]


async def test_rows_run_in_the_order_of_their_insertion(world: World) -> None:
    recorder = Recorder()
    world.declare(concurrency=1)
    await world.insert(5, 3)
    await world.insert(4, 1)
    async with world.running(recorder):
        await eventually(lambda: len(recorder.performed) == 4)
    assert keys(recorder) == [world.key(n) for n in (5, 3, 4, 1)]


async def test_a_row_inserted_with_no_lock_counts_as_finished(world: World) -> None:
    recorder = Recorder()
    names = world.queue.names
    async with world.running(recorder):
        await world.connection.execute(f"insert into {world.relation} (id, {names.lock}) values (1, null)")
        await world.insert(2)
        await eventually(lambda: recorder.performed)
    assert keys(recorder) == [world.key(2)]


async def test_an_update_of_a_row_never_runs_it_again(world: World) -> None:
    recorder = Recorder()
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: is_empty(app.table("classify")))
        await world.connection.execute(f"update {world.relation} set name = 'else'")
        await world.insert(2)
        await eventually(lambda: len(recorder.performed) == 2)
    assert keys(recorder) == [world.key(1), world.key(2)]


async def test_a_run_touches_no_other_column(world: World) -> None:
    recorder = Recorder()
    async with world.running(recorder):
        await world.connection.execute(f"insert into {world.relation} (id, name) values (1, 'a cat')")
        await eventually(lambda: recorder.performed)
        await eventually(lambda: is_finished(world))
    assert (await world.column("name"), await world.column("tenant")) == ("a cat", "acme")


async def test_success_clears_the_lock_and_the_private_state(world: World) -> None:
    world.declare(failure_mode=Retry(1))
    recorder = Recorder(lambda job: Err("once") if job.attempts == 1 else None)
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: len(recorder.performed) == 2)
        await eventually(lambda: is_empty(app.table("classify")))
    assert (await world.lock(), await world.private()) == (None, None)


async def test_a_failed_row_runs_again_after_its_delay_at_the_tail(world: World) -> None:
    world.declare(failure_mode=Retry(1, decide=lambda job, failure: 0.2), concurrency=1)
    recorder = Recorder(lambda job: Err("once") if (job.attempts, job.key) == (1, world.key(1)) else None)
    async with world.running(recorder):
        await world.insert(1, 2)
        await eventually(lambda: len(recorder.performed) == 3)
    assert keys(recorder) == [world.key(1), world.key(2), world.key(1)]
    first, _, again = recorder.performed
    assert first.attempted_at is not None
    assert again.attempted_at is not None
    assert again.attempted_at - first.attempted_at >= timedelta(seconds=0.2)


async def test_the_state_between_attempts_is_kept_in_the_row(world: World) -> None:
    world.declare(failure_mode=Retry(2))
    recorder = Recorder(lambda job: Err(f"no {job.attempts}") if job.attempts < 3 else None)
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: len(recorder.performed) == 3)
    last = recorder.performed[-1]
    assert [(error["attempt"], error["error"]) for error in last.errors] == [(1, "no 1"), (2, "no 2")]


async def test_the_claims_of_a_row_only_grow(world: World) -> None:
    world.declare(failure_mode=Retry(2))
    recorder = Recorder(lambda job: Err("no"))
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: len(recorder.performed) == 3)
    claims = [job.claim for job in recorder.performed]
    assert claims == sorted(set(claims))


async def test_a_row_that_fails_for_the_last_time_is_abandoned(world: World) -> None:
    world.declare(max_attempts=2)
    async with world.running(Impatient(lambda job: Err("never"))) as app:
        table = app.table("classify")
        await world.insert(1)
        await eventually(lambda: is_abandoned(table))
        [job] = await table.filter("abandoned")
    assert (job.key, job.attempts, job.state) == (world.key(1), 2, "abandoned")
    assert [error["error"] for error in job.errors] == ["never", "never"]
    assert [error["attempt"] for error in job.errors] == [1, 2]
    assert (await world.lock() or 0) < 0


async def test_abandon_gives_up_at_once(world: World) -> None:
    world.declare(failure_mode=Abandon())
    recorder = Recorder(lambda job: Err("never"))
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: is_abandoned(app.table("classify")))
    assert len(recorder.performed) == 1


async def test_exponential_retry_waits_longer_each_time(world: World) -> None:
    world.declare(failure_mode=ExponentialRetry(2, max_delay=0.2))
    recorder = Recorder(lambda job: Err("never"))
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: is_abandoned(app.table("classify")))
    first, second, third = [job.attempted_at for job in recorder.performed if job.attempted_at]
    assert third - second >= timedelta(seconds=0.2) > second - first


async def test_the_modes_of_the_queuetopia_count_where_the_queue_has_none(world: World) -> None:
    recorder = Recorder(lambda job: Err("never"))
    told: list[Success] = []
    options = {"failure_modes": {"classify": Abandon()}, "success_mode": told.append}
    async with world.running(recorder, **options) as app:
        await world.insert(1)
        await eventually(lambda: is_abandoned(app.table("classify")))
        recorder.answer = lambda job: None
        await world.insert(2)
        await eventually(lambda: told)
    assert [success.job.key for success in told] == [world.key(2)]


async def test_handle_failed_job_is_called_with_what_was_written(world: World) -> None:
    told: list[Job] = []

    class Failing(Performer):
        async def perform(self, job: Job) -> Err:
            return Err("never")

        async def handle_failed_job(self, job: Job) -> None:
            told.append(job)

    world.declare(failure_mode=Abandon())
    async with world.running(Failing()):
        await world.insert(1)
        await eventually(lambda: told)
    assert [(job.key, [error["error"] for error in job.errors]) for job in told] == [
        (world.key(1), ["never"])
    ]


async def test_a_snoozed_row_spends_no_attempt(world: World) -> None:
    recorder = Recorder(lambda job: Snooze(0.05) if len(recorder.performed) == 1 else None)
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: len(recorder.performed) == 2)
    assert [job.attempts for job in recorder.performed] == [1, 1]


async def test_a_task_makes_the_job_from_the_key(world: World) -> None:
    class Tagger(Performer):
        done: list[tuple[str, object]]

        def __init__(self) -> None:
            self.done = []

        @action("tag")
        async def tag(self, job: Job) -> None:
            self.done.append((job.params["of"], job.key))

    tagger = Tagger()
    world.declare(task=lambda key, queue: ("tag", {"of": f"{queue} {json.dumps(key)}"}))
    async with world.running(tagger):
        await world.insert(1)
        await eventually(lambda: tagger.done)
    assert tagger.done == [(f"classify {json.dumps(world.key(1))}", world.key(1))]


async def test_a_task_that_raises_fails_its_row_alone(world: World) -> None:
    def task(key: object, queue: str) -> tuple[str, dict[str, object]]:
        if key == world.key(1):
            raise ValueError("not this one")
        return "run", {}

    world.declare(task=task, failure_mode=Abandon())
    recorder = Recorder()
    async with world.running(recorder) as app:
        await world.insert(1, 2)
        await eventually(lambda: recorder.performed)
        await eventually(lambda: is_abandoned(app.table("classify")))
    assert keys(recorder) == [world.key(2)]
    assert "not this one" in (await world.private() or "")


async def test_only_rows_for_which_run_if_is_true_run_and_the_others_stay_ready(world: World) -> None:
    world.declare(run_if="name is null or name <> 'dont run me' -- a comment at the end")
    recorder = Recorder()
    async with world.running(recorder) as app:
        await world.connection.execute(
            f"insert into {world.relation} (id, name) values (1, 'dont run me'), (2, null), (3, 'me')"
        )
        await eventually(lambda: len(recorder.performed) == 2)
        await eventually(lambda: has(app.table("classify"), TableStatus(queue="classify", ready=1)))
    assert keys(recorder) == [world.key(2), world.key(3)]


async def test_several_queues_ride_on_one_table(world: World) -> None:
    second = replace(world.queue, queue="print")
    await world.migrate(second)
    recorder = Recorder()
    async with world.running(recorder, table_queues=[world.queue, second]):
        await world.insert(1)
        await eventually(lambda: len(recorder.performed) == 2)
    await table_migration.down(world.dsn, second)
    assert {(job.queue, str(job.key)) for job in recorder.performed} == {
        ("classify", str(world.key(1))),
        ("print", str(world.key(1))),
    }


async def test_status_tells_the_six_states_apart(world: World) -> None:
    await world.insert(1)
    await world.claim(lease=0.0)
    await world.insert(2)
    await world.claim(room=1, lease=0.0)
    async with world.app() as app:
        status = await app.table("classify").status()
    assert status == TableStatus(queue="classify", ready=1, stale=1)
    assert (status.count, status.in_progress, status.delayed, status.abandoned) == (2, 0, 0, 0)


async def test_status_counts_what_runs_waits_and_was_abandoned(world: World) -> None:
    go_on = anyio.Event()
    world.declare(failure_mode=Retry(1, decide=lambda job, _: 3600 if job.key == world.key(2) else None))

    async def answer(job: Job) -> object:
        if job.key == world.key(1):
            await go_on.wait()
            return None
        return Err("no")

    async with world.running(Recorder(answer)) as app:
        await world.insert(1, 2, 3)
        wanted = TableStatus(queue="classify", in_progress=1, delayed=1, abandoned=1)
        await eventually(lambda: has(app.table("classify"), wanted))
        assert wanted.count == 3
        assert [job.key for job in await app.table("classify").filter("in_progress")] == [world.key(1)]
        with pytest.raises(Misconfigured, match="no state 'failed'"):
            await app.table("classify").filter("failed")
        with pytest.raises(Misconfigured, match="limit must be between 1 and"):
            await app.table("classify").filter("ready", limit=0)
        go_on.set()


async def test_progress_is_seen_while_a_row_runs(world: World) -> None:
    go_on = anyio.Event()

    async def answer(job: Job) -> None:
        await job.progress("10/50")
        await go_on.wait()

    async with world.running(Recorder(answer)) as app:
        await world.insert(1)

        async def told() -> bool:
            running = await app.table("classify").filter("in_progress")
            return [job.last_progress for job in running] == ["10/50"]

        await eventually(told)
        go_on.set()


async def test_a_stale_row_is_claimed_at_once_and_its_attempts_survive_the_dead_node(world: World) -> None:
    await world.insert(1)
    [dead] = await world.claim(lease=0.1)
    assert dead.attempts == 1
    recorder = Recorder()
    async with world.running(recorder):
        await eventually(lambda: keys(recorder) == [world.key(1)])
    assert recorder.performed[0].attempts == 2
    assert recorder.performed[0].claim > (dead.claim or 0)


async def test_a_row_that_kills_its_node_is_abandoned_in_the_end(world: World) -> None:
    world.declare(max_attempts=2)
    await world.insert(1)
    for attempt in (1, 2):
        [dead] = await world.claim(lease=0.0)
        assert dead.attempts == attempt
    recorder = Recorder()
    async with world.running(recorder) as app:
        await eventually(lambda: is_abandoned(app.table("classify")))
        [job] = await app.table("classify").filter("abandoned")
    assert not recorder.performed
    assert "died" in job.errors[-1]["error"]


async def test_two_nodes_never_claim_the_same_row(world: World) -> None:
    await world.insert(*range(1, 51))
    claimed: list[object] = []

    async def claim() -> None:
        claimed.extend(row.key for row in await world.claim(room=10))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(claim)
    assert len(claimed) == len(set(claimed)) <= 50
    while rows := await world.claim(room=10):
        claimed.extend(row.key for row in rows)
    assert sorted(claimed, key=str) == sorted(set(claimed), key=str)
    assert len(claimed) == 50


async def test_nodes_share_the_rows_of_a_table(world: World) -> None:
    first, second = Recorder(), Recorder()
    world.declare(concurrency=2)
    first.answer = second.answer = lambda job: anyio.sleep(0.02)
    async with world.running(first), world.running(second):
        await world.insert(*range(1, 41))
        await eventually(lambda: len(first.performed) + len(second.performed) == 40)
    assert {str(job.key) for job in [*first.performed, *second.performed]} == {
        str(world.key(n)) for n in range(1, 41)
    }


async def test_a_finished_job_has_the_next_row_looked_for_at_once(world: World) -> None:
    world.declare(concurrency=1, poll_interval=60)
    recorder = Recorder()
    await world.insert(*range(1, 21))
    async with world.running(recorder):
        await eventually(lambda: len(recorder.performed) == 20, within=10)


async def test_cancel_tells_ok_for_any_row_that_exists(world: World) -> None:
    recorder = Recorder()
    await world.insert(1, 2)
    async with world.app(recorder) as app:
        table = app.table("classify")
        assert await table.cancel(world.key(1)) is Cancelled.OK
        assert await table.cancel(world.key(1)) is Cancelled.OK
        assert await table.cancel(world.key(9)) is Cancelled.NOT_FOUND
        async with app.running():
            await eventually(lambda: recorder.performed)
    assert keys(recorder) == [world.key(2)]


async def test_a_row_that_is_cancelled_while_it_runs_is_never_run_again(world: World) -> None:
    go_on = anyio.Event()
    world.declare(failure_mode=Retry(5))

    async def answer(job: Job) -> Err:
        await go_on.wait()
        return Err("try again")

    recorder = Recorder(answer)
    async with world.running(recorder) as app:
        await world.insert(1)
        await eventually(lambda: recorder.performed)
        assert await app.table("classify").cancel(world.key(1)) is Cancelled.OK
        go_on.set()
    assert len(recorder.performed) == 1
    assert (await world.lock(), await world.private()) == (None, None)


async def test_a_row_that_is_deleted_while_it_runs_is_no_error_and_no_resurrection(world: World) -> None:
    go_on = anyio.Event()
    world.declare(failure_mode=Retry(5))

    async def answer(job: Job) -> object:
        if job.key == world.key(1):
            await go_on.wait()
            return Err("try again")
        return None

    recorder = Recorder(answer)
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: recorder.performed)
        await world.connection.execute(f"delete from {world.relation}")
        go_on.set()
        await world.insert(2)
        await eventually(lambda: len(recorder.performed) == 2)
    assert keys(recorder) == [world.key(1), world.key(2)]
    assert [row["id"] for row in await world.connection.fetch(f"select id from {world.relation}")] == [2]


async def test_a_row_that_its_own_job_updates_is_finished_all_the_same(world: World) -> None:
    async def answer(job: Job) -> None:
        await execute(world.dsn, f"update {world.relation} set name = 'a newt' where id = 1")

    async with world.running(Recorder(answer)) as app:
        await world.insert(1)
        await eventually(lambda: is_finished(world))
        assert (await app.table("classify").status()).count == 0
    assert await world.column("name") == "a newt"


async def test_retry_runs_a_row_anew_that_has_ended_or_was_abandoned(world: World) -> None:
    world.declare(failure_mode=Abandon())
    recorder = Recorder(lambda job: Err("never"))
    async with world.running(recorder) as app:
        table = app.table("classify")
        await world.insert(1)
        await eventually(lambda: is_abandoned(table))
        recorder.answer = lambda job: None
        await table.retry(world.key(1))
        await eventually(lambda: is_finished(world))
        await table.retry(world.key(1))
        await eventually(lambda: len(recorder.performed) == 3)
        with pytest.raises(JobNotFound):
            await table.retry(world.key(9))
    assert [job.attempts for job in recorder.performed] == [1, 1, 1]


async def test_retry_refuses_a_row_that_runs(world: World) -> None:
    await world.insert(1)
    await world.claim()
    async with world.app() as app:
        with pytest.raises(JobNotFound, match="does not run"):
            await app.table("classify").retry(world.key(1))


@pytest.mark.parametrize("local", [True, False])
async def test_a_suspended_queue_runs_nothing_until_it_is_resumed(world: World, local: bool) -> None:
    recorder = Recorder()
    async with world.running(recorder) as app:
        table = app.table("classify")
        await table.suspend(local=local)
        assert (await table.status()).suspended
        await world.insert(1)
        await anyio.sleep(0.2)
        assert not recorder.performed
        await table.resume(local=local)
        assert not (await table.status()).suspended
        await eventually(lambda: keys(recorder) == [world.key(1)])


async def test_a_row_is_made_due_again_by_plain_sql(world: World) -> None:
    """The lock column is the user's, too: null is finished, a past moment is due at the next look."""
    recorder = Recorder()
    lock = world.queue.names.lock
    async with world.running(recorder):
        await world.insert(1)
        await eventually(lambda: is_finished(world))
        await world.connection.execute(f"update {world.relation} set {lock} = 0 where id = 1")
        await world.insert(2)
        await eventually(lambda: len(recorder.performed) == 3)
    assert keys(recorder).count(world.key(1)) == 2


async def test_workers_with_a_state_perform_rows(world: World) -> None:
    done: list[object] = []

    class Classifier(Worker):
        async def init(self, model: str) -> str:
            return model

        async def perform(self, job: Job, state: str) -> None:
            done.append((job.key, state))

    async with world.running(Workers(Classifier, ["a model"], num=2)):
        await world.insert(1, 2, 3)
        await eventually(lambda: len(done) == 3)
    assert sorted(done, key=str) == [(world.key(n), "a model") for n in (1, 2, 3)]


async def test_a_plain_function_performs_rows_in_threads(world: World) -> None:
    done: list[object] = []

    class Threaded(Performer):
        def perform(self, job: Job) -> None:
            done.append(job.key)

    async with world.running(Threaded()):
        await world.insert(1, 2)
        await eventually(lambda: len(done) == 2)


async def test_a_run_is_stopped_after_max_job_time(world: World) -> None:
    world.declare(max_job_time=0.1, failure_mode=Abandon())
    async with world.running(Recorder(lambda job: anyio.sleep(60))) as app:
        await world.insert(1)
        await eventually(lambda: is_abandoned(app.table("classify")))
        [job] = await app.table("classify").filter("abandoned")
    assert "timeout" in job.errors[0]["error"]


async def test_a_node_that_leaves_gives_its_rows_back_with_their_place_and_attempt(world: World) -> None:
    recorder = Recorder(lambda job: anyio.sleep(60))
    world.declare(concurrency=1)
    await world.insert(1, 2)
    due = await world.lock()
    async with world.running(recorder, shutdown=0.05):
        await eventually(lambda: recorder.performed)
    assert await world.lock() == due
    assert json.loads(await world.private() or "{}")["attempts"] == 0
    recorder.answer = lambda job: None
    async with world.running(recorder):
        await eventually(lambda: len(recorder.performed) == 3)
    assert keys(recorder) == [world.key(1), world.key(1), world.key(2)]
