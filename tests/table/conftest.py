"""The table queue of each kind; those of CockroachDB run on PostgreSQL at SERIALIZABLE, or on a real one."""

import os
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.table.world import EVERY_KIND, KINDS, Kind, World

# Of a real CockroachDB, with the right to create tables: see `make test-cockroach`.
COCKROACH = "PGQUEUETOPIA_COCKROACH_DSN"
SERIALIZABLE = "&default_transaction_isolation=serializable"
NO_CONFIGS = "delete from pgqueuetopia.job_configs where key like '%suspended' and scope <> '*'"


def dsn_of(kind: Kind, dsn: str) -> str:
    """Where tables of a kind are."""
    if not kind.polls:
        return dsn
    return os.environ.get(COCKROACH) or dsn + SERIALIZABLE


async def a_world(dsn: str, kind: Kind) -> AsyncIterator[World]:
    there = dsn_of(kind, dsn)
    connection = await asyncpg.connect(there)
    world = World(there, kind, connection)
    try:
        await world.build()
        yield world
        await world.demolish()
        await connection.execute(NO_CONFIGS)
    finally:
        await connection.close()


@pytest.fixture(params=KINDS, ids=str)
async def world(dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A table that is a queue: in public and in a schema, of one key and of two, in both dialects."""
    async for world in a_world(dsn, request.param):
        yield world


@pytest.fixture
async def photos(dsn: str) -> AsyncIterator[World]:
    """The plain one."""
    async for world in a_world(dsn, EVERY_KIND[0]):
        yield world


@pytest.fixture
async def roaches(dsn: str) -> AsyncIterator[World]:
    """The plain one in CockroachDB's dialect."""
    async for world in a_world(dsn, Kind("cockroachdb")):
        yield world
