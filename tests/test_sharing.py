"""Jobs that tasks of one process create at once share a statement, and its commit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeAlias

import anyio
import asyncpg
import pytest

from pgqueuetopia import DatabaseRefused, DatabaseUnavailable, InvalidJob, Job, Queuetopia
from pgqueuetopia.db.sharing import MOST_CHARACTERS, MOST_JOBS
from tests.support import DEADLINE, an_app, eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin raise exception 'not this one'; end $$;
create trigger refuse before insert on pgqueuetopia.jobs
for each row when (new.action = 'bad') execute function refuse()
"""
NO_REFUSAL = "drop trigger if exists refuse on pgqueuetopia.jobs; drop function if exists refuse()"
WAITING = """
select count(*) from pg_locks
where not granted
  and relation = 'pgqueuetopia.jobs'::regclass
  and database = (select oid from pg_database where datname = current_database())
"""
COMMITS = "select count(distinct xmin::text) from pgqueuetopia.jobs"


@pytest.fixture
async def locked(connection: Connection) -> AsyncIterator[Connection]:
    """The table of jobs is locked until the test commits."""
    async with connection.transaction():
        await connection.execute("lock table pgqueuetopia.jobs in exclusive mode")
        yield connection


async def under_way(dsn: str, *creations: Awaitable[Job]) -> "list[asyncio.Task[Job]]":
    """Jobs being created at once, in a statement that waits for the lock."""
    tasks = [asyncio.ensure_future(creation) for creation in creations]
    observer = await asyncpg.connect(dsn)
    await eventually(lambda: observer.fetchval(WAITING))
    await observer.close()
    return tasks


async def together(creations: Sequence[Awaitable[Job]]) -> list[Job | BaseException]:
    return await asyncio.gather(*creations, return_exceptions=True)


@pytest.fixture
async def refusing(connection: Connection) -> AsyncIterator[None]:
    """The database refuses the action `bad`, by a trigger of its owner's."""
    await connection.execute(REFUSE)
    yield
    await connection.execute(NO_REFUSAL)


async def test_jobs_created_at_once_share_a_commit_and_each_caller_has_its_own(
    dsn: str, connection: Connection
) -> None:
    async with an_app(dsn) as app:
        jobs = await together([app.create_job(f"q{n % 3}", "a", {"n": n}) for n in range(100)])
        assert [job.params["n"] for job in jobs if isinstance(job, Job)] == list(range(100))
        assert [await app.get_job(job.id) for job in jobs[:3] if isinstance(job, Job)] == jobs[:3]
    assert await connection.fetchval(COMMITS) == 1


async def test_jobs_created_at_once_keep_the_order_of_the_calls(dsn: str) -> None:
    async with an_app(dsn) as app:
        await together([app.create_job("q", "a", {"n": n}) for n in range(2 * MOST_JOBS + 1)])
        listed = await app.list_jobs(limit=1000)
        assert [job.params["n"] for job in listed] == list(range(1000))


async def test_what_comes_while_a_commit_is_under_way_goes_with_the_next(
    dsn: str, locked: Connection
) -> None:
    """The table is locked until all have asked: the first travels alone, the others together."""
    async with an_app(dsn) as app:
        creations = await under_way(dsn, app.create_job("q", "a"))
        creations += [asyncio.create_task(app.create_job("q", "a")) for _ in range(20)]
        await asyncio.sleep(0)
        await locked.execute("commit; begin")
        await together(creations)
    assert await locked.fetchval(COMMITS) == 2


@pytest.mark.usefixtures("refusing")
async def test_a_bad_job_fails_alone(dsn: str) -> None:
    async with an_app(dsn) as app:
        jobs = await together([app.create_job("q", "bad" if n == 3 else "a", {"n": n}) for n in range(10)])
        assert isinstance(jobs[3], DatabaseRefused)
        assert "not this one" in str(jobs[3])
        assert [job.params["n"] for job in await app.list_jobs()] == [0, 1, 2, 4, 5, 6, 7, 8, 9]


async def test_invalid_jobs_are_told_before_anything_is_shared(dsn: str) -> None:
    async with an_app(dsn) as app:
        good, bad = await together([app.create_job("q", "a"), app.create_job("", "a")])
    assert isinstance(good, Job)
    assert isinstance(bad, InvalidJob)


async def test_a_caller_that_is_cancelled_before_its_job_travels_has_created_nothing(
    dsn: str, locked: Connection
) -> None:
    async with an_app(dsn) as app:
        [first] = await under_way(dsn, app.create_job("q", "first"))
        second, third = (asyncio.create_task(app.create_job("q", name)) for name in ("second", "third"))
        await asyncio.sleep(0)
        second.cancel()
        await locked.execute("commit; begin")
        await asyncio.wait([first, second, third])
        assert second.cancelled()
        assert [job.action for job in await app.list_jobs()] == ["first", "third"]


async def test_a_caller_that_is_cancelled_while_its_job_travels_takes_nobody_along(
    dsn: str, locked: Connection
) -> None:
    async with an_app(dsn) as app:
        first, second = await under_way(dsn, *(app.create_job("q", name) for name in ("first", "second")))
        first.cancel()
        await locked.execute("commit; begin")
        assert (await second).action == "second"
        assert first.cancelled()


async def test_everybody_is_told_that_the_database_cannot_be_reached() -> None:
    async with an_app("postgresql://nobody@127.0.0.1:1/none") as app:
        told = await together([app.create_job("q", "a") for _ in range(3)])
    assert [type(error) for error in told] == [DatabaseUnavailable] * 3


async def test_a_statement_carries_no_more_than_it_should(dsn: str, connection: Connection) -> None:
    large = {"text": "x" * (MOST_CHARACTERS // 2)}
    async with an_app(dsn) as app:
        jobs = await together([app.create_job("q", "a", large) for _ in range(4)])
        assert all(isinstance(job, Job) for job in jobs)
    assert await connection.fetchval(COMMITS) == 2


async def test_after_a_loop_that_ended_all_its_tasks_jobs_are_created_again(
    dsn: str, locked: Connection
) -> None:
    """As asyncio.run does at its end; those that still wait are cancelled, too."""
    async with an_app(dsn) as app:
        [first] = await under_way(dsn, app.create_job("q", "first"))
        second = asyncio.create_task(app.create_job("q", "second"))
        await asyncio.sleep(0)
        [sending] = [task for task in asyncio.all_tasks() if task.get_name() == "pgqueuetopia create_job"]
        sending.cancel()
        await asyncio.wait([first, second], timeout=10)
        assert first.cancelled()
        assert second.cancelled()
        await locked.execute("commit; begin")
        assert (await app.create_job("q", "third")).action == "third"


async def test_another_threads_loop_waits_for_nobody_elses_statement(dsn: str, locked: Connection) -> None:
    """Whoever sends it could not call that loop."""
    async with an_app(dsn) as app:
        creations = await under_way(dsn, app.create_job("q", "first"))
        creations.append(asyncio.create_task(in_a_thread(app)))
        observer = await asyncpg.connect(dsn)
        await eventually(lambda: are_waiting(observer, 2))
        await observer.close()
        await locked.execute("commit; begin")
        assert all(isinstance(job, Job) for job in await together(creations))


async def in_a_thread(app: Queuetopia) -> Job:
    """With a loop of its own."""

    async def create() -> Job:
        with anyio.fail_after(DEADLINE):
            job = await app.create_job("q", "second")
        await app.repo.close()
        return job

    return await asyncio.to_thread(lambda: asyncio.run(create()))


async def are_waiting(observer: Connection, statements: int) -> bool:
    return bool(await observer.fetchval(WAITING) == statements)
