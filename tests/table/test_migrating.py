"""Making a queue of a table, and undoing that."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.to_thread
import asyncpg
import pytest

from pgqueuetopia import Misconfigured, NotMigrated, TableQueue
from pgqueuetopia.db import table_migration
from pgqueuetopia.migrate import main
from tests.support import Recorder, eventually
from tests.table.conftest import COCKROACH
from tests.table.world import World

SHAPE = """
select
  (
    select array_agg(a.attname || ' ' || format_type(a.atttypid, null) order by a.attname)
    from pg_attribute a
    where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped
  ),
  (
    select array_agg(i.indexrelid::regclass::text order by i.indexrelid::regclass::text)
    from pg_index i
    where i.indrelid = $1::text::regclass
  ),
  (
    select array_agg(t.tgname order by t.tgname)
    from pg_trigger t
    where t.tgrelid = $1::text::regclass and not t.tgisinternal
  ),
  (
    select array_agg(p.proname order by p.proname)
    from pg_proc p
    join pg_class c on c.relnamespace = p.pronamespace
    where c.oid = $1::text::regclass and p.proname like 'pgqueuetopia%'
  )
"""
# A rewritten table has other files.
FILE = "select pg_relation_filenode($1::text::regclass)"


async def shape(world: World) -> object:
    [row] = await world.connection.fetch(SHAPE, world.relation)
    return tuple(row)


async def test_it_can_be_run_again_and_undone(world: World) -> None:
    if COCKROACH in os.environ:
        pytest.skip("PostgreSQL's catalogue is read")
    made = await shape(world)
    await world.migrate(world.queue)
    assert await shape(world) == made
    await table_migration.down(world.dsn, world.queue)
    bare = await shape(world)
    assert "pgqueuetopia" not in str(bare)
    await table_migration.down(world.dsn, world.queue)
    assert await shape(world) == bare
    await world.migrate(world.queue)
    assert await shape(world) == made


async def test_rerun_when_can_be_added_changed_and_taken_away(photos: World) -> None:
    plain = await shape(photos)
    for columns in (["name"], ["name", "tenant"]):
        await photos.migrate(replace(photos.queue, rerun_when=columns))
        assert await shape(photos) != plain
    await photos.migrate(photos.queue)
    assert await shape(photos) == plain
    await photos.migrate(replace(photos.queue, rerun_when=["name"]))
    await table_migration.down(photos.dsn, photos.queue)
    assert "pgqueuetopia" not in str(await shape(photos))


@pytest.mark.parametrize("concurrently", [True, False])
async def test_the_sql_for_other_tools_does_the_same(photos: World, concurrently: bool) -> None:
    made = await shape(photos)
    await photos.connection.execute(photos.queue.down_sql())
    assert "pgqueuetopia" not in str(await shape(photos))
    sql = photos.queue.up_sql(concurrently=concurrently)
    if concurrently:
        for statement in photos.queue.up_statements():
            await photos.connection.execute(statement)
    else:
        async with photos.connection.transaction():
            await photos.connection.execute(sql)
    assert await shape(photos) == made


@pytest.mark.parametrize("enqueue_existing", [True, False])
async def test_rows_that_were_there_run_only_if_asked_for(world: World, enqueue_existing: bool) -> None:
    await table_migration.down(world.dsn, world.queue)
    await world.insert(1, 2)
    await table_migration.up(world.dsn, world.queue, enqueue_existing=enqueue_existing)
    await world.insert(3)
    recorder = Recorder()
    async with world.running(recorder):
        await eventually(lambda: len(recorder.performed) == (3 if enqueue_existing else 1))
        await eventually(lambda: is_finished(world, 3))
    # What has ended is not enqueued again by a second run.
    await table_migration.up(world.dsn, world.queue, enqueue_existing=enqueue_existing)
    async with world.app() as app:
        assert (await app.table("classify").status()).count == 0


async def is_finished(world: World, number: int) -> bool:
    return await world.lock(number) is None


@pytest.mark.parametrize("enqueue_existing", [True, False])
async def test_no_statement_rewrites_the_table(photos: World, enqueue_existing: bool) -> None:
    await table_migration.down(photos.dsn, photos.queue)
    await photos.insert(1)
    before = await photos.connection.fetchval(FILE, photos.relation)
    await table_migration.up(photos.dsn, photos.queue, enqueue_existing=enqueue_existing)
    await table_migration.down(photos.dsn, photos.queue)
    assert await photos.connection.fetchval(FILE, photos.relation) == before


async def test_it_waits_for_a_busy_table_without_having_others_wait(
    photos: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that waits for its lock has everybody behind it wait: it gives up and tries again."""
    monkeypatch.setattr(table_migration, "LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(table_migration, "PAUSE", 0.05)
    await table_migration.down(photos.dsn, photos.queue)
    reader = await asyncpg.connect(photos.dsn)
    async with anyio.create_task_group() as tasks:
        async with reader.transaction():
            await reader.execute(f"select 1 from {photos.relation}")
            tasks.start_soon(photos.migrate, photos.queue)
            longest = 0.0
            for number in range(20):
                began = time.monotonic()
                await photos.insert(number)
                longest = max(longest, time.monotonic() - began)
                await anyio.sleep(0.02)
        assert longest < 5, "an insert waited for the migration, and the migration for the reader"
    await reader.close()
    async with photos.app() as app:
        assert (await app.table("classify").status()).count == 0


async def test_an_index_that_was_left_half_made_is_made_anew(photos: World) -> None:
    names = photos.queue.names
    await photos.connection.execute(
        f"update pg_index set indisvalid = false where indexrelid = to_regclass('{names.index}')"
    )
    await photos.migrate(photos.queue)
    [[valid]] = await photos.connection.fetch(
        "select indisvalid from pg_index where indexrelid = to_regclass($1)", names.index
    )
    assert valid


async def test_a_table_that_is_no_queue_is_told_at_the_start(photos: World) -> None:
    await table_migration.down(photos.dsn, photos.queue)
    async with photos.app(Recorder()) as app:
        with pytest.raises(NotMigrated, match=r"pgqueuetopia.migrate table photos classify"):
            async with app.running():
                pass
    photos.declare(table="absent")
    async with photos.app(Recorder()) as app:
        with pytest.raises(NotMigrated, match="no table"):
            async with app.running():
                pass


@pytest.mark.parametrize(
    "words",
    [
        ["photos", "classify"],
        ["public.photos", "classify", "--key", "id,tenant", "--rerun-when", "name"],
        ["photos", "classify", "--database", "cockroachdb", "--enqueue-existing"],
    ],
)
async def test_the_command_prints_the_sql_that_the_queue_has(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command("table", *words, "--sql") == 0
    queue = TableQueue(
        "classify",
        table="photos",
        key=("id", "tenant") if "--key" in words else "id",
        rerun_when=["name"] if "--rerun-when" in words else (),
        database="cockroachdb" if "--database" in words else "postgresql",
    )
    existing = "--enqueue-existing" in words
    assert capsys.readouterr().out == queue.up_sql(enqueue_existing=existing)
    assert await command("table", *words, "--sql", "--down") == 0
    assert capsys.readouterr().out == queue.down_sql()


async def test_the_command_makes_a_queue_and_undoes_it(
    photos: World, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await shape(photos)
    words = ("table", "photos", "classify", "--dsn", photos.dsn)
    assert await command(*words, "--down") == 0
    assert "pgqueuetopia" not in str(await shape(photos))
    assert await command(*words) == 0
    assert await shape(photos) == made
    assert "is the queue classify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["absent", "classify"], "absent"),
        (["photos", "x" * 41], "at most 40"),
        (["photos", "classify", "--database", "mysql"], "must be one of"),
    ],
)
async def test_the_command_tells_what_is_wrong(
    photos: World, capsys: pytest.CaptureFixture[str], words: list[str], fault: str
) -> None:
    assert await command("table", *words, "--dsn", photos.dsn) == 1
    assert fault in capsys.readouterr().err


async def command(*words: str) -> int:
    """The command runs an event loop of its own."""
    return await anyio.to_thread.run_sync(main, words)


@pytest.mark.slow
async def test_inserts_go_on_while_a_table_of_many_rows_becomes_a_queue(photos: World) -> None:
    await table_migration.down(photos.dsn, photos.queue)
    await photos.connection.execute(
        f"insert into {photos.relation} (id) select generate_series(1, 300000)", timeout=60
    )
    async with inserting(photos) as taken:
        await table_migration.up(photos.dsn, photos.queue)
    assert len(taken) > 10
    assert max(taken) < 1, "an insert waited"


@asynccontextmanager
async def inserting(world: World) -> AsyncIterator[list[float]]:
    """Inserts rows, one after the other, as long as the context lasts; how long each took, in seconds."""
    taken: list[float] = []
    ended = anyio.Event()

    async def insert() -> None:
        while not ended.is_set():
            began = time.monotonic()
            await world.insert(10_000_000 + len(taken))
            taken.append(time.monotonic() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(insert)
        yield taken
        ended.set()


def test_nothing_of_this_is_for_a_database_that_is_not_known() -> None:
    with pytest.raises(Misconfigured, match="database must be one of postgresql, cockroachdb"):
        TableQueue("q", table="t", database="mysql")
