"""Jobs and performers that would stop a node if they could: every one leaves it running."""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import structlog

from pgqueuetopia import Cancelled, Err, Job, Queuetopia, Snooze
from pgqueuetopia.db.rows import LONGEST_MESSAGE, LONGEST_TRACEBACK
from pgqueuetopia.node.outcomes import LONGEST_RESULT
from tests.support import Recorder, an_app, eventually

# 50 in CI.
MEGABYTES = int(os.environ.get("POISON_MEGABYTES", "10"))


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class OfItsOwnKind(BaseException):
    """Neither an Exception nor anything that Python itself raises."""


def fails(error: BaseException) -> Callable[[Job], Any]:
    def answer(job: Job) -> Any:
        raise error

    return answer


class LooksLikeADict:
    """A proxy: what it says of its class is not so."""

    @property  # type: ignore[misc]  # as proxies do
    def __class__(self) -> type:
        return dict


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


async def cancels_itself(job: Job) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def goes_wrong_as_it_is_cancelled(job: Job) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise RuntimeError("could not clean up") from None


async def end_of(app: Queuetopia, job: Job) -> Job:
    """The job once it is no longer pending."""
    found = [job]

    async def has_ended() -> bool:
        found[0] = await app.get_job(job)
        return found[0].done_at is not None

    await eventually(has_ended)
    return found[0]


async def outcome_of(dsn: str, answer: Callable[[Job], Any]) -> Job:
    """What became of a poisonous job, by a node that went on: the job behind it has been performed."""
    performer = Recorder(lambda job: answer(job) if job.action == "poison" else None)
    async with an_app(dsn, performer) as app, app.running():
        poison = await app.create_job("q", "poison", max_attempts=1)
        behind = await app.create_job("q", "a")
        ended = await end_of(app, poison)
        assert (await end_of(app, behind)).outcome == "succeeded"
    return ended


@pytest.mark.parametrize(
    "answer",
    [
        fails(Unspeakable()),
        fails(OfItsOwnKind("boom")),
        fails(SystemExit(1)),
        fails(RecursionError()),
        fails(BaseExceptionGroup("several", [OfItsOwnKind(), ValueError()])),
        lambda job: Err("NUL \0 and a lone surrogate \ud800"),
        lambda job: Snooze("soon"),  # type: ignore[arg-type]
        lambda job: (n for n in "never run"),
        cancels_itself,
    ],
    ids=[
        "no text",
        "BaseException",
        "exit",
        "recursion",
        "group",
        "unstorable",
        "bad snooze",
        "generator",
        "cancelled by itself",
    ],
)
async def test_any_error_is_a_failure_of_the_job(dsn: str, answer: Callable[[Job], Any]) -> None:
    ended = await outcome_of(dsn, answer)
    assert (ended.outcome, len(ended.errors)) == ("abandoned", 1)


@pytest.mark.parametrize(
    "result",
    [
        object(),
        float("nan"),
        {1: 2},
        "\0",
        nested(100_000),
        "x" * (LONGEST_RESULT + 1),
        10**100_000,
        LooksLikeADict(),
    ],
    ids=["object", "nan", "key", "nul", "deep", "long", "huge number", "proxy"],
)
async def test_a_result_that_cannot_be_stored_is_told_and_the_job_has_succeeded(
    dsn: str, result: object
) -> None:
    with structlog.testing.capture_logs() as logs:
        ended = await outcome_of(dsn, lambda job: result)
    assert (ended.outcome, ended.result) == ("succeeded", None)
    assert [log["job"] for log in logs if log["event"] == "result_not_stored"] == [ended.id]


async def test_an_error_of_a_million_characters_is_cut(dsn: str) -> None:
    ended = await outcome_of(dsn, fails(ValueError("x" * 1_000_000)))
    [error] = ended.errors
    assert len(error["error"]) <= LONGEST_MESSAGE
    assert len(error["traceback"]) <= LONGEST_TRACEBACK


async def test_a_snooze_for_ever_is_as_long_as_a_time_can_be(dsn: str) -> None:
    performer = Recorder(lambda job: Snooze(timedelta.max) if job.queue == "long" else None)
    async with an_app(dsn, performer) as app, app.running():
        snoozed = await app.create_job("long", "a")
        other = await app.create_job("other", "a")
        await end_of(app, other)
        await eventually(lambda: is_waiting(app, snoozed))


async def is_waiting(app: Queuetopia, job: Job) -> bool:
    return (await app.get_job(job)).next_attempt_at is not None


PARAMS = (
    "insert into pgqueuetopia.jobs (scope, queue, action, params, max_attempts)"
    " values ('Test', 'q', 'a', $1, 1)"
)


async def test_params_that_somebody_else_has_nested_as_deep_as_the_database_takes_are_performed(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Deeper than create_job takes, and than the faster of our two readers goes."""
    deep = '{"x": ' * 900 + "1" + "}" * 900
    seen: list[Any] = []
    performer = Recorder(lambda job: seen.append(job.params))
    await connection.execute(PARAMS, deep)
    async with an_app(dsn, performer) as app, app.running():
        await eventually(lambda: seen)
    assert seen == [json.loads(deep)]


async def test_a_number_of_more_digits_than_python_reads_is_performed_as_text(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    digits = "7" * 5_000
    await connection.execute(PARAMS, f'{{"x": {digits}, "y": 1}}')
    async with an_app(dsn, Recorder(lambda job: job.params)) as app, app.running():
        [job] = await app.list_jobs()
        assert (await end_of(app, job)).result == {"x": digits, "y": 1}


async def test_params_nested_deeper_than_python_reads_are_a_failure_of_their_job_alone(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    deep = '{"x": ' * 4_000 + "1" + "}" * 4_000
    await connection.execute(PARAMS, deep)
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        [poison] = await app.list_jobs()
        behind = await app.create_job("q", "a")
        async with app.running():
            assert (await end_of(app, behind)).outcome == "succeeded"
            ended = await app.get_job(poison)
    if python_reads(deep):
        assert ended.outcome == "succeeded"
    else:
        assert (performer.ids, ended.outcome) == ([behind.id], "abandoned")
        assert "RecursionError" in ended.errors[0]["error"]


def python_reads(text: str) -> bool:
    """Later ones read deeper."""
    try:
        json.loads(text)
    except RecursionError:
        return False
    return True


async def test_params_of_many_megabytes_are_performed_and_hold_up_nobody(dsn: str) -> None:
    blob = random.Random(1).randbytes(MEGABYTES * 500_000).hex()
    seen: list[int] = []
    performer = Recorder(lambda job: seen.append(len(job.params["blob"])) if job.params else None)
    async with an_app(dsn, performer) as app:
        large = await app.create_job("large", "a", {"blob": blob})
        small = [await app.create_job(f"q{n}", "a") for n in range(20)]
        async with app.running():
            for job in [large, *small]:
                assert (await end_of(app, job)).outcome == "succeeded"
    assert seen == [MEGABYTES * 1_000_000]


async def test_a_performer_that_swallows_cancellation_is_late_and_other_queues_go_on(dsn: str) -> None:
    let_go = asyncio.Event()

    async def swallow(job: Job) -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    performer = Recorder(lambda job: swallow(job) if job.action == "poison" else None)
    async with an_app(dsn, performer) as app, app.running():
        poison = await app.create_job("q", "poison", timeout=0.05, max_attempts=1)
        behind = await app.create_job("q", "a")
        for n in range(20):
            await end_of(app, await app.create_job(f"other{n}", "a"))
        assert behind.id not in performer.ids, "its queue waits for it"
        let_go.set()
        assert (await end_of(app, poison)).outcome == "succeeded", "it has come to a good end, if late"
        await end_of(app, behind)


async def test_an_error_of_a_job_that_its_node_interrupts_is_no_failure(dsn: str) -> None:
    performer = Recorder(goes_wrong_as_it_is_cancelled)
    async with an_app(dsn, performer, shutdown=0) as app:
        async with app.running():
            job = await app.create_job("q", "a", max_attempts=1)
            await eventually(lambda: performer.performed)
        given_back = await app.get_job(job)
    assert (given_back.state, given_back.attempts, given_back.errors) == ("ready", 0, ())


async def test_an_error_of_a_job_that_an_operator_kills_is_no_failure(dsn: str) -> None:
    performer = Recorder(goes_wrong_as_it_is_cancelled)
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        assert await app.cancel(job, kill=True) is Cancelled.OK
        killed = await app.get_job(job)
    assert (killed.outcome, killed.errors) == ("cancelled", ())


async def test_a_performer_that_closes_the_pool_harms_nobody(dsn: str) -> None:
    async with an_app(dsn) as app:
        app.performer = Recorder(lambda job: app.close())
        async with app.running():
            for _ in range(5):
                job = await app.create_job("q", "a")
                assert (await end_of(app, job)).outcome == "succeeded"


@pytest.mark.slow
async def test_a_performer_that_never_yields_delays_its_node_and_loses_nothing(dsn: str) -> None:
    def block(job: Job) -> None:
        if job.action == "poison" and job.attempts == 1:
            time.sleep(2.5)

    performer = Recorder(block)
    async with an_app(dsn, performer, session_timeout=1) as app, app.running():
        jobs = [await app.create_job("q", action) for action in ("poison", "a", "a")]
        for job in jobs:
            assert (await end_of(app, job)).outcome == "succeeded"
    assert [job.id for job in performer.performed if job.action == "a"] == [job.id for job in jobs[1:]]
