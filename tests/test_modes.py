"""Failure modes and success modes: Honeydew's, by their sentences."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import asyncpg
import pytest
import structlog

from pgqueuetopia import (
    Abandon,
    Err,
    ExponentialRetry,
    InvalidJob,
    Job,
    Log,
    Misconfigured,
    Move,
    NewJob,
    Ok,
    Queuetopia,
    Repo,
    Retry,
    Success,
)
from pgqueuetopia.failure import NODE_DIED, FailurePolicy
from pgqueuetopia.modes import loaded, stored
from pgqueuetopia.outcome import Failure, Settlement
from tests.support import Recorder, an_app, eventually

NOW = datetime.now(UTC)
JOB = Job(
    id=1, scope="S", queue="q", action="a", params={}, scheduled_at=NOW, inserted_at=NOW, updated_at=NOW
)
FAILURE = Failure("no")
MODES = [
    Abandon(),
    Move("dead"),
    Retry(3),
    Retry(times=3, finally_=Move("dead")),
    ExponentialRetry(2, 3, Retry(1, Move("dead")), 60.5),
]


def delays(mode: Any, runs: int) -> list[float | str | None]:
    """What a mode says of each run: a delay in seconds, or an outcome."""
    said = [mode(replace(JOB, attempts=attempt), FAILURE) for attempt in range(1, runs + 1)]
    return [one.outcome or one.delay.total_seconds() for one in said]


def test_abandon_ends_the_job() -> None:
    assert Abandon()(JOB, FAILURE) == Settlement.abandoned(FAILURE)


def test_move_names_the_queue() -> None:
    assert Move("dead")(JOB, FAILURE) == Settlement("moved", failure=FAILURE, moved_to="dead")


def test_retry_runs_n_times_again_and_then_does_what_finally_says() -> None:
    assert delays(Retry(3, finally_=Move("dead")), 5) == [0, 0, 0, "moved", "moved"]


def test_retry_asks_how_long_to_wait_and_whether_to_go_on() -> None:
    mode = Retry(5, decide=lambda job, failure: timedelta(minutes=job.attempts) if job.attempts < 3 else None)
    assert delays(mode, 3) == [60, 120, "abandoned"]


def test_exponential_retry_waits_0_1_3_7_seconds() -> None:
    assert delays(ExponentialRetry(4), 5) == [0, 1, 3, 7, "abandoned"]
    assert delays(ExponentialRetry(3, base=3), 3) == [0, 2, 8]


def test_exponential_retry_waits_no_longer_than_max_delay() -> None:
    assert delays(ExponentialRetry(9, max_delay=timedelta(seconds=5)), 5) == [0, 1, 3, 5, 5]


def test_exponential_retry_waits_for_no_longer_than_the_database_can_tell() -> None:
    last = ExponentialRetry(10**6, base=10**6)(replace(JOB, attempts=10**6), FAILURE)
    assert last.delay == timedelta(days=365_000)


# For what the type checker would refuse as well.
retry: Any = Retry
move: Any = Move
exponential: Any = ExponentialRetry


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: retry(0), "Retry: times must be an integer of at least 1, not 0"),
        (lambda: retry("3"), "times must be an integer"),
        (lambda: retry(True), "times must be an integer"),
        (lambda: retry(1, finally_=Move), "finally_ must be an instance, not a class: Move"),
        (lambda: retry(1, finally_="abandon"), "finally_ must be callable, not str"),
        (lambda: retry(1, finally_=retry(1, finally_=None)), "finally_ must be callable, not NoneType"),
        (lambda: retry(1, decide=5), "decide must be callable"),
        (lambda: move(""), "Move: queue must not be empty"),
        (lambda: move(None), "Move: queue must be a string"),
        (lambda: exponential(1, base=0), "base must be an integer of at least 1"),
        (lambda: exponential(1, max_delay=-1), "max_delay must be"),
        (lambda: exponential(1, max_delay=math.inf), "max_delay must be"),
        (lambda: exponential(1, max_delay=1e300), "max_delay must be"),
        (lambda: an_unopened(failure_mode=Abandon), "failure_mode must be an instance, not a class"),
        (lambda: an_unopened(failure_mode=asynchronous), "failure_mode must be a plain function"),
        (lambda: an_unopened(failure_modes={"q": 1}), r"failure_modes\['q'\] must be callable"),
        (lambda: an_unopened(success_mode=1), "success_mode must be callable"),
        (lambda: an_unopened(max_job_time=-1), "max_job_time must be at least 0"),
        (lambda: an_unopened(retry_seconds=None), "retry_seconds must be seconds or a timedelta"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make: Callable[[], object], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        make()


async def asynchronous(job: Job, failure: Failure) -> Settlement:
    return Settlement.abandoned(failure)


def an_unopened(**options: Any) -> Queuetopia:
    return Queuetopia(repo=Repo("postgresql://nobody@127.0.0.1:1/none"), **options)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_is_stored_with_a_job_comes_back(mode: Any) -> None:
    assert loaded(stored(mode)) == mode


def test_a_jobs_mode_goes_before_its_queues_and_that_before_the_applications() -> None:
    policy = FailurePolicy(mode=Abandon(), modes={"q": Move("of the queue")})
    own = replace(JOB, failure_mode=stored(Move("of the job")), attempts=1)
    other = replace(JOB, queue="other", attempts=1)
    assert policy.settle(own, FAILURE, timedelta(0)).moved_to == "of the job"
    assert policy.settle(JOB, FAILURE, timedelta(0)).moved_to == "of the queue"
    assert policy.settle(other, FAILURE, timedelta(0)).outcome == "abandoned"


def test_a_stored_mode_that_cannot_be_read_is_told_and_passed_over() -> None:
    policy = FailurePolicy(mode=Move("dead"))
    with structlog.testing.capture_logs() as logs:
        settlement = policy.settle(replace(JOB, failure_mode={"mode": "?"}), FAILURE, timedelta(0))
    assert settlement.moved_to == "dead"
    assert [entry["event"] for entry in logs] == ["failure_mode_unreadable"]


@pytest.mark.parametrize("mode", [lambda job, failure: 1 / 0, lambda job, failure: None])
def test_a_mode_that_raises_has_its_job_abandoned(mode: Any) -> None:
    with structlog.testing.capture_logs() as logs:
        assert FailurePolicy(mode=mode).settle(JOB, FAILURE, timedelta(0)).outcome == "abandoned"
    assert [entry["event"] for entry in logs] == ["failure_mode_raised"]


def test_a_retry_waits_for_retry_seconds_at_least() -> None:
    policy = FailurePolicy(mode=ExponentialRetry(9), least_delay=timedelta(seconds=2))
    waits = [policy.settle(replace(JOB, attempts=n), FAILURE, timedelta(0)).delay for n in (1, 2, 3, 4)]
    assert waits == [timedelta(seconds=seconds) for seconds in (2, 2, 3, 7)]
    assert FailurePolicy(least_delay=timedelta(seconds=2)).settle(
        replace(JOB, attempts=1), FAILURE, timedelta(seconds=1)
    ).delay == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        (None, "abandoned"),
        (Abandon(), "abandoned"),
        (Retry(3, finally_=Move("dead")), "moved"),
        (lambda job, failure: Settlement.retried(failure, timedelta(0)), "abandoned"),
    ],
)
def test_a_job_whose_node_died_with_its_last_attempt_is_not_run_again(mode: Any, outcome: str) -> None:
    policy = FailurePolicy(mode=mode)
    assert policy.died(replace(JOB, attempts=20)) is None
    settlement = policy.died(replace(JOB, attempts=21))
    assert settlement is not None
    assert (settlement.outcome, settlement.failure, settlement.attempt_spent) == (outcome, NODE_DIED, False)


def test_a_retry_of_more_times_than_max_attempts_may_run_so_often() -> None:
    assert FailurePolicy(mode=Retry(30)).died(replace(JOB, attempts=31)) is None
    assert FailurePolicy(mode=Retry(30)).died(replace(JOB, attempts=32)) is not None


async def test_a_mode_that_is_a_function_may_retry_as_often_as_it_likes(dsn: str) -> None:
    """Its job is not taken for one that has killed its node each time."""
    performer = Recorder(lambda job: Err("no") if job.attempts < 4 else None)

    def again(job: Job, failure: Failure) -> Settlement:
        return Settlement.retried(failure, timedelta(0))

    async with an_app(dsn, performer, failure_mode=again) as app, app.running():
        job = await app.create_job("q", "a", max_attempts=1)
        await eventually(lambda: done(app, "q"))
        stored = await app.get_job(job)
    assert performer.ids == [job.id] * 4
    assert (stored.outcome, [error["error"] for error in stored.errors]) == ("succeeded", ["no"] * 3)


async def test_a_job_is_retried_three_times_and_then_moved(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.queue == "q" else None)
    mode = Retry(times=3, finally_=Move("dead"))
    async with an_app(dsn, performer, failure_mode=mode) as app, app.running():
        job = await app.create_job("q", "a", {"x": 1}, priority=3, timeout=7)
        await eventually(lambda: len(performer.performed) == 5)
        await eventually(lambda: done(app, "dead"))
        [copy] = await app.list_jobs(queue="dead")
        assert [run.attempts for run in performer.performed] == [1, 2, 3, 4, 1]
        assert (await app.get_job(job)).state == "moved"
        assert (copy.action, copy.params, copy.priority, copy.timeout, copy.moved_from) == (
            "a", {"x": 1}, 3, timedelta(seconds=7), job.id,
        )  # fmt: skip


async def done(app: Queuetopia, queue: str) -> bool:
    jobs = await app.list_jobs(queue=queue)
    return bool(jobs) and all(job.done_at for job in jobs)


async def test_a_jobs_own_mode_travels_with_it(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no"))
    async with an_app(dsn, performer, failure_mode=Abandon()) as app, app.running():
        job = await app.create_job("q", "a", failure_mode=Retry(1, finally_=Abandon()))
        [other] = await app.create_jobs([{"queue": "r", "action": "a", "failure_mode": Retry(2)}])
        await eventually(lambda: done(app, "q"))
        await eventually(lambda: done(app, "r"))
        assert (await app.get_job(job)).attempts == 2
        assert (await app.get_job(other)).attempts == 3
        assert loaded(job.failure_mode or {}) == Retry(1)


async def test_a_jobs_own_mode_is_stored_by_a_connection_with_a_codec_of_its_own(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    async with an_app(dsn, Recorder(lambda job: Err("no"))) as app, app.running():
        job = await app.create_job("q", "a", failure_mode=Abandon(), conn=connection)
        [other] = await app.create_jobs([NewJob("q", "a", failure_mode=Abandon())], conn=connection)
        await eventually(lambda: done(app, "q"))
        assert [(await app.get_job(one)).outcome for one in (job, other)] == ["abandoned"] * 2


async def test_a_function_cannot_be_stored_with_a_job(dsn: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(InvalidJob, match="A function cannot be stored with a job"):
            await app.create_job("q", "a", failure_mode=lambda job, failure: Settlement.abandoned(failure))
        with pytest.raises(InvalidJob, match="decide cannot be stored"):
            await app.create_job("q", "a", failure_mode=Retry(1, decide=lambda job, failure: 1))
        with pytest.raises(InvalidJob, match="reply must be True or False"):
            await app.create_job("q", "a", reply="yes")  # type: ignore[arg-type]
        assert (await app.list_jobs()).total == 0


async def test_a_failure_mode_may_be_a_plain_function_of_a_class(dsn: str) -> None:
    class Halting(Queuetopia):
        scope = "Test"

        def failure_mode(job: Job, failure: Failure) -> Settlement:  # type: ignore[override,misc]
            return Settlement.abandoned(failure)

    app = Halting(repo=Repo(dsn), performer=Recorder(lambda job: Err("no")))
    async with app.running():
        await app.create_job("q", "a")
        await eventually(lambda: done(app, "q"))
    await app.close()


@pytest.mark.parametrize(
    "settlement",
    [
        lambda failure: a_settlement(outcome=None, delay="soon", failure=failure),
        lambda failure: a_settlement(outcome="abandoned", failure="text"),
        lambda failure: Settlement.moved(failure, ""),
        lambda failure: Settlement("no such outcome", None, failure=failure),
    ],
    ids=["a text as delay", "a text as failure", "no queue", "no outcome"],
)
async def test_a_failure_mode_that_says_what_cannot_be_written_has_its_job_abandoned(
    dsn: str, settlement: Any
) -> None:
    """And all that has ended beside it is written."""
    modes = {"bad": lambda job, failure: settlement(failure)}
    async with an_app(dsn, Recorder(fail_badly), failure_modes=modes) as app, app.running():
        failing = await app.create_job("bad", "a")
        await app.create_job("good", "a")
        await eventually(lambda: done(app, "good"))
        await eventually(lambda: done(app, "bad"))
        stored = await app.get_job(failing)
    assert (stored.outcome, [error["error"] for error in stored.errors]) == ("abandoned", ["no"])


def a_settlement(**given: Any) -> Settlement:
    """Whatever it is given."""
    return Settlement(**given)


async def fail_badly(job: Job) -> Any:
    return Err("no") if job.queue == "bad" else None


@pytest.mark.parametrize(
    "delay", [5, timedelta(seconds=-5), timedelta.max], ids=["a number", "negative", "for ever"]
)
async def test_a_failure_mode_may_ask_for_any_delay(dsn: str, delay: Any) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim == 1 else None)

    def mode(job: Job, failure: Failure) -> Settlement:
        return a_settlement(outcome=None, delay=delay, failure=failure)

    async with an_app(dsn, performer, failure_mode=mode) as app, app.running():
        await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
    [failed] = performer.failed
    assert failed.outcome != "abandoned"
    assert [error["error"] for error in failed.errors] == ["no"]


async def test_a_success_mode_is_told_after_the_outcome_is_committed(dsn: str) -> None:
    told: list[Success] = []
    states: list[str] = []

    async def tell(success: Success) -> None:
        states.append((await app.get_job(success.job)).state)
        told.append(success)

    async with an_app(dsn, Recorder(lambda job: Ok(job.params)), success_mode=tell) as app, app.running():
        await app.create_job("q", "a", {"x": 1})
        await eventually(lambda: told)
    assert states == ["succeeded"]
    assert told[0].result == {"x": 1}
    assert timedelta(0) <= told[0].queue_time < timedelta(seconds=20)
    assert timedelta(0) < told[0].run_time < timedelta(seconds=20)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_what_a_success_mode_raises_harms_nothing(dsn: str, error: type[BaseException]) -> None:
    def fail(success: Success) -> None:
        raise error

    performer = Recorder()
    async with an_app(dsn, performer, success_mode=fail) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            await app.create_jobs([{"queue": "q", "action": "a"}] * 2)
            await eventually(lambda: len(performer.performed) == 2)
            await eventually(lambda: len(raised(logs)) == 2)
        assert await done(app, "q")


def raised(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "success_mode_raised"]


async def test_log_tells_queue_time_run_time_and_result(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: "done"), success_mode=Log()) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            job = await app.create_job("q", "a")
            await eventually(lambda: [entry for entry in logs if entry["event"] == "job_succeeded"])
    [entry] = [entry for entry in logs if entry["event"] == "job_succeeded"]
    assert (entry["job"], entry["queue"], entry["action"], entry["result"]) == (job.id, "q", "a", "done")
    assert entry["queue_time"] >= 0
    assert entry["run_time"] > 0


async def test_max_job_time_limits_every_run(dsn: str) -> None:
    performer = Recorder(lambda job: anyio.sleep(30))
    options = {"max_job_time": 0.05, "failure_mode": Abandon()}
    async with an_app(dsn, performer, **options) as app, app.running():
        job = await app.create_job("q", "a", timeout=0)
        await eventually(lambda: done(app, "q"))
        assert (await app.get_job(job)).errors[0]["error"] == "timeout: the job took longer than 0.05 s"
