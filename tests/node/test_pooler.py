"""Through PgBouncer in transaction mode: everything but a node's own session."""

from collections.abc import Iterator

import anyio
import pytest

from pgqueuetopia import Cancelled, Misconfigured, NewJob, QueuetopiaError, Repo
from tests.pooler import PGBOUNCER, a_pooler
from tests.support import Recorder, an_app, eventually

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")


@pytest.fixture
def pooled(dsn: str) -> Iterator[Repo]:
    """A repo through the pooler, and a node's session beside it."""
    with a_pooler(dsn) as through:
        yield Repo(through, session_dsn=dsn, statement_cache_size=0)


async def until_it_listens(repo: Repo) -> None:
    async def answers() -> bool:
        try:
            await repo.nodes("Test")
        except QueuetopiaError:
            return False
        return True

    await eventually(answers)


async def test_jobs_are_created_and_operated_through_the_pooler(dsn: str, pooled: Repo) -> None:
    async with an_app(dsn, repo=pooled) as app:
        await until_it_listens(pooled)
        job = await app.create_job("q", "a", {"n": 1})
        await app.create_jobs([NewJob(f"q{n}", "a") for n in range(100)])
        assert (await app.get_job(job)).params == {"n": 1}
        assert (await app.status()).ready == 101
        assert await app.cancel(job) == Cancelled.OK
        await app.retry(job)
        await app.configs.set("limit", "1")
        assert await app.configs.get("limit") == "1"
        await app.suspend()
        assert (await app.status()).suspended


async def test_many_at_once_share_the_pooler(dsn: str, pooled: Repo) -> None:
    async with an_app(dsn, repo=pooled) as app:
        await until_it_listens(pooled)
        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(app.create_job, f"q{n}", "a")
        assert (await app.status()).ready == 50


async def test_a_node_runs_with_a_session_beside_the_pooler(dsn: str, pooled: Repo) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, repo=pooled) as app:
        await until_it_listens(pooled)
        async with app.running():
            job = await app.create_job("q", "a")
            await eventually(lambda: performer.ids == [job.id])


async def test_a_node_whose_session_would_go_through_the_pooler_is_refused(dsn: str, pooled: Repo) -> None:
    await until_it_listens(pooled)
    async with an_app(dsn, Recorder(), repo=Repo(pooled.dsn, statement_cache_size=0)) as app:
        with pytest.raises(Misconfigured, match="session_dsn"):
            async with app.running():
                pass
    await pooled.close()
