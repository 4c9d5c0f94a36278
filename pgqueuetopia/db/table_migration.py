"""Making a queue of a user's table while others go on with it, and undoing that."""

import random
from collections.abc import Sequence

import anyio
import asyncpg

from pgqueuetopia.db.driver import CONNECT_TIMEOUT, Connection, resolved_dsn, translated
from pgqueuetopia.table.names import quoted
from pgqueuetopia.table.queue import TableQueue

# A statement that changes the table waits no longer than this for those who use it, for all others wait
# behind it; then it lets them pass, and tries again after a pause (seconds), and for so long (seconds).
LOCK_TIMEOUT = "500ms"
PAUSE = 1.0
PATIENCE = 600

# What an index leaves that was being made when its connection was lost.
HALF_MADE = """
select from pg_index i
join pg_class c on c.oid = i.indexrelid
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = $2::text and not i.indisvalid
"""


async def up(dsn: str | None, queue: TableQueue, *, enqueue_existing: bool = False) -> None:
    """Make a queue of a table; nothing happens where it is one. Inserts go on meanwhile.

    Raises NotMigrated for a table that is not there, AccessDenied for one that is not ours, and
    DatabaseRefused where the table was busy for ten minutes without a break of half a second.
    """
    await _run(dsn, queue, queue.up_statements(enqueue_existing=enqueue_existing))


async def down(dsn: str | None, queue: TableQueue) -> None:
    """Make the table what it was; raises as `up` does."""
    await _run(dsn, queue, queue.down_statements())


async def _run(dsn: str | None, queue: TableQueue, statements: Sequence[str]) -> None:
    with translated():
        connection = await asyncpg.connect(
            resolved_dsn(dsn),
            timeout=CONNECT_TIMEOUT,
            server_settings={"application_name": "pgqueuetopia migrate", "lock_timeout": LOCK_TIMEOUT},
        )
        try:
            if queue.dialect.concurrently:
                await _drop_half_made(connection, queue)
            for statement in statements:
                await _run_between_others(connection, statement)
        finally:
            await connection.close()


async def _drop_half_made(connection: Connection, queue: TableQueue) -> None:
    names = queue.names
    if await connection.fetch(HALF_MADE, names.schema, names.identity):
        index = f"{quoted(names.schema)}.{names.index}"
        await _run_between_others(connection, f"drop index concurrently if exists {index}")


async def _run_between_others(connection: Connection, statement: str) -> None:
    """Run a statement when the table is free for it; give up when that has not been so for long."""
    # An index made concurrently locks nobody out, and waits for all who were there before it.
    patient = " index concurrently " in statement
    await connection.execute("select set_config('lock_timeout', $1, false)", "0" if patient else LOCK_TIMEOUT)
    deadline = anyio.current_time() + PATIENCE
    while True:
        try:
            await connection.execute(statement)
        except asyncpg.LockNotAvailableError:
            if anyio.current_time() > deadline:
                raise
            await anyio.sleep(PAUSE * random.uniform(0.5, 1.0))
        else:
            return
