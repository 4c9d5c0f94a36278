"""Stops a session between two statements of step(), where its source says "failpoint"."""

import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import anyio
import asyncpg
import pytest

from pgqueuetopia import DatabaseUnavailable
from pgqueuetopia.db import migrations
from tests.db.steps import kill
from tests.support import ADVISORY_LOCKS, eventually

# A session passes unless somebody holds the lock of this failpoint and of its application's name.
FAILPOINT = """
create function public.failpoint(name text) returns void
language plpgsql set lock_timeout = 0 set statement_timeout = 0
as $$
declare
  node text := split_part(current_setting('application_name'), ' ', 2);
  key integer := hashtext(name || ' of pgqueuetopia ' || node);
begin
  perform pg_advisory_lock_shared(1, key);
  perform pg_advisory_unlock_shared(1, key);
end
$$
"""
MARK = re.compile(r"-- failpoint: ([a-z ]+)\n")
WAITING = f"""
select from {ADVISORY_LOCKS}
where objsubid = 2 and classid = 1 and objid = $1::bigint and not granted
"""


def names() -> list[str]:
    """Every failpoint in the migrations, in their order."""
    return [name for migration in migrations.all_migrations() for name in MARK.findall(migration.up)]


async def install(dsn: str) -> None:
    """Migrate an empty database, with each mark made a place to stop."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(FAILPOINT)
    await connection.execute(migrations.PREPARE)
    for migration in migrations.all_migrations():
        await connection.execute(MARK.sub(r"perform public.failpoint('\1');\n", migration.up))
        await connection.execute(
            migrations.RECORD.replace("$1, $2, $3", f"{migration.version}, '{migration.name}', ''")
        )
    await connection.close()


class Stop:
    """A session stopped at a failpoint, or about to be."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", key: int) -> None:
        self._connection = connection
        self._key = key

    async def reached(self) -> None:
        """Wait until the session has come to the failpoint."""
        await eventually(self._is_waiting)

    async def _is_waiting(self) -> bool:
        return bool(await self._connection.fetch(WAITING, self._key % 2**32))

    async def release(self) -> None:
        """Let the session go on."""
        await self._connection.fetch("select pg_advisory_unlock(1, $1)", self._key)


async def die_at(dsn: str, name: str, node: str, step: Awaitable[object]) -> None:
    """Kill a node's session where its step comes to a failpoint."""

    async def die() -> None:
        with pytest.raises(DatabaseUnavailable):
            await step

    async with stopping(dsn, name, node) as stop, anyio.create_task_group() as tasks:
        tasks.start_soon(die)
        await stop.reached()
        await kill(dsn, node)


@asynccontextmanager
async def stopping(dsn: str, name: str, node: str) -> AsyncIterator[Stop]:
    """Have a node's session stop at a failpoint, until released or to the end of the block."""
    connection = await asyncpg.connect(dsn)
    try:
        key = await connection.fetchval("select hashtext($1)", f"{name} of pgqueuetopia {node}")
        await connection.fetch("select pg_advisory_lock(1, $1)", key)
        yield Stop(connection, key)
    finally:
        await connection.close()
