"""How far a job has come: told from within it, written now and then, and shown."""

import asyncio
from typing import Any

import anyio
import asyncpg
import pytest
import structlog

from pgqueuetopia import Job, NewJob, Performer, Queuetopia, Worker, Workers, progress
from pgqueuetopia.db import migrations
from pgqueuetopia.node.progress import LONGEST
from pgqueuetopia.testing import perform_job
from tests.support import Recorder, an_app, eventually

# Counts how often a progress was written.
COUNT = """
create table written (job bigint, progress jsonb, at timestamptz default clock_timestamp());
create function count_written() returns trigger language plpgsql as $$
begin
  insert into written values (new.id, new.progress);
  return null;
end $$;
create trigger count_written after update of progress on pgqueuetopia.jobs
for each row execute function count_written()
"""


async def done(app: Queuetopia) -> bool:
    return not (await app.status()).count


async def test_progress_is_told_by_the_job_or_anywhere_under_its_performer_and_shown_by_status(
    dsn: str,
) -> None:
    go_on = anyio.Event()

    async def perform(job: Job) -> None:
        await (job.progress("10/50") if job.queue == "a" else deeper())
        await go_on.wait()

    async def deeper() -> None:
        await progress({"done": 10, "of": [50]})

    async with an_app(dsn, Recorder(perform)) as app, app.running():
        await app.create_jobs([NewJob("a", "x"), NewJob("b", "x")])
        await eventually(lambda: told(app, {"a": "10/50", "b": {"done": 10, "of": [50]}}))
        assert await told(app, {"b": {"done": 10, "of": [50]}}, "b")
        go_on.set()


async def told(app: Queuetopia, expected: dict[str, Any], queue: str | None = None) -> bool:
    busy = [work for work in (await app.status(queue)).workers.values() if work is not None]
    return {job.queue: value for job, value in busy} == expected


async def test_a_plain_function_tells_its_progress_without_await(dsn: str) -> None:
    class Plain(Performer):
        def perform(self, job: Job) -> None:
            progress(1)

    async with an_app(dsn, Plain()) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: done(app))
    assert (await app.get_job(job)).last_progress == 1
    await app.close()


async def test_it_is_written_at_most_twice_a_second_and_the_last_one_always(
    fresh_dsn: str,
) -> None:
    await migrations.up(fresh_dsn)
    connection = await asyncpg.connect(fresh_dsn)
    await connection.execute(COUNT)

    async def perform(job: Job) -> None:
        for n in range(300):
            await job.progress(n)
            await asyncio.sleep(0.005)

    async with an_app(fresh_dsn, Recorder(perform)) as app:
        async with app.running():
            job = await app.create_job("q", "a")
            await eventually(lambda: done(app))
        assert (await app.get_job(job)).last_progress == 299
    pauses = await connection.fetch(
        "select extract(epoch from at - lag(at) over (order by at))::float8 as pause from written"
    )
    assert len(pauses) > 2
    assert min(row["pause"] for row in pauses[1:-1]) > 0.4
    await connection.close()


async def test_what_cannot_be_stored_is_logged_and_fails_no_job(dsn: str) -> None:
    async def perform(job: Job) -> None:
        await job.progress(object())
        await job.progress("x" * LONGEST)

    with structlog.testing.capture_logs() as logs:
        async with an_app(dsn, Recorder(perform)) as app, app.running():
            job = await app.create_job("q", "a")
            await eventually(lambda: done(app))
            assert (await app.get_job(job)).state == "succeeded"
    assert sum(log["event"] == "progress_not_stored" for log in logs) == 2


async def test_outside_of_a_job_progress_is_logged_and_dropped() -> None:
    with structlog.testing.capture_logs() as logs:
        await progress("nowhere")
    assert [log["event"] for log in logs] == ["progress_ignored"]


async def test_a_run_that_was_lost_writes_no_progress(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Somebody claims the job anew before its progress is written."""

    async def perform(job: Job) -> None:
        await connection.execute("update pgqueuetopia.jobs set claim = claim + 1")
        await job.progress("late")

    async with an_app(dsn, Recorder(perform), disabled=True) as app:
        job = await app.create_job("q", "a")
        await perform_job(app, job)
        assert (await app.get_job(job)).last_progress is None


async def test_the_progress_of_an_earlier_run_is_not_shown_as_that_of_this_one(dsn: str) -> None:
    go_on = anyio.Event()

    async def perform(job: Job) -> None:
        if job.attempts == 1:
            await job.progress("first run")
            await eventually(lambda: written(app, job))
            raise ValueError
        await go_on.wait()

    async def written(app: Queuetopia, job: Job) -> bool:
        return bool((await app.get_job(job)).last_progress == "first run")

    async def runs_again(app: Queuetopia) -> bool:
        busy = [work for work in (await app.status()).workers.values() if work]
        return [(job.attempts, value) for job, value in busy] == [(2, None)]

    async with an_app(dsn, Recorder(perform)) as app, app.running():
        await app.create_job("q", "a", max_backoff=0)
        await eventually(lambda: runs_again(app))
        go_on.set()
        await eventually(lambda: done(app))


async def test_status_shows_the_free_workers_of_every_node_as_well(dsn: str) -> None:
    go_on = anyio.Event()

    class Waiting(Worker):
        async def perform(self, job: Job, state: Any) -> None:
            await go_on.wait()

    workers = Workers(Waiting, num=2)
    async with (
        an_app(dsn, workers) as app,
        an_app(dsn, workers) as second,
        app.running(),
        second.running(),
    ):
        job = await app.create_job("q", "a")

        async def is_taken() -> bool:
            return (await app.status()).executing == 1

        await eventually(is_taken)
        found = (await second.status()).workers
        assert len(found) == 4
        assert [work[0].id for work in found.values() if work] == [job.id]
        assert {name.rpartition("/")[0] for name in found} == set((await app.status()).nodes)
        assert list((await second.status("other")).workers.values()) == [None] * 3, "the busy one is not free"
        go_on.set()


async def test_a_progress_that_cannot_be_written_now_is_written_later(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def perform(job: Job) -> None:
        monkeypatch.setattr(app.repo, "write_progress", refuse)
        await job.progress("late")
        await refused.wait()
        monkeypatch.undo()

    async def refuse(latest: Any) -> None:
        refused.set()
        raise TimeoutError

    refused = anyio.Event()
    async with an_app(dsn, Recorder(perform)) as app, app.running():
        job = await app.create_job("q", "a")

        async def is_written() -> bool:
            return bool((await app.get_job(job)).last_progress == "late")

        await eventually(is_written)
