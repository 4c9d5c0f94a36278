from functools import partial
from typing import Any

import anyio
import asyncpg
import pytest

from pgqueuetopia import Job, Misconfigured, Topic
from tests.support import Recorder, an_app, eventually

BY_HAND = "update pgqueuetopia.job_configs set value = $1 where scope = '*' and key = 'suspended'"


async def test_a_suspended_system_starts_nothing_and_resumes_at_once(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await app.suspend()
        await app.create_job("q", "a")
        await anyio.wait_all_tasks_blocked()
        assert (await app.status()).suspended
        assert (await app.status()).ready == 1
        assert performer.performed == []
        await app.resume()
        await eventually(lambda: performer.performed)


async def test_a_suspension_survives_the_node(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app:
        await app.suspend()
        await app.create_job("q", "a")
        async with app.running():
            await eventually(lambda: node_has_looked(app))
            assert performer.performed == []
            await app.resume()
            await eventually(lambda: performer.performed)


async def node_has_looked(app: object) -> bool:
    return bool((await app.status()).nodes)  # type: ignore[attr-defined]  # any app


async def test_sql_suspends_every_scope(dsn: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await connection.execute(BY_HAND, "true")
        await app.create_job("q", "a")
        await app.resume()
        assert (await app.status()).suspended, "a scope's own row does not undo that of every scope"
        assert performer.performed == []
        await connection.execute(BY_HAND, "false")
        await eventually(lambda: performer.performed)


@pytest.mark.parametrize("local", [False, True])
async def test_what_is_no_queue_is_not_suspended(dsn: str, local: bool) -> None:
    async with an_app(dsn) as app:
        queue: Any = Topic("transcode")
        for pause in (app.suspend, app.resume):
            with pytest.raises(Misconfigured, match="queue must be a string, not Topic"):
                await pause(queue, local=local)
            with pytest.raises(Misconfigured, match="queue must not be empty"):
                await pause("", local=local)


async def test_one_queue_is_suspended_and_the_others_go_on(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await app.suspend("paused")
        paused = await app.create_job("paused", "a")
        other = await app.create_job("other", "a")
        await eventually(lambda: performer.ids == [other.id])
        assert (await app.status("paused")).suspended
        assert not (await app.status("other")).suspended
        another = await app.create_job("paused", "a")
        await app.resume("paused")
        await eventually(lambda: performer.ids == [other.id, paused.id, another.id])


async def test_a_queue_suspended_by_sql_in_every_scope_is_resumed(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await connection.execute(
            "insert into pgqueuetopia.job_configs (key, value) values ('q_suspended', 'on')"
        )
        job = await app.create_job("q", "a")
        await eventually(lambda: is_parked(connection))
        assert performer.performed == []
        await connection.execute("delete from pgqueuetopia.job_configs where key = 'q_suspended'")
        await eventually(lambda: performer.ids == [job.id])


async def test_a_queue_is_resumed_where_all_configs_are_truncated(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await app.suspend("q")
        job = await app.create_job("q", "a")
        await eventually(lambda: is_parked(connection))
        assert performer.performed == []
        await connection.execute("truncate pgqueuetopia.job_configs")
        await eventually(lambda: performer.ids == [job.id])


async def is_parked(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return not await connection.fetch("select from pgqueuetopia.run_queue")


async def test_a_running_job_finishes_and_wait_returns_when_it_has(dsn: str) -> None:
    release = anyio.Event()
    performer = Recorder(lambda job: release.wait())
    async with an_app(dsn, performer) as app, app.running():
        job = await app.create_job("q", "a")
        behind = await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        suspended = anyio.Event()

        async def suspend() -> None:
            await app.suspend(wait=True)
            suspended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(suspend)
            await eventually(lambda: is_suspended(app))
            assert not suspended.is_set()
            assert (await app.status()).executing == 1
            release.set()
        assert (await app.get_job(job)).state == "succeeded"
        assert (await app.get_job(behind)).state == "ready"
        assert performer.ids == [job.id]


async def is_suspended(app: object) -> bool:
    return bool((await app.status()).suspended)  # type: ignore[attr-defined]  # any app


async def test_a_local_suspension_pauses_this_instance_alone(dsn: str) -> None:
    here, there = Recorder(), Recorder()
    async with an_app(dsn, here) as app, an_app(dsn, there) as other, app.running(), other.running():
        await app.suspend(local=True)
        jobs = await app.create_jobs([{"queue": f"q{n}", "action": "a"} for n in range(20)])
        await eventually(lambda: len(there.performed) == len(jobs))
        assert here.performed == []
        await app.resume(local=True)
        await other.suspend(local=True)
        await app.create_job("q", "a")
        await eventually(lambda: here.performed)


async def test_a_local_suspension_of_a_queue_leaves_the_others(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await app.suspend("paused", local=True)
        paused = await app.create_job("paused", "a")
        other = await app.create_job("other", "a")
        await eventually(lambda: performer.ids == [other.id])
        await app.resume("paused", local=True)
        await eventually(lambda: performer.ids == [other.id, paused.id])


async def test_a_config_change_does_not_undo_a_local_suspension(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        await app.suspend(local=True)
        await app.suspend()
        await app.resume()
        await app.create_job("q", "a")
        await app.configs.set("colour", "blue")
        await anyio.wait_all_tasks_blocked()
        assert performer.performed == []
        await app.resume(local=True)
        await eventually(lambda: performer.performed)


async def test_suspending_in_an_open_transaction_holds_claims_up_until_it_ends(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(BY_HAND, "true")
        await app.create_job("q", "a")
        await anyio.wait_all_tasks_blocked()
        assert performer.performed == []
        await transaction.rollback()
        await eventually(lambda: performer.performed)


async def test_a_queuetopia_that_starts_suspended_runs_nothing_until_it_is_resumed(dsn: str) -> None:
    performer, other = Recorder(), Recorder()
    async with an_app(dsn, performer, suspended=True) as app, app.running():
        await app.create_job("q", "a")
        assert (await app.status()).suspended is False, "it is this instance alone"
        await app.resume()
        assert performer.performed == [], "resume for all does not undo the local suspension"
        async with an_app(dsn, other) as second, second.running():
            await eventually(lambda: other.performed)
        await app.create_job("q", "a")
        await app.resume(local=True)
        await eventually(lambda: performer.performed)


async def test_suspending_and_resuming_twice_is_the_same_as_once(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        for local in (False, True):
            await app.suspend(local=local)
            await app.suspend(local=local)
        await app.create_job("q", "a")
        await app.resume(local=True)
        await app.resume(local=True)
        assert performer.performed == [], "the local resume does not undo the other suspension"
        await app.resume()
        await app.resume()
        await eventually(lambda: performer.performed)


async def test_without_per_queue_suspension_only_the_config_suspended_counts(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, per_queue_suspension=False) as app, app.running():
        await app.configs.set("q_suspended", "true")
        await app.create_job("q", "a")
        await eventually(lambda: performer.performed)
        with pytest.raises(Misconfigured, match="per_queue_suspension"):
            await app.suspend("q")
        await app.suspend()
        await app.create_job("q", "a")
        assert len(performer.performed) == 1


def has_grown(started: list[float], seen: int) -> bool:
    return len(started) > seen or len(started) == 3000


@pytest.mark.slow
async def test_no_job_starts_after_a_suspension_has_committed(dsn: str) -> None:
    started: list[float] = []

    def note(job: Job) -> None:
        started.append(anyio.current_time())

    async with an_app(dsn, Recorder(note)) as app, an_app(dsn, Recorder(note)) as other:
        await app.create_jobs([{"queue": f"q{n % 50}", "action": "a"} for n in range(3000)])
        async with app.running(), other.running():
            for _ in range(10):
                seen = len(started)
                await app.suspend()
                paused_at = anyio.current_time()
                await app.status()
                await app.status()
                assert [at for at in started if at > paused_at] == []
                await app.resume()
                await eventually(partial(has_grown, started, seen))
            await eventually(lambda: len(started) == 3000)
