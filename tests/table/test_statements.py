"""The statements on a user's table: for keys of any type, and with plans that stay good in a large table."""

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from pgqueuetopia import Cancelled, Repo, TableQueue
from pgqueuetopia.db import table_migration
from pgqueuetopia.db.table import Table
from pgqueuetopia.db.table_rows import job_of, written_of
from pgqueuetopia.db.table_sql import TableSql
from pgqueuetopia.outcome import Settlement
from tests.support import Recorder, an_app, eventually
from tests.table.world import World

KEYS: dict[str, Any] = {
    "smallint": 3,
    "bigint": 2**60,
    "uuid": uuid.uuid4(),
    "text": "a 'quoted' key",
    "character varying(20)": "a name",
    "character(3)": "abc",
    "date": date(2024, 2, 29),
    "timestamp with time zone": datetime(2024, 2, 29, 12, tzinfo=UTC),
    "numeric(10, 2)": Decimal("12.34"),
    "bytea": b"\x00\x01",
    "boolean": True,
}


@pytest.mark.parametrize("type_", KEYS)
async def test_a_key_may_be_of_any_type(photos: World, type_: str) -> None:
    await photos.connection.execute(f"create table keyed (id {type_} primary key)")
    queue = TableQueue("q", table="keyed")
    await table_migration.up(photos.dsn, queue)
    recorder = Recorder()
    async with an_app(photos.dsn, recorder, table_queues=[queue]) as app:
        async with app.running():
            await photos.connection.execute("insert into keyed values ($1)", KEYS[type_])
            await eventually(lambda: is_done(photos))
        assert await app.table("q").cancel(KEYS[type_]) is Cancelled.OK
    assert [job.key for job in recorder.performed] == [KEYS[type_]]
    json.dumps(recorder.performed[0].params)
    await table_migration.down(photos.dsn, queue)
    await photos.connection.execute("drop table keyed")


async def is_done(world: World) -> bool:
    return not await world.connection.fetch("select 1 from keyed where pgqueuetopia_q_lock is not null")


SOME = 50_000
READ = """
select
  (select seq_scan from pg_stat_user_tables where relname = 'photos'),
  (select sum(idx_tup_read)::bigint from pg_stat_user_indexes where relname = 'photos')
"""
# From PostgreSQL 15 on a session tells at most once a second what it has read.
TELL = """
do $$
begin
  perform pg_stat_force_next_flush();
exception when undefined_function then
  null;
end
$$
"""
OTHERS = """
select from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
# What the statistics know: nothing, what is there, or a table that was small when they were made.
STATISTICS = ["never", "now", "when it was small"]


@pytest.fixture
async def large(photos: World, statistics: str) -> AsyncIterator[tuple[World, Table]]:
    """A table of many finished rows and a tenth as many that are due."""
    insert = f"insert into {photos.relation} (id, {photos.queue.names.lock})"
    await photos.connection.execute(f"{insert} select n, null from generate_series(1, 10) n")
    if statistics == "when it was small":
        await photos.connection.execute(f"analyze {photos.relation}")
    await photos.connection.execute(f"{insert} select n, null from generate_series(11, {SOME}) n")
    await photos.connection.execute(
        f"insert into {photos.relation} (id) select {SOME} + n from generate_series(1, 5000) n"
    )
    if statistics == "now":
        await photos.connection.execute(f"analyze {photos.relation}")
    repo = Repo(photos.dsn, max_size=1)
    yield photos, Table(repo, photos.queue, "Test")
    await repo.close()


@pytest.mark.slow
@pytest.mark.parametrize("statistics", STATISTICS)
async def test_a_claim_reads_a_few_rows_for_each_that_it_claims(large: tuple[World, Table]) -> None:
    """However often it has been run: PostgreSQL plans anew for the first five, and then no more."""
    world, table = large
    await eventually(lambda: all_is_told(world))
    before = await read(world)
    for _ in range(10):
        rows = await table.claim(20, "a node", 300, 0)
        assert len(rows) == 20
        jobs = [job_of(row, world.queue, "Test", "") for row in rows]
        succeeded = [
            written_of(row, job, Settlement.succeeded(None), "") for row, job in zip(rows, jobs, strict=True)
        ]
        assert len(await table.settle(succeeded)) == 20
        await table.soonest()
    await table._repo.close()
    await eventually(lambda: is_told(world, before))
    after = await read(world)
    assert after[0] == before[0], "no sequential scan"
    assert after[1] - before[1] < 200 * 40, "a scan of what is due is 5,000, and of the table 55,000"


@pytest.mark.slow
async def test_status_reads_no_row_that_has_ended(photos: World) -> None:
    """Nor does the first look after a large table has become a queue."""
    await table_migration.down(photos.dsn, photos.queue)
    await photos.connection.execute(f"insert into {photos.relation} select generate_series(1, {SOME})")
    await photos.migrate(photos.queue)
    await photos.insert(SOME + 1)
    await eventually(lambda: all_is_told(photos))
    before = await read(photos)
    async with photos.app() as app:
        for _ in range(10):
            assert (await app.table("classify").status()).ready == 1
    await eventually(lambda: is_told(photos, before))
    after = await read(photos)
    assert after[0] == before[0], "no sequential scan"
    assert after[1] - before[1] < 100


async def all_is_told(world: World) -> bool:
    """What was read before, by this session and by those that have ended."""
    await world.connection.execute(TELL)
    return not await world.connection.fetch(OTHERS)


async def is_told(world: World, before: tuple[int, int]) -> bool:
    """A session tells what it has read when it ends."""
    return (await read(world))[1] > before[1]


async def read(world: World) -> tuple[int, int]:
    """Sequential scans, and index entries read."""
    [row] = await world.connection.fetch(READ)
    return row[0], row[1]


async def test_every_statement_is_valid(world: World) -> None:
    """As it is sent, to a table of this shape."""
    types = [["integer", "text"][n] for n in range(len(world.kind.key))]
    sql = TableSql(world.queue, types)
    statements = [
        getattr(sql, name)
        for name, member in vars(TableSql).items()
        if isinstance(member, property) and not name.startswith("_")
    ]
    assert len(statements) > 8
    for statement in statements:
        assert isinstance(await world.connection.prepare(statement), asyncpg.prepared_stmt.PreparedStatement)
