"""How a node hears of rows: at once where it can listen, by its poll where it cannot."""

import json
from collections.abc import AsyncIterator, Iterator

import anyio
import asyncpg
import pytest

from pgqueuetopia import QueuetopiaError, Repo
from pgqueuetopia.db.table_ears import Ears
from pgqueuetopia.table.schema import CHANNEL
from tests.conftest import execute
from tests.pooler import PGBOUNCER, a_pooler
from tests.support import ADVISORY_LOCKS, Recorder, eventually
from tests.table.world import World

ASLEEP = f"""
select count(*) from {ADVISORY_LOCKS}
where granted and mode = 'ShareLock'
  and ((classid::bigint << 32) | objid::bigint) = hashtextextended($1, 20)
"""
SUSPEND = "insert into pgqueuetopia.job_configs (scope, key, value) values ('Test', 'suspended', '1')"
OURS = "from pg_stat_activity where datname = current_database() and application_name like 'pgqueuetopia"
EARS = f"select pid {OURS}-tables%'"


@pytest.fixture
async def heard(dsn: str) -> AsyncIterator[list[str]]:
    """What is notified about tables while the test lasts."""
    payloads: list[str] = []
    listener = await asyncpg.connect(dsn)
    await listener.add_listener(CHANNEL, lambda *heard: payloads.append(str(heard[-1])))
    yield payloads
    await listener.close()


async def sleepers(world: World) -> int:
    name = f"pgqueuetopia sleeping {world.queue.names.identity}"
    return int(await world.connection.fetchval(ASLEEP, name))


async def test_an_insert_notifies_nobody_while_nobody_sleeps(photos: World, heard: list[str]) -> None:
    await photos.insert(1)
    await photos.insert(*range(2, 100))
    await photos.connection.fetchval("select pg_notify($1, 'the end')", CHANNEL)
    await eventually(lambda: heard)
    assert heard == ["the end"]


async def test_an_insert_wakes_a_node_that_sleeps_once_for_a_statement(
    photos: World, heard: list[str]
) -> None:
    photos.declare(poll_interval=60)
    recorder = Recorder()
    async with photos.running(recorder):
        await eventually(lambda: sleepers(photos))
        await photos.insert(*range(1, 100))
        await eventually(lambda: len(recorder.performed) == 99, within=5)
        # The node may have heard it before we do.
        await eventually(lambda: heard)
        assert heard == [photos.queue.names.identity]


async def test_a_node_that_works_is_not_notified(photos: World, heard: list[str]) -> None:
    go_on = anyio.Event()
    photos.declare(poll_interval=60, concurrency=1)
    recorder = Recorder(lambda job: go_on.wait())
    async with photos.running(recorder):
        await photos.insert(1)
        await eventually(lambda: recorder.performed)
        await eventually(lambda: is_awake(photos))
        before = len(heard)
        await photos.insert(2)
        assert len(heard) == before
        go_on.set()
        await eventually(lambda: len(recorder.performed) == 2, within=5)


async def test_a_node_that_is_kept_busy_is_rarely_notified(photos: World, heard: list[str]) -> None:
    """It looks by itself for a while after each row, and inserts find nobody asleep."""
    photos.declare(poll_interval=60)
    recorder = Recorder()
    async with photos.running(recorder):
        await eventually(lambda: sleepers(photos))
        for number in range(200):
            await photos.insert(number)
        await eventually(lambda: len(recorder.performed) == 200, within=5)
    assert len(heard) < 100


async def is_awake(world: World) -> bool:
    return not await sleepers(world)


async def test_a_row_of_a_transaction_that_is_older_than_the_sleep_is_not_missed(photos: World) -> None:
    """It found nobody asleep when it inserted, and commits when all are."""
    photos.declare(poll_interval=60)
    recorder = Recorder()
    writer = await asyncpg.connect(photos.dsn)
    writing = writer.transaction()
    await writing.start()
    await writer.execute(f"insert into {photos.relation} (id) values (1)")
    async with photos.running(recorder):
        await eventually(lambda: sleepers(photos))
        await anyio.sleep(0.3)
        await writing.commit()
        await eventually(lambda: recorder.performed, within=5)
    await writer.close()


async def test_a_node_that_lost_its_ears_polls_and_hears_again(photos: World) -> None:
    photos.declare(poll_interval=60)
    recorder = Recorder()
    async with photos.running(recorder):
        await eventually(lambda: sleepers(photos))
        await photos.connection.execute(f"select pg_terminate_backend(pid) from ({EARS}) as ears")
        await photos.insert(1)
        await eventually(lambda: recorder.performed, within=10)
        await eventually(lambda: sleepers(photos))
        await photos.insert(2)
        await eventually(lambda: len(recorder.performed) == 2, within=5)


async def test_no_row_is_claimed_after_a_suspension_has_committed(photos: World) -> None:
    """A node that has claimed starts what it has before suspend returns."""
    photos.declare(concurrency=2)
    recorder = Recorder()
    async with photos.running(recorder) as app:
        for number in range(20):
            await photos.insert(*range(number * 100, number * 100 + 50))
            await app.suspend("classify")
            started = len(recorder.performed)
            await anyio.sleep(0.02)
            assert len(recorder.performed) == started
            await app.resume("classify")


async def test_no_row_is_started_while_a_transaction_that_suspends_is_under_way(photos: World) -> None:
    recorder = Recorder()
    async with photos.running(recorder):
        async with photos.connection.transaction():
            await photos.connection.execute(SUSPEND)
            await execute(photos.dsn, f"insert into {photos.relation} (id) values (1)")
            await anyio.sleep(0.2)
            assert not recorder.performed
        await anyio.sleep(0.2)
        assert not recorder.performed
        await photos.connection.execute("delete from pgqueuetopia.job_configs where scope = 'Test'")
        await eventually(lambda: recorder.performed)


async def test_no_row_is_claimed_before_the_nodes_ears_have_been_tried(
    photos: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that suspends would not wait for it."""
    go_on = anyio.Event()
    connect = Ears._connect

    async def connect_late(ears: Ears) -> None:
        await go_on.wait()
        await connect(ears)

    monkeypatch.setattr(Ears, "_connect", connect_late)
    recorder = Recorder()
    await photos.insert(1)
    async with photos.running(recorder):
        await anyio.sleep(0.2)
        assert not recorder.performed
        go_on.set()
        await eventually(lambda: recorder.performed)


async def test_another_connection_is_not_needed_where_nobody_could_notify(roaches: World) -> None:
    async with roaches.running(Recorder()):
        await roaches.insert(1)
        await eventually(lambda: is_done(roaches))
        assert not await roaches.connection.fetch(EARS)
        assert not await roaches.connection.fetch(f"select {OURS}%'"), "no node's session either"


async def is_done(world: World) -> bool:
    return await world.lock() is None


@pytest.fixture
def pooled(dsn: str) -> Iterator[str]:
    with a_pooler(dsn) as through:
        yield through


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")
async def test_rows_run_through_pgbouncer_in_transaction_mode(photos: World, pooled: str) -> None:
    recorder = Recorder()
    repo = Repo(pooled, session_dsn=photos.dsn, statement_cache_size=0)
    await eventually(lambda: answers(repo))
    async with photos.running(recorder, repo=repo):
        await photos.insert(*range(1, 51))
        await eventually(lambda: len(recorder.performed) == 50)
        await eventually(lambda: sleepers(photos))
        await photos.insert(51)
        await eventually(lambda: len(recorder.performed) == 51, within=5)


async def answers(repo: Repo) -> bool:
    try:
        await repo.nodes("Test")
    except QueuetopiaError:
        return False
    return True


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")
async def test_without_a_direct_connection_rows_are_found_by_polling(roaches: World, pooled: str) -> None:
    recorder = Recorder()
    repo = Repo(pooled, statement_cache_size=0)
    await eventually(lambda: answers(repo))
    async with roaches.running(recorder, repo=repo):
        await roaches.insert(1)
        await eventually(lambda: recorder.performed)
    assert json.loads(await roaches.private() or "{}") == {}
