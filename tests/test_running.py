"""What becomes of a job: one test for each outcome."""

import asyncio
import os
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog
from pydantic import BaseModel, field_serializer

from pgqueuetopia import Err, InvalidJob, Job, Ok, Performer, Queuetopia, Snooze, action, progress
from pgqueuetopia.node import run
from tests.support import Recorder, an_app, eventually

NO_WAIT = 0  # a max_backoff of no time: a failed job is due again at once


async def test_jobs_of_a_queue_run_in_the_order_of_their_creation(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        jobs = [await app.create_job("q", "send", {"n": n}) for n in range(20)]
        await eventually(lambda: len(performer.performed) == 20)
    assert performer.ids == [job.id for job in jobs]


async def test_a_job_scheduled_earlier_runs_earlier(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        late = await app.create_job("q", "a", scheduled_at=soon + timedelta(seconds=0.2))
        early = await app.create_job("q", "a", scheduled_at=soon)
        async with app.running():
            await eventually(lambda: len(performer.performed) == 2)
    assert performer.ids == [early.id, late.id]
    for job in performer.performed:
        assert job.attempted_at is not None
        assert job.attempted_at >= job.scheduled_at


async def test_a_stopped_job_that_goes_on_is_stopped_again(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """anyio.run_process, once cancelled, waits for its process, and kills it when cancelled again."""
    monkeypatch.setattr(run, "AGAIN", 0.1)

    async def perform(job: Job) -> None:
        await anyio.run_process(["sleep", "60"])

    async with an_app(dsn, Recorder(perform)) as app, app.running():
        job = await app.create_job("q", "a", timeout=0.1, max_attempts=1)
        await eventually(lambda: is_in(app, job, "abandoned"), within=20)
        assert "timeout" in (await app.get_job(job)).errors[0]["error"]


async def is_in(app: Queuetopia, job: Job, state: str) -> bool:
    return bool((await app.get_job(job)).state == state)


async def test_a_failing_job_blocks_its_queue_and_no_other(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer) as app, app.running():
        failing = await app.create_job("blocked", "fail")
        await app.create_job("blocked", "work")
        other = await app.create_job("free", "work")
        await eventually(lambda: other.id in performer.ids and performer.failed)
        assert performer.ids.count(failing.id) == 1
        assert (await app.get_job(failing)).state == "retrying"
        assert (await app.status("blocked")).blocked == 1


async def test_nothing_overtakes_a_job_that_has_failed_once(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" and job.attempts == 1 else None)
    async with an_app(dsn, performer) as app, app.running():
        failing = await app.create_job("q", "fail", max_backoff=0.3)
        await eventually(lambda: performer.failed)
        earlier = await app.create_job("q", "work", scheduled_at=timedelta(days=-1))
        await eventually(lambda: len(performer.performed) == 3)
    assert performer.ids == [failing.id, failing.id, earlier.id]


async def test_a_performer_that_is_an_empty_collection_is_one_all_the_same(dsn: str) -> None:
    class Sizes(list[int], Performer):
        @action("measure")
        def measure(self, job: Job) -> None:
            self.append(job.id)

    sizes = Sizes()
    async with an_app(dsn, sizes) as app, app.running():
        with pytest.raises(InvalidJob, match="action 'other' is unknown"):
            await app.create_job("q", "other")
        job = await app.create_job("q", "measure")
        await eventually(lambda: sizes == [job.id])


class Sent(BaseModel):
    on: date


SENT = Sent(on=date(2026, 1, 2))


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (None, None),
        (Ok({"a": 1}), {"a": 1}),
        (Ok(), None),
        ("text", "text"),
        ([1], [1]),
        (SENT, {"on": "2026-01-02"}),
        (Ok(SENT), {"on": "2026-01-02"}),
    ],
)
async def test_none_ok_and_any_value_are_success(dsn: str, answer: Any, result: Any) -> None:
    async with an_app(dsn, Recorder(lambda job: answer)) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: is_done(app, job))
        done = await app.get_job(job)
    assert (done.state, done.result, done.attempts, done.errors) == ("succeeded", result, 1, ())
    assert done.done_at is not None


async def is_done(app: Any, job: Job) -> bool:
    return (await app.get_job(job)).done_at is not None


class Undumpable(BaseModel):
    @field_serializer("*")
    def dump(self, value: object) -> object:
        raise RuntimeError("no")

    a: int = 1


@pytest.mark.parametrize("answer", [object(), Undumpable()])
async def test_a_result_that_is_not_json_is_not_stored_and_the_job_has_succeeded(
    dsn: str, answer: object
) -> None:
    def perform(job: Job) -> object:
        progress(answer)
        return answer

    async with an_app(dsn, Recorder(perform)) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: is_done(app, job))
        assert (await app.get_job(job)).result is None


async def test_err_is_failure_with_its_message(dsn: str) -> None:
    performer = Recorder(lambda job: Err("mailbox is full"))
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
        failed = await app.get_job(job)
    [error] = failed.errors
    assert error["error"] == "mailbox is full"
    assert error["attempt"] == 1
    assert error["node"] == failed.attempted_by
    assert "at" in error
    assert failed.next_attempt_at is not None
    assert failed.attempted_at is not None
    assert timedelta(seconds=1.9) < failed.next_attempt_at - failed.attempted_at < timedelta(seconds=4)


async def test_a_raise_is_failure_with_its_traceback(dsn: str) -> None:
    def answer(job: Job) -> None:
        raise ValueError("bad \0 thing")

    performer = Recorder(answer)
    async with an_app(dsn, performer) as app, app.running():
        await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
    [error] = performer.failed[0].errors
    assert error["error"] == "ValueError: bad \N{REPLACEMENT CHARACTER} thing"
    assert "Traceback" in error["traceback"]


async def test_a_node_whose_host_is_cancelled_leaves_in_order(dsn: str) -> None:
    async def perform(job: Job) -> None:
        host.cancel()
        await anyio.sleep(0.05)

    async with an_app(dsn, Recorder(perform)) as app:
        job = await app.create_job("q", "a")
        with anyio.CancelScope() as host:
            async with app.running():
                await anyio.sleep_forever()
        assert host.cancelled_caught
        assert (await app.get_job(job)).outcome == "succeeded"
        assert (await app.status()).nodes == ()


async def test_a_node_whose_host_is_cancelled_as_it_has_started_leaves_in_order(dsn: str) -> None:
    async def host() -> None:
        async with app.running():
            await anyio.sleep_forever()

    def cancel_it(logger: object, method: str, event: Any) -> Any:
        """In the turn of the loop in which the node says that it has started."""
        if event["event"] == "node_started":
            asyncio.get_running_loop().call_soon(hosting.cancel)
        return event

    structlog.configure(processors=[cancel_it, structlog.processors.JSONRenderer()])
    async with an_app(dsn, Recorder()) as app:
        hosting = asyncio.create_task(host())
        await eventually(hosting.done)
        assert hosting.cancelled()
        assert (await app.status()).nodes == ()


async def test_a_performer_that_exits_or_cancels_itself_fails_its_job_alone(dsn: str) -> None:
    async def answer(job: Job) -> None:
        if job.action == "exit":
            raise SystemExit(3)
        if job.action == "cancel":
            raise anyio.get_cancelled_exc_class()

    async def run(job: Job) -> None:
        await answer(job)

    performer = Recorder(run)
    async with an_app(dsn, performer) as app, app.running():
        for what in ("exit", "cancel", "work"):
            await app.create_job(what, what)
        await eventually(lambda: len(performer.failed) == 2)
        await eventually(lambda: has_succeeded(app, "work"))
    assert sorted(job.action for job in performer.failed) == ["cancel", "exit"]


async def has_succeeded(app: Any, queue: str) -> bool:
    return bool(await app.list_jobs(queue=queue, state="succeeded"))


async def test_a_job_that_takes_too_long_is_cancelled_and_fails(dsn: str) -> None:
    performer = Recorder(lambda job: anyio.sleep(60))
    async with an_app(dsn, performer) as app, app.running():
        await app.create_job("q", "a", timeout=0.05)
        await eventually(lambda: performer.failed)
    assert performer.failed[0].errors[0]["error"] == "timeout: the job took longer than 0.05 s"


async def test_a_timeout_of_zero_is_none(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: anyio.sleep(0.05))) as app, app.running():
        await app.create_job("q", "a", timeout=0)
        await eventually(lambda: has_succeeded(app, "q"))


async def test_a_snooze_spends_no_attempt_and_holds_the_queue(dsn: str) -> None:
    performer = Recorder(lambda job: Snooze(0.2) if job.claim == 1 and job.action == "snooze" else None)
    async with an_app(dsn, performer) as app, app.running():
        snoozed = await app.create_job("q", "snooze")
        behind = await app.create_job("q", "work")
        await eventually(lambda: is_done(app, behind))
    assert performer.ids == [snoozed.id, snoozed.id, behind.id]
    assert [(job.attempts, job.claim) for job in performer.performed] == [(1, 1), (1, 2), (1, 1)]


async def test_a_job_that_fails_to_the_end_is_abandoned_and_its_queue_goes_on(dsn: str) -> None:
    performer = Recorder(lambda job: Err(f"no {job.attempts}") if job.action == "fail" else None)
    async with an_app(dsn, performer) as app, app.running():
        failing = await app.create_job("q", "fail", max_attempts=3, max_backoff=NO_WAIT)
        behind = await app.create_job("q", "work")
        await eventually(lambda: is_done(app, behind))
        abandoned = await app.get_job(failing)
        await eventually(lambda: len(performer.failed) == 3)
    assert performer.ids == [failing.id] * 3 + [behind.id]
    assert (abandoned.state, abandoned.attempts) == ("abandoned", 3)
    assert [error["error"] for error in abandoned.errors] == ["no 1", "no 2", "no 3"]
    assert performer.failed[-1].outcome == "abandoned"


async def test_an_exhausted_job_may_block_its_queue_until_an_operator_acts(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.claim == 1 and job.action == "fail" else None)
    async with an_app(dsn, performer, on_exhausted="block") as app, app.running():
        failing = await app.create_job("q", "fail", max_attempts=1)
        behind = await app.create_job("q", "work")
        await eventually(lambda: performer.failed)
        [blocked] = await app.blocked_queues()
        assert (blocked.queue, blocked.head, blocked.next_attempt_at) == ("q", failing.id, None)
        listed = await app.list_jobs(state="blocked")
        for job in (await app.get_job(failing), performer.failed[0], listed[0]):
            assert (job.id, job.state, job.next_attempt_at) == (failing.id, "blocked", None)
        await app.retry(failing)
        await eventually(lambda: is_done(app, behind))
    assert performer.ids == [failing.id, failing.id, behind.id]


async def test_errors_are_capped_in_number_and_size(dsn: str) -> None:
    performer = Recorder(lambda job: Err(f"{job.attempts} " + "x" * 1_000_000))
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", max_attempts=25, max_backoff=NO_WAIT)
        await eventually(lambda: is_done(app, job))
        errors = (await app.get_job(job)).errors
    assert [error["attempt"] for error in errors] == list(range(6, 26))
    assert all(len(error["error"]) == 2000 for error in errors)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
async def test_a_hook_or_a_backoff_that_raises_loses_nothing(dsn: str, error: type[BaseException]) -> None:
    class Unlucky(Recorder):
        def backoff(self, job: Job) -> timedelta:
            raise error("no backoff")

        async def handle_failed_job(self, job: Job) -> None:
            self.failed.append(job)
            raise error("no hook")

    performer = Unlucky(lambda job: Err("no") if job.attempts == 1 else None)
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", max_backoff=NO_WAIT)
        await eventually(lambda: is_done(app, job))
    assert len(performer.performed) == 2
    assert len(performer.failed) == 1


async def test_a_backoff_of_the_performers_own_is_used(dsn: str) -> None:
    class Patient(Recorder):
        def backoff(self, job: Job) -> timedelta:
            return timedelta(hours=job.attempts)

    performer = Patient(lambda job: Err("no"))
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
        waiting = await app.get_job(job)
    assert waiting.next_attempt_at is not None
    assert waiting.next_attempt_at - waiting.updated_at == timedelta(hours=1)


class Mail(BaseModel):
    to: str


class Mailer(Performer):
    def __init__(self) -> None:
        self.sent: list[Any] = []

    @action("send_mail")
    async def send_mail(self, mail: Mail, job: Job) -> None:
        self.sent.append((mail, job.action))

    @action("ping")
    def ping(self) -> str:
        return "pong"


async def test_an_action_receives_its_model(dsn: str) -> None:
    performer = Mailer()
    async with an_app(dsn, performer) as app, app.running():
        await app.create_job("q", "send_mail", Mail(to="a@b.c"))
        ping = await app.create_job("q", "ping")
        await eventually(lambda: is_done(app, ping))
        assert (await app.get_job(ping)).result == "pong"
    assert performer.sent == [(Mail(to="a@b.c"), "send_mail")]


async def test_a_plain_function_runs_in_a_thread_and_the_loop_goes_on(dsn: str) -> None:
    import threading

    gate = threading.Event()

    class Blocking(Performer):
        def perform(self, job: Job) -> str:
            if job.action == "wait":
                assert gate.wait(10)
            else:
                gate.set()
            return threading.current_thread().name

    async with an_app(dsn, Blocking()) as app, app.running():
        waiting = await app.create_job("q1", "wait")
        await app.create_job("q2", "open")
        await eventually(lambda: is_done(app, waiting))
        assert (await app.get_job(waiting)).result != threading.current_thread().name


def hidden(method: Any) -> Any:
    """A decorator that knows nothing of async."""

    def call(*arguments: Any) -> Any:
        return method(*arguments)

    return call


async def test_an_async_method_behind_a_decorator_that_does_not_say_so_is_run(dsn: str) -> None:
    class Decorated(Performer):
        @hidden
        async def perform(self, job: Job) -> str:
            await anyio.lowlevel.checkpoint()
            return "done"

    async with an_app(dsn, Decorated()) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: is_done(app, job))
        stored = await app.get_job(job)
    assert (stored.outcome, stored.result) == ("succeeded", "done")


async def test_it_has_no_more_time_than_any_other(dsn: str) -> None:
    class Decorated(Recorder):
        @hidden
        async def perform(self, job: Job) -> None:
            await anyio.sleep(60)

    performer = Decorated()
    async with an_app(dsn, performer) as app, app.running():
        await app.create_job("q", "a", timeout=0.05)
        await eventually(lambda: performer.failed)
    assert performer.failed[0].errors[0]["error"] == "timeout: the job took longer than 0.05 s"


async def test_a_thread_that_is_late_fails_and_its_queue_has_waited_for_it(dsn: str) -> None:
    ended: list[float] = []

    class Slow(Performer):
        def perform(self, job: Job) -> None:
            if job.action == "slow":
                time.sleep(0.09)
                ended.append(time.monotonic())
            else:
                ended.append(time.monotonic())

    async with an_app(dsn, Slow()) as app, app.running():
        slow = await app.create_job("q", "slow", timeout=0.03, max_attempts=1)
        behind = await app.create_job("q", "work")
        await eventually(lambda: is_done(app, behind))
        assert (await app.get_job(slow)).errors[0]["error"].startswith("timeout")
    assert ended == sorted(ended)


async def test_params_too_large_to_travel_with_the_claim_arrive(dsn: str) -> None:
    performer = Recorder(lambda job: len(job.params["noise"]))
    noise = os.urandom(300_000).hex()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", {"noise": noise})
        await eventually(lambda: is_done(app, job))
        assert (await app.get_job(job)).result == len(noise)


async def test_two_scopes_never_touch_each_others_jobs(dsn: str) -> None:
    mine, others = Recorder(), Recorder()
    async with (
        an_app(dsn, mine, scope="Mine") as app,
        an_app(dsn, others, scope="Others") as other,
        app.running(),
        other.running(),
    ):
        jobs = [await app.create_job("q", "a") for _ in range(5)]
        other_jobs = [await other.create_job("q", "a") for _ in range(5)]
        await eventually(lambda: len(mine.ids) == len(others.ids) == 5)
        assert (await app.list_jobs()).total == 5
    assert mine.ids == [job.id for job in jobs]
    assert others.ids == [job.id for job in other_jobs]


async def test_with_no_retention_a_job_is_removed_as_it_ends(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, job_retention=0) as app, app.running():
        for _ in range(3):
            await app.create_job("q", "a")
        await eventually(lambda: len(performer.performed) == 3)
        await eventually(lambda: is_empty(app))


async def is_empty(app: Any) -> bool:
    return bool((await app.list_jobs()).total == 0)


async def test_concurrency_limits_the_jobs_of_a_node(dsn: str) -> None:
    running = 0
    most = 0

    async def work(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1

    performer = Recorder(work)
    async with an_app(dsn, performer, concurrency=3) as app, app.running():
        await app.create_jobs([{"queue": f"q{n}", "action": "a"} for n in range(30)])
        await eventually(lambda: len(performer.performed) == 30)
    assert most == 3


async def test_a_busy_queue_gives_its_place_up_to_others(dsn: str) -> None:
    async def work(job: Job) -> None:
        await anyio.sleep(0.002)

    performer = Recorder(work)
    async with an_app(dsn, performer, concurrency=1) as app:
        await app.create_jobs([{"queue": "flood", "action": "a"} for _ in range(400)])
        rare = await app.create_job("rare", "a")
        async with app.running():
            await eventually(lambda: rare.id in performer.ids)
            assert len(performer.performed) < 300


async def test_a_disabled_queuetopia_starts_no_node(dsn: str) -> None:
    async with an_app(dsn, Recorder(), disabled=True) as app, app.running():
        assert (await app.status()).nodes == ()
        assert app.notify() is False


async def test_what_the_body_of_running_raises_comes_out_as_it_is(dsn: str) -> None:
    async with an_app(dsn, Recorder()) as app:
        with pytest.raises(ZeroDivisionError):
            async with app.running():
                raise ZeroDivisionError
