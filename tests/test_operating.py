import re
from datetime import timedelta
from typing import Any

import anyio
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Err, InvalidJob, JobNotFound, Misconfigured, NewJob
from pgqueuetopia.job import STATES
from tests.support import Recorder, an_app, eventually


async def test_status_counts_each_pending_job_once(dsn: str) -> None:
    release = anyio.Event()

    def answer(job: Any) -> Any:
        return release.wait() if job.action == "wait" else Err("no")

    performer = Recorder(answer)
    async with an_app(dsn, performer) as app, app.running():
        await app.create_job("running", "wait")
        await app.create_job("running", "wait")
        await app.create_job("failing", "fail")
        await app.create_job("failing", "fail")
        await app.create_job("later", "fail", scheduled_at=timedelta(hours=1))
        await eventually(lambda: performer.failed and len(performer.performed) == 2)
        status = await app.status()
        assert (status.executing, status.ready, status.retrying, status.blocked, status.scheduled) == (
            1, 1, 1, 1, 1,
        )  # fmt: skip
        assert status.count == 5
        assert len(status.nodes) == 1
        one = await app.status("later")
        assert (one.count, one.scheduled) == (1, 1)
        release.set()


async def test_blocked_queues_tell_head_time_and_reason(dsn: str) -> None:
    performer = Recorder(lambda job: Err(f"no {job.queue}"))
    async with an_app(dsn, performer) as app, app.running():
        jobs = [await app.create_job(queue, "a") for queue in ("q1", "q2")]
        await eventually(lambda: len(performer.failed) == 2)
        blocked = await app.blocked_queues()
    assert [(one.queue, one.head, one.why) for one in blocked] == [
        ("q1", jobs[0].id, "no q1"),
        ("q2", jobs[1].id, "no q2"),
    ]
    assert all(one.next_attempt_at and one.since < one.next_attempt_at for one in blocked)


async def test_jobs_are_listed_by_page_and_filter(dsn: str) -> None:
    async with an_app(dsn) as app:
        await app.create_jobs([NewJob(f"q{n % 2}", f"a{n % 3}", {"to": f"{n}%@b.c"}) for n in range(25)])
        page = await app.list_jobs(limit=10)
        assert (len(page), page.total, page.next) == (10, 25, page[-1].id)
        rest = [*await app.list_jobs(limit=10, after=page.next or 0)]
        last = await app.list_jobs(limit=10, after=rest[-1].id)
        assert (len(rest), len(last), last.next) == (10, 5, None)
        assert (await app.list_jobs(queue="q1", action="a2")).total == 4
        assert [job.params["to"] for job in await app.list_jobs(search="13%@")] == ["13%@b.c"]
        assert (await app.list_jobs(search="%")).total == 25
        assert (await app.list_jobs(search="_")).total == 0
        assert (await app.list_jobs(search="")).total == 25
        assert (await app.list_jobs(state="ready")).total == 25
        assert (await app.list_jobs(state="succeeded")) == []


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"limit": 0}, "limit must be between 1 and"),
        ({"limit": -1}, "limit must be between 1 and"),
        ({"limit": None}, "limit must be an integer, not NoneType"),
        ({"after": None}, "after must be an integer, not NoneType"),
        ({"after": 2**70}, "after must be between 0 and"),
        ({"state": "done"}, "A job is ready, .* or pending; there is no state 'done'"),
    ],
)
async def test_a_page_that_cannot_be_is_refused(dsn: str, filters: dict[str, Any], message: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(Misconfigured, match=message):
            await app.list_jobs(**filters)


async def test_every_state_of_the_view_can_be_asked_for(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    [[view]] = await connection.fetch("select pg_get_viewdef('pgqueuetopia.job_states'::regclass)")
    outcomes = {"succeeded", "abandoned", "cancelled", "moved"}
    assert set(re.findall(r"(?:THEN|ELSE) '(\w+)'", view)) | outcomes == set(STATES)
    async with an_app(dsn) as app:
        for state in (*STATES, "pending"):
            assert await app.list_jobs(state=state) == []


@pytest.mark.parametrize("condition", ["done", {"parms": {}}, None])
async def test_a_condition_that_no_job_can_meet_is_refused(dsn: str, condition: Any) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(Misconfigured, match=r"no state 'done'|has no parms|not NoneType"):
            _ = [job async for job in app.filter("q", condition)]


@pytest.mark.parametrize("job", ["x", "1", None, True, 1.0])
async def test_what_is_no_job_is_refused(dsn: str, job: Any) -> None:
    async with an_app(dsn) as app:
        for operate in (app.get_job, app.cancel, app.abandon, app.retry, app.reply):
            with pytest.raises(InvalidJob, match="job must be a Job or its id, not"):
                await operate(job)
        with pytest.raises(InvalidJob, match="job must be a Job or its id, not"):
            await app.move(job, "q")


@pytest.mark.parametrize("number", [2**70, -(2**70)])
async def test_no_job_has_a_number_that_the_database_cannot_hold(dsn: str, number: int) -> None:
    async with an_app(dsn) as app:
        assert await app.cancel(number, kill=True) is Cancelled.NOT_FOUND
        assert await app.abandon(number) is Cancelled.NOT_FOUND
        for operate in (app.get_job, app.retry, app.reply):
            with pytest.raises(JobNotFound):
                await operate(number)
        with pytest.raises(JobNotFound):
            await app.move(number, "q")


async def test_a_waiting_job_is_cancelled_and_a_running_one_is_not(dsn: str) -> None:
    release = anyio.Event()
    performer = Recorder(lambda job: release.wait())
    async with an_app(dsn, performer) as app, app.running():
        running = await app.create_job("q", "a")
        waiting = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        assert await app.cancel(running) is Cancelled.IN_PROGRESS
        assert await app.cancel(waiting) is Cancelled.OK
        assert await app.cancel(waiting.id) is Cancelled.NOT_FOUND
        assert await app.cancel(12345) is Cancelled.NOT_FOUND
        release.set()
        await eventually(lambda: is_in(app, running, "succeeded"))
        assert await app.cancel(running) is Cancelled.NOT_FOUND
        assert (await app.get_job(waiting)).state == "cancelled"
    assert performer.ids == [running.id]


async def is_in(app: Any, job: Any, state: str) -> bool:
    return bool((await app.get_job(job)).state == state)


async def test_a_cancelled_head_lets_its_queue_go_on(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer) as app, app.running():
        failing = await app.create_job("q", "fail")
        behind = await app.create_job("q", "work")
        await eventually(lambda: performer.failed)
        assert await app.abandon(failing) is Cancelled.OK
        await eventually(lambda: is_in(app, behind, "succeeded"))
        assert (await app.get_job(failing)).state == "abandoned"


async def test_a_job_of_another_scope_is_not_found(dsn: str) -> None:
    async with an_app(dsn) as app, an_app(dsn, scope="Other") as other:
        job = await other.create_job("q", "a")
        assert await app.cancel(job) is Cancelled.NOT_FOUND
        with pytest.raises(JobNotFound):
            await app.get_job(job)
        with pytest.raises(JobNotFound):
            await app.retry(job)


async def test_retry_runs_a_waiting_job_now_and_a_finished_one_again(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim == 1 else None)
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
        await app.retry(job)
        await eventually(lambda: is_in(app, job, "succeeded"))
        await app.retry(job)
        await eventually(lambda: len(performer.performed) == 3)
        await eventually(lambda: is_in(app, job, "succeeded"))
    assert [one.claim for one in performer.performed] == [1, 2, 4], "an earlier run has nothing more to tell"


async def test_retry_of_a_job_that_never_failed_is_refused(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        with pytest.raises(JobNotFound, match="waits for an attempt or has ended"):
            await app.retry(job)


async def test_retry_all_runs_every_waiting_job(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim == 1 else None)
    async with an_app(dsn, performer) as app, app.running():
        await app.create_jobs([NewJob(f"q{n}", "a") for n in range(5)])
        await eventually(lambda: len(performer.failed) == 5)
        assert await app.retry_all("q3") == 1
        await eventually(lambda: len(performer.performed) == 6)
        assert await app.retry_all() == 4
        await eventually(lambda: len(performer.performed) == 10)


async def test_the_cleaner_removes_what_ended_long_ago(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, done_at, outcome)"
        " select s, 'q', 'a', now() - interval '8 days', 'succeeded'"
        " from generate_series(1, 2500), (values ('Test'), ('Other')) as scopes (s)"
    )
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, done_at, outcome)"
        " values ('Test', 'q', 'a', now() - interval '6 days', 'abandoned')"
    )
    async with an_app(dsn, Recorder()) as app, an_app(dsn, scope="Other") as other, app.running():
        await eventually(lambda: total_is(app, 1))
        assert (await other.list_jobs(limit=1)).total == 2500


async def test_a_job_can_be_kept_for_ever(dsn: str) -> None:
    async with an_app(dsn, job_retention=timedelta(days=365_000)) as app:
        await app.cancel(await app.create_job("q", "a"))
        assert await app.repo.clean("Test", timedelta(days=365_000), 10) == 0


async def total_is(app: Any, total: int) -> bool:
    return bool((await app.list_jobs(limit=1)).total == total)


async def test_one_node_of_a_scope_cleans_at_a_time(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    turn = "advisory_xact_lock(pgqueuetopia.lock_key('cleaning', 'Test'))"
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        await app.cancel(job)
        async with connection.transaction():
            await connection.execute(f"select pg_{turn}")
            assert await app.repo.clean("Test", timedelta(0), 10) == 0
        assert await app.repo.clean("Test", timedelta(0), 10) == 1
