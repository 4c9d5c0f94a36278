"""A crash of the server, which forgets the claims that were not written yet."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import asyncpg
import pytest

from pgqueuetopia import NewJob, Topic, embedded
from pgqueuetopia.db import migrations
from pgqueuetopia.db.step import settlement_columns
from tests.db.steps import done, look, open_session, sessions
from tests.db.test_slots import Slots
from tests.support import an_app, eventually

# Nobody else writes what a commit has not waited for.
PATIENT = {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0", "autovacuum": "off"}
LEAST_CLAIM = "select least_claim from pgqueuetopia.since_crash()"
WAITS = """
select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')
"""


@pytest.fixture
def server() -> Iterator[embedded.Server]:
    """One's own, which may crash."""
    parent = Path(tempfile.mkdtemp(prefix="pgq-", dir="/tmp"))
    parent.chmod(0o755)
    with embedded.start(parent / "server", durable=True, options=PATIENT) as server:
        yield server
    shutil.rmtree(parent)


@pytest.fixture
async def frail(server: embedded.Server) -> str:
    """The DSN of a migrated database on it."""
    await migrations.up(server.dsn)
    return server.dsn


async def crash(dsn: str) -> None:
    """What kills one of its processes is a crash of the whole server."""
    connection = await asyncpg.connect(dsn)
    os.kill(connection.get_server_pid(), signal.SIGKILL)
    await eventually(connection.is_closed)

    async def is_back() -> bool:
        try:
            await (await asyncpg.connect(dsn)).close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    await eventually(is_back)


async def ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def create(dsn: str, jobs: int = 1, *, topic: bool = False) -> None:
    queue = "t" if topic else "q"
    async with an_app(dsn, topics=[Topic("t", parallelism=4)]) as app:
        await app.create_jobs([NewJob(queue, "a")] * jobs)


async def stored(dsn: str, column: str) -> object:
    return await ask(dsn, f"select {column} from pgqueuetopia.jobs")


@pytest.mark.slow
async def test_the_number_of_a_claim_that_a_crash_forgets_is_not_given_out_again(frail: str) -> None:
    await create(frail)
    async with sessions(frail, "a") as [session]:
        [forgotten] = (await look(session)).claimed
        await crash(frail)
    assert (forgotten.claim, await stored(frail, "claim")) == (1, 0)
    async with sessions(frail, "b") as [session]:
        [job] = (await look(session)).claimed
        assert job.claim > forgotten.claim
        assert job.attempts == 1
        # What ran before the crash tells of itself late, and is not heard.
        async with an_app(frail) as app:
            late = await app.repo.persist("Test", "a", settlement_columns([done(forgotten)], "a"), keep=True)
        assert late == []
        assert (await look(session, done(job))).saved == {job.id}


@pytest.mark.slow
async def test_nor_after_another_crash_where_nothing_waits_for_the_disk(frail: str) -> None:
    await create(frail)
    await ask(frail, "alter database postgres set synchronous_commit = off")
    claims = []
    for node in ("a", "b", "c"):
        async with sessions(frail, node) as [session]:
            [job] = (await look(session)).claimed
            claims.append(job.claim)
            await crash(frail)
    assert await stored(frail, "claim") == 0
    assert claims == sorted(set(claims))


@pytest.mark.slow
async def test_nor_is_that_of_a_job_of_a_topic(frail: str) -> None:
    await create(frail, topic=True)
    async with sessions(frail, "a") as [session]:
        [forgotten] = (await Slots(session).look()).claimed
        await crash(frail)
    assert (forgotten.claim, await stored(frail, "claim")) == (1, 0)
    async with sessions(frail, "b") as [session]:
        [job] = (await Slots(session).look()).claimed
        assert job.claim > forgotten.claim


@pytest.mark.slow
async def test_an_outcome_and_what_was_claimed_before_it_survive_a_crash(frail: str) -> None:
    await create(frail)
    async with sessions(frail, "a") as [session]:
        [job] = (await look(session)).claimed
        await look(session, done(job))
        await crash(frail)
    assert await stored(frail, "claim || ' ' || outcome") == "1 succeeded"


@pytest.mark.slow
async def test_what_is_prefetched_survives_a_crash(frail: str) -> None:
    await create(frail, jobs=2)
    async with sessions(frail, "a") as [session]:
        stepped = await look(session, size=2)
        assert stepped.prefetched
        await crash(frail)
    assert await stored(frail, "max(prefetched_to) = max(id)") is True


@pytest.mark.slow
async def test_who_opens_a_session_after_a_crash_gives_others_half_a_second_to_stop(frail: str) -> None:
    assert await calm_in(frail) == 0
    await crash(frail)
    began = time.monotonic()
    (await open_session(frail, "a")).abort()
    assert time.monotonic() - began >= 0.5
    assert await calm_in(frail) == 0


# In a database of their own: what they change there, others would notice.
async def test_not_longer_where_the_clock_has_gone_back(racing_dsn: str) -> None:
    await ask(racing_dsn, "update pgqueuetopia.uncrashed set noticed_at = now() + interval '1 hour'")
    assert await calm_in(racing_dsn) == 0.5


async def test_two_that_notice_a_crash_at_once_notice_one(racing_dsn: str) -> None:
    await ask(racing_dsn, "delete from pgqueuetopia.uncrashed")
    connection = await asyncpg.connect(racing_dsn)
    others: list[object] = []

    async def notice() -> None:
        others.append(await ask(racing_dsn, LEAST_CLAIM))

    async with anyio.create_task_group() as tasks, connection.transaction():
        first = await connection.fetchval(LEAST_CLAIM)
        tasks.start_soon(notice)
        # By another connection, for within a transaction this view does not change.
        await eventually(lambda: ask(racing_dsn, WAITS))
        assert others == []
    await connection.close()
    assert first > 0
    assert others == [first]


async def calm_in(dsn: str) -> object:
    return await ask(dsn, "select calm_in from pgqueuetopia.since_crash()")
