"""What whoever tried to break it has found, each as it showed."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any

import asyncpg
import pytest
from pydantic import field_validator

from pgqueuetopia import Job, Performer, Queuetopia, Repo, Settings
from pgqueuetopia.db import migrations
from pgqueuetopia.db.step import Ended
from pgqueuetopia.failure import FailurePolicy
from pgqueuetopia.outcome import Settlement
from tests.db.steps import ids, look, sessions
from tests.support import Recorder, an_app, eventually


@asynccontextmanager
async def two_connections(dsn: str) -> AsyncIterator[tuple[Any, Any]]:
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        yield first, second
    finally:
        await first.close()
        await second.close()


@pytest.mark.parametrize("scope", ["Test", "*"])
async def test_a_queue_that_is_resumed_while_a_job_of_it_is_being_created_is_not_stranded(
    dsn: str, scope: str
) -> None:
    async with (
        an_app(dsn) as app,
        sessions(dsn, "a") as [a],
        two_connections(dsn) as (creator, operator),
    ):
        await operator.execute(
            "insert into pgqueuetopia.job_configs (scope, key, value) values ($1, 'q_suspended', 'true')",
            scope,
        )
        creating, resuming = creator.transaction(), operator.transaction()
        await creating.start()
        job = await app.create_job("q", "a", conn=creator)
        await resuming.start()
        await operator.execute("delete from pgqueuetopia.job_configs where key = 'q_suspended'")
        await creating.commit()
        assert ids(await look(a)) == []
        await resuming.commit()

        async def is_claimed() -> bool:
            return ids(await look(a)) == [job.id]

        await eventually(is_claimed)


async def test_a_queue_is_not_stranded_where_all_configs_are_truncated(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn)
    async with an_app(fresh_dsn) as app, sessions(fresh_dsn, "a") as [a]:
        job = await app.create_job("q", "a")
        await app.suspend("q")
        assert ids(await look(a)) == []
        async with app.repo.connection() as connection:
            await connection.execute("truncate pgqueuetopia.job_configs")
        assert ids(await look(a)) == [job.id]


async def test_a_job_that_died_with_its_node_in_its_last_attempt_blocks_its_queue(dsn: str) -> None:
    """It was claimed, and failed, again and again."""
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_job("q", "a", max_attempts=1)
        [job] = (await look(a)).claimed
        job.__dict__["attempts"] = 2
        died = FailurePolicy("block").died(job)
        assert died is not None
        stepped = await look(a, Ended("q", job, died))
        assert stepped.saved == {job.id}
        assert stepped.claimed == []
        [blocked] = await app.blocked_queues()
        assert blocked.queue == "q"


def test_an_app_may_be_used_in_one_event_loop_after_another(dsn: str) -> None:
    performer = Recorder()
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope="Test")

    async def run() -> None:
        async with app.running():
            await eventually(lambda: len(performer.performed) == 2)
        await app.close()

    with warnings.catch_warnings():
        # Nobody has closed the pools of the first two.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(_create(app))
        asyncio.run(_create(app))
        asyncio.run(run())
        gc.collect()


async def _create(app: Queuetopia) -> None:
    await app.create_job("q", "a")


class Odd(Settings):
    size: int = 1

    @field_validator("size")
    @classmethod
    def check(cls, value: int) -> int:
        if value > 1:
            raise AttributeError("odd")
        return value


async def test_a_config_whose_validator_raises_anything_is_refused_and_the_node_goes_on(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, settings=Odd) as app, app.running():
        async with app.repo.connection() as connection:
            await connection.execute(
                "insert into pgqueuetopia.job_configs (scope, key, value) values ('Test', 'size', '2')"
            )
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.ids == [job.id])


def _with(settlement: Settlement, **odd: Any) -> Settlement:
    return replace(settlement, **odd)


@pytest.mark.parametrize(
    "settlement",
    [
        lambda failure: _with(Settlement.retried(failure, timedelta(0)), delay=5),
        lambda failure: _with(Settlement.abandoned(failure), failure="text"),
        lambda failure: Settlement.moved(failure, ""),
        lambda failure: Settlement("no such outcome", None, failure=failure),
        lambda failure: Settlement.retried(failure, timedelta.max),
    ],
    ids=["a number", "a text", "no queue", "no outcome", "for ever"],
)
async def test_a_failure_mode_that_says_what_cannot_be_written_stops_no_node(
    dsn: str, settlement: Any
) -> None:
    performer = Recorder(lambda job: 1 / 0 if job.queue == "q" else None)
    async with (
        an_app(dsn, performer, failure_mode=lambda job, failure: settlement(failure)) as app,
        app.running(),
    ):
        failing = await app.create_job("q", "a")
        await eventually(lambda: performer.failed)
        other = await app.create_job("other", "a")
        await eventually(lambda: other.id in performer.ids)
        assert (await app.get_job(failing)).errors


class Wrapped(Performer):
    """An async method behind a decorator that hides it."""

    def __init__(self) -> None:
        self.ran = 0

    def _hidden(method: Any) -> Any:
        @wraps(method)
        def call(*arguments: Any) -> Any:
            return method(*arguments)

        call.__dict__.pop("__wrapped__", None)
        return call

    @_hidden
    async def perform(self, job: Job) -> str:
        self.ran += 1
        return "done"


async def test_an_async_performer_behind_a_decorator_is_run(dsn: str) -> None:
    performer = Wrapped()
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: _has_ended(app, job))
        stored = await app.get_job(job)
    assert (stored.outcome, stored.result, performer.ran) == ("succeeded", "done", 1)


async def _has_ended(app: Queuetopia, job: Job) -> bool:
    return (await app.get_job(job)).done_at is not None


async def _cancel_oneself(job: Job) -> None:
    if job.queue == "q":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)


async def test_a_job_that_cancels_its_own_task_has_failed(dsn: str) -> None:
    performer = Recorder(_cancel_oneself)
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a", max_attempts=1)
        await eventually(lambda: _has_ended(app, job))
        assert (await app.get_job(job)).outcome == "abandoned"


@pytest.mark.parametrize("column", ["timeout", "max_backoff"])
async def test_a_time_that_no_node_can_read_is_refused(dsn: str, connection: Any, column: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            f"insert into pgqueuetopia.jobs (scope, queue, action, {column})"
            " values ('Test', 'q', 'a', '3000000 years')"
        )
