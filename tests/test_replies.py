"""Replies: what became of jobs, told to whoever waits (Honeydew's yield)."""

import math
import re
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from pgqueuetopia import (
    DatabaseUnavailable,
    Err,
    Job,
    JobNotFound,
    Misconfigured,
    Move,
    Moved,
    NoReply,
    Ok,
    Queuetopia,
    Retry,
    Retrying,
    Snooze,
)
from pgqueuetopia.db.replies import SERVER_SETTINGS
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.node.cleaner import clean
from tests.conftest import execute
from tests.support import Recorder, an_app, eventually

LISTENERS = """
from pg_stat_activity
where application_name = 'pgqueuetopia-replies' and datname = current_database()
"""
END_LISTENERS = f"select pg_terminate_backend(pid) {LISTENERS}"
TWICE = Retry(times=2, finally_=Move("dead"))


def fails_in_q(job: Job) -> object:
    return Err(f"no {job.attempts}") if job.queue == "q" else {"ran": job.queue}


async def test_the_result_is_told(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: job.params)) as app, app.running():
        job = await app.create_job("q", "a", {"x": 1}, reply=True)
        assert await app.reply(job) == Ok({"x": 1})


async def test_a_job_without_a_result_tells_that_it_has_succeeded(dsn: str) -> None:
    async with an_app(dsn, Recorder()) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job) == Ok(None)


async def test_each_attempt_tells_in_its_order_and_a_moved_job_goes_on_telling(dsn: str) -> None:
    async with an_app(dsn, Recorder(fails_in_q), failure_mode=TWICE) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert [await app.reply(job) for _ in range(4)] == [
            Retrying("no 1"),
            Retrying("no 2"),
            Moved("dead"),
            Ok({"ran": "dead"}),
        ]
        assert await app.reply(job, timeout=0.05) is None
        [copy] = await app.list_jobs(queue="dead")
        assert await app.reply(copy, timeout=0.05) is None, "they are the same replies"


async def test_a_job_that_is_given_up_tells_its_error(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: Err("no"))) as app, app.running():
        job = await app.create_job("q", "a", reply=True, max_attempts=1)
        assert await app.reply(job) == Err("no")


async def test_who_asks_too_early_gets_none_and_asks_again(dsn: str) -> None:
    let_go = anyio.Event()
    async with an_app(dsn, Recorder(lambda job: let_go.wait())) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job, timeout=0.05) is None
        let_go.set()
        assert await app.reply(job) == Ok(None)


async def test_who_does_not_want_to_wait_gets_what_is_there(dsn: str) -> None:
    async with an_app(dsn, Recorder(fails_in_q), failure_mode=TWICE) as app:
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job, timeout=0) is None
        async with app.running():
            await eventually(lambda: has_moved(app, job))
        replies = [await app.reply(job, timeout=0) for _ in range(3)]
        assert replies == [Retrying("no 1"), Retrying("no 2"), Moved("dead")]


async def has_moved(app: Queuetopia, job: Job) -> bool:
    return (await app.get_job(job)).state == "moved"


@pytest.mark.parametrize("timeout", [None, -1, math.inf, "5"])
async def test_a_timeout_that_cannot_be_is_refused(dsn: str, timeout: Any) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a", reply=True)
        with pytest.raises(Misconfigured, match="timeout must be seconds"):
            await app.reply(job, timeout=timeout)


async def test_another_instance_hears_from_the_first_reply_on(dsn: str) -> None:
    async with (
        an_app(dsn, Recorder(fails_in_q), failure_mode=TWICE) as app,
        an_app(dsn) as other,
        app.running(),
    ):
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job) == Retrying("no 1")
        assert await other.reply(job.id) == Retrying("no 1")
        assert await app.reply(job) == Retrying("no 2")
        assert await other.reply(job.id) == Retrying("no 2")


async def test_a_job_created_without_reply_has_none(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        for asked in (job, job.id):
            with pytest.raises(NoReply, match="reply=True"):
                await app.reply(asked)
        with pytest.raises(JobNotFound):
            await app.reply(12345)


async def test_a_job_that_is_interrupted_or_snoozed_tells_nothing(dsn: str) -> None:
    performer = Recorder(lambda job: Snooze(0) if job.claim == 1 else "done")
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job) == Ok("done")


@pytest.mark.slow
async def test_many_wait_at_once_over_one_connection(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    let_go = anyio.Event()
    told: list[object] = []

    async def ask(app: Queuetopia, job: Job) -> None:
        told.append(await app.reply(job, timeout=120))

    async with an_app(dsn, Recorder(lambda job: let_go.wait()), concurrency=500) as app, app.running():
        jobs = await app.create_jobs({"queue": f"q{n}", "action": "a", "reply": True} for n in range(10_000))
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(ask, app, job)
            # The one of the test before may need a moment to be gone.
            await eventually(lambda: has_one_listener(connection))
            let_go.set()
            await eventually(lambda: len(told) > 1_000, within=60)
            assert await has_one_listener(connection)
    assert told == [Ok(None)] * 10_000


async def test_replies_are_found_without_reading_all_whatever_the_statistics_say(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """As if each job had a thousand: in the order of ids the first one would soon be found."""
    await connection.execute(
        "insert into pgqueuetopia.replies (scope, job, kind)"
        " select 'Test', 1, 'ok' from generate_series(1, 20000); analyze pgqueuetopia.replies"
    )
    for setting, value in SERVER_SETTINGS.items():
        await connection.execute(f"set {setting} = '{value}'")
    [[plan]] = await connection.fetch(f"explain (analyze, format json) {SQL['replies']}", [2], [0])
    await connection.execute("reset all")
    assert re.findall('"Index Name": "(.*?)"', plan) == ["replies_job"]


async def has_one_listener(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return len(await connection.fetch(f"select {LISTENERS}")) == 1


async def test_who_waits_hears_after_a_lost_connection_too(dsn: str) -> None:
    let_go = anyio.Event()
    performer = Recorder(lambda job: let_go.wait())
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job, timeout=0.2) is None
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                assert await app.reply(job, timeout=20) == Ok(None)

            tasks.start_soon(ask)
            await anyio.lowlevel.checkpoint()
            await execute(dsn, END_LISTENERS)
            let_go.set()


async def test_who_waits_while_the_app_is_closed_is_told(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a", reply=True)

        async def ask() -> None:
            with pytest.raises(DatabaseUnavailable, match="closed"):
                await app.reply(job, timeout=20)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.sleep(0.05)
            await app.close()


async def test_replies_are_removed_with_their_time(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn, Recorder()) as app:
        async with app.running():
            job = await app.create_job("q", "a", reply=True)
            assert await app.reply(job) == Ok(None)
        await clean(app.repo, app._plan())
        assert await connection.fetchval("select count(*) from pgqueuetopia.replies") == 1
        await connection.execute("update pgqueuetopia.replies set at = now() - interval '8 days'")
        await clean(app.repo, app._plan())
        assert await connection.fetchval("select count(*) from pgqueuetopia.replies") == 0
