"""Every statement is prepared against a migrated database, and step() reads no more than it needs."""

import asyncpg
import pytest

from pgqueuetopia.db.arrays import numbers, texts
from pgqueuetopia.db.rows import Row, rows_in
from pgqueuetopia.db.session import SERVER_SETTINGS
from pgqueuetopia.db.statements import SQL
from tests.support import eventually


@pytest.mark.parametrize("name", sorted(SQL))
async def test_every_statement_is_valid(connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
    assert SQL[name].startswith("-- "), "a sentence stands above it"
    await connection.prepare(SQL[name])


ROWS = """
insert into pgqueuetopia.jobs (scope, queue, action)
select 'Test', 'q' || i % 1000, 'a' from generate_series(1, 20000) i
"""
OTHERS = """
select from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> all ($1::integer[])
"""
READ = """
select
  (select sum(seq_scan) from pg_stat_user_tables where relname in ('jobs', 'run_queue')),
  (select sum(idx_tup_read) from pg_stat_user_indexes where schemaname = 'pgqueuetopia')
"""


# The names of what a step is asked.
NAMES = """
select attname from pg_attribute where attrelid = 'pgqueuetopia.question'::regclass order by attnum
"""


async def step(node: "asyncpg.Connection[asyncpg.Record]", **told: object) -> list[Row]:
    """A step from the start, with room for fifty; what it has claimed."""
    asked = {"avoid": [], "room": 50, "keep": True, "queues_suspended": True, "started": 0, "careful": False}
    question = [(asked | told).get(row["attname"]) for row in await node.fetch(NAMES)]
    [[answer]] = await node.fetch(SQL["step"], "Test", "n", tuple(question))
    return rows_in(answer["claimed"])


# What the statistics know: nothing, what is there, or what was there once.
MISLEADING = """
insert into pgqueuetopia.jobs (scope, queue, action) select 'Test', 'q', 'a' from generate_series(1, {rows});
analyze pgqueuetopia.jobs, pgqueuetopia.run_queue;
insert into pgqueuetopia.run_queue (scope, queue) select 'Test', 'q' from generate_series(1, {rows});
analyze pgqueuetopia.jobs, pgqueuetopia.run_queue;
truncate pgqueuetopia.jobs, pgqueuetopia.run_queue
"""


@pytest.mark.parametrize("analysed", ["never", "now", "one job", "one queue", "a long queue"])
async def test_step_reads_a_few_rows_for_each_job_whatever_the_statistics_say(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", analysed: str
) -> None:
    """Plans made for empty tables stay good for large ones, and the other way round."""
    sizes = {"one job": 1, "one queue": 100, "a long queue": 20_000}
    if analysed in sizes:
        await connection.execute(MISLEADING.format(rows=sizes[analysed]))
    node = await asyncpg.connect(dsn, server_settings=SERVER_SETTINGS)
    # The first calls make the plans, while the tables are empty.
    for _ in range(2):
        await step(node, rescue=True)
    await connection.execute(ROWS)
    if analysed == "now":
        await connection.execute("analyze pgqueuetopia.jobs, pgqueuetopia.run_queue")
    # What a session has read is counted when it ends: those of the test before may not have ended yet.
    await eventually(lambda: are_alone(connection, node))
    before = await read(node)
    claimed = await step(node, rescue=True)
    assert len(claimed) == 50
    for ended in (False, True):
        claimed = await step(
            node,
            ids=numbers(job["id"] for job in claimed),
            claims=numbers(job["claim"] for job in claimed),
            outcomes=["succeeded"] * 50,
            spent=[True] * 50,
            queues=texts(job["queue"] for job in claimed),
            yielding=texts(job["queue"] for job in claimed if ended),
            rescue=False,
            started=1,
        )
        assert len(claimed) == 50
    after = await read(node)
    await node.close()
    assert after[0] - before[0] == 0, "no sequential scan"
    assert after[1] - before[1] < 150 * 40, "index entries read for 150 jobs; one scan of a table is 20,000"


async def are_alone(*ours: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """Whether nobody else is connected to the database."""
    return not await ours[0].fetch(OTHERS, [one.get_server_pid() for one in ours])


async def read(node: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int]:
    """Sequential scans, and index entries read, as they are after this session's last statement."""
    await node.fetch("select pg_stat_force_next_flush()")
    [row] = await node.fetch(READ)
    return int(row[0]), int(row[1])
