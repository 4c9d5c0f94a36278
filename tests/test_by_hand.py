"""What operators and applications do with single jobs: filter, move, cancel what runs (Honeydew); by SQL."""

import threading

import asyncpg
import pytest

from pgqueuetopia import (
    Cancelled,
    DatabaseRefused,
    Err,
    InvalidJob,
    Job,
    JobNotFound,
    Moved,
    Ok,
    Queuetopia,
    Retry,
    operations,
)
from tests.node.test_session_loss import Held
from tests.support import DEADLINE, Recorder, an_app, eventually


async def test_filter_takes_a_function_a_dict_or_a_state(dsn: str) -> None:
    async with an_app(dsn) as app:
        jobs = await app.create_jobs(
            {
                "queue": f"q{n % 2}",
                "action": "ab"[n % 2],
                "params": {"n": n, "to": {"id": n % 3, "name": "x"}},
            }
            for n in range(12)
        )
        await app.abandon(jobs[0])
        by_function = [job.params["n"] async for job in app.filter("q0", lambda job: job.params["n"] > 5)]
        by_dict = [job.id async for job in app.filter(None, {"action": "b", "params": {"to": {"id": 1}}})]
        by_state = [job.id async for job in app.filter("q0", "abandoned")]
        everything = [job.id async for job in app.filter("q0", {})]
    assert by_function == [6, 8, 10]
    assert by_dict == [jobs[1].id, jobs[7].id]
    assert by_state == [jobs[0].id]
    assert everything == [job.id for job in jobs[2::2]], "what has ended is not there"


async def test_filter_reads_page_after_page(dsn: str) -> None:
    async with an_app(dsn) as app:
        jobs = await app.create_jobs({"queue": "q", "action": "a"} for _ in range(2_500))
        assert [job.id async for job in app.filter("q", lambda job: True)] == [job.id for job in jobs]


async def test_what_a_function_raises_is_its_callers(dsn: str) -> None:
    async with an_app(dsn) as app:
        await app.create_job("q", "a")
        with pytest.raises(ZeroDivisionError):
            _ = [job async for job in app.filter("q", lambda job: 1 / 0)]


async def test_a_job_is_moved_to_the_end_of_another_queue_and_goes_on_telling(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        first = await app.create_job("other", "a")
        job = await app.create_job("q", "b", {"x": 1}, reply=True)
        moved = await app.move(job, "other")
        assert (moved.queue, moved.action, moved.params, moved.moved_from) == ("other", "b", {"x": 1}, job.id)
        assert (await app.get_job(job)).state == "moved"
        async with app.running():
            assert [await app.reply(job), await app.reply(job)] == [Moved("other"), Ok(None)]
    assert performer.ids == [first.id, moved.id]


async def test_a_job_that_has_ended_runs_again_where_it_is_moved_to(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: is_in(app, job, "succeeded"))
        moved = await app.move(job, "other")
        await eventually(lambda: is_in(app, moved, "succeeded"))
        assert (await app.get_job(job)).state == "succeeded"
    assert performer.ids == [job.id, moved.id]


async def test_a_job_that_runs_or_is_not_there_is_not_moved(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        with pytest.raises(JobNotFound, match="it runs"):
            await app.move(job, "other")
        with pytest.raises(JobNotFound, match="not there"):
            await app.move(12345, "other")
        with pytest.raises(InvalidJob, match="queue must not be empty"):
            await app.move(job, "")
        performer.let_go.set()


async def is_in(app: Queuetopia, job: Job, state: str) -> bool:
    return (await app.get_job(job)).state == state


async def test_a_job_that_runs_is_stopped_wherever_it_runs_and_its_queue_goes_on(dsn: str) -> None:
    performer = Held()
    async with an_app(dsn, performer) as app, an_app(dsn) as elsewhere, app.running():
        job, following = [await app.create_job("q", "a") for _ in range(2)]
        await eventually(lambda: performer.performed)
        assert await elsewhere.cancel(job.id) is Cancelled.IN_PROGRESS
        assert await elsewhere.cancel(job.id, kill=True) is Cancelled.OK
        assert (await app.get_job(job)).state == "cancelled"
        await eventually(lambda: performer.ids == [job.id, following.id])
        performer.let_go.set()
        await eventually(lambda: is_in(app, following, "succeeded"))


async def test_a_thread_cannot_be_stopped(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    class Threaded(Recorder):
        def perform(self, job: Job) -> None:  # type: ignore[override]
            self.performed.append(job)
            let_go.wait(DEADLINE)

    monkeypatch.setattr(operations, "KILL_PATIENCE", 0.1)
    performer = Threaded()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        assert await app.cancel(job, kill=True) is Cancelled.IN_PROGRESS
        let_go.set()
        await eventually(lambda: is_in(app, job, "succeeded"))


async def test_kill_says_of_a_job_that_does_not_run_what_cancel_says(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        assert await app.cancel(job, kill=True) is Cancelled.OK
        assert await app.cancel(job, kill=True) is Cancelled.NOT_FOUND


@pytest.mark.parametrize("column", ["updated_at", "next_attempt_at"])
@pytest.mark.parametrize("time", ["4000-01-01 BC", "-infinity"])
async def test_a_time_that_python_cannot_read_ends_no_node(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", column: str, time: str
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        for _ in range(20):
            await connection.execute(
                f"insert into pgqueuetopia.jobs (scope, queue, action, {column})"
                f" values ('Test', 'q', 'a', '{time}')"
            )
        await eventually(lambda: len(performer.performed) == 20)
    assert all(job.next_attempt_at is None for job in performer.performed)
    assert all(job.updated_at == job.inserted_at for job in performer.performed)


async def test_a_time_that_python_cannot_read_is_told_to_who_looks(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        for time in ("4000-01-01 BC", "20000-01-01"):
            await connection.execute(f"update pgqueuetopia.jobs set updated_at = '{time}'")
            with pytest.raises(DatabaseRefused, match="before the year 1 or after 9999"):
                await app.list_jobs()
        await connection.execute("update pgqueuetopia.jobs set updated_at = inserted_at")
        assert await app.get_job(job) == job
        with pytest.raises(asyncpg.CheckViolationError, match="moment_in_range"):
            await connection.execute("update pgqueuetopia.jobs set inserted_at = '4000-01-01 BC'")


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("column", "value"), [("errors", DEEP), ("errors", "[1, {}]"), ("failure_mode", f'{{"mode": {DEEP}}}')]
)
async def test_errors_and_failure_modes_of_any_kind_end_no_node(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", column: str, value: str
) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    # Its attempts are spent: its last error says whether it has told so.
    write = f"""insert into pgqueuetopia.jobs (scope, queue, action, attempts, {column})
        values ('Test', 'q', 'fail', $2, $1)"""
    async with an_app(dsn, performer, failure_mode=Retry(times=1)) as app, app.running():
        await connection.execute(write, value, 40)
        await connection.execute(write, value, 0)
        behind = await app.create_job("q", "work")
        await eventually(lambda: is_in(app, behind, "succeeded"))
        page = await app.list_jobs()
        assert [job.state for job in page] == ["abandoned", "abandoned", "succeeded"]
        assert all(isinstance(error, dict) for job in page for error in job.errors)
        assert page[0].failure_report()
