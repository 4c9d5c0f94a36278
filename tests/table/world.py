"""A user's table that is a queue, in each of the shapes that it may have."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from pgqueuetopia import Performer, Queuetopia, Repo, TableQueue, Workers
from pgqueuetopia.db import table_migration
from pgqueuetopia.db.table import Table
from pgqueuetopia.db.table_rows import Row
from pgqueuetopia.table.names import quoted
from tests.support import an_app

SCOPE = "Test"
TENANT = "acme"


@dataclass(frozen=True)
class Kind:
    """The shape of a table, and the database that it is on."""

    database: str
    schema: str = "public"
    table: str = "photos"
    key: tuple[str, ...] = ("id",)

    def __str__(self) -> str:
        schema = "public" if self.schema == "public" else "schema"
        return f"{self.database}-{schema}-{len(self.key)} key"

    @property
    def polls(self) -> bool:
        return self.database == "cockroachdb"


# Names that must be quoted.
STRANGE = {"schema": 'the "Gallery"', "table": "Photos of $1; --"}
# All eight in CI, by $TABLE_KINDS; they take four times as long.
EVERY_KIND = [
    Kind(database, key=key, **names)
    for database in ("postgresql", "cockroachdb")
    for names in ({}, STRANGE)
    for key in (("id",), ("id", "tenant"))
]
TWO_KINDS = [Kind("postgresql", key=("id", "tenant"), **STRANGE), Kind("cockroachdb")]
KINDS = EVERY_KIND if os.environ.get("TABLE_KINDS") == "all" else TWO_KINDS


class World:
    """The table, the queue on it, and what a test does with them."""

    def __init__(self, dsn: str, kind: Kind, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.dsn = dsn
        self.kind = kind
        self.connection = connection
        # Where nodes hear, a test that would only pass by polling fails.
        poll_interval = 0.05 if kind.polls else 60
        self.queue = TableQueue(
            "classify",
            table=kind.table,
            schema=kind.schema,
            key=kind.key,
            database=kind.database,
            poll_interval=poll_interval,
        )
        self._first = self.queue
        self.relation = self.queue.names.relation

    async def build(self) -> None:
        """Make the table, and a queue of it."""
        schema = quoted(self.kind.schema)
        await self.connection.execute(f"create schema if not exists {schema}")
        key = ", ".join(self.kind.key)
        await self.connection.execute(
            f"create table {self.relation} (id integer not null, tenant text not null default '{TENANT}', "
            f"name text, primary key ({key}))"
        )
        await self.migrate(self.queue)

    async def migrate(self, queue: TableQueue) -> None:
        await table_migration.up(self.dsn, queue)

    async def demolish(self) -> None:
        await table_migration.down(self.dsn, self._first)
        await self.connection.execute(f"drop table {self.relation} cascade")
        if self.kind.schema != "public":
            await self.connection.execute(f"drop schema {quoted(self.kind.schema)} cascade")

    def key(self, number: int) -> Any:
        """A row's key, as users get it and give it."""
        return number if len(self.kind.key) == 1 else {"id": number, "tenant": TENANT}

    async def insert(self, *numbers: int) -> None:
        """One statement for all."""
        values = ", ".join(f"({number})" for number in numbers)
        await self.connection.execute(f"insert into {self.relation} (id) values {values}")

    @asynccontextmanager
    async def locked(self, number: int = 1) -> AsyncIterator[None]:
        """The application changes a row, and has not committed yet."""
        connection = await asyncpg.connect(self.dsn)
        try:
            # Whatever the nodes run at: at SERIALIZABLE it might be the application that is refused.
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(f"update {self.relation} set name = 'busy' where id = $1", number)
                yield
        finally:
            await connection.close()

    async def column(self, name: str, number: int = 1) -> Any:
        return (await self.connection.fetch(f"select {name} from {self.relation} where id = $1", number))[0][
            0
        ]

    async def lock(self, number: int = 1) -> int | None:
        lock: int | None = await self.column(self.queue.names.lock, number)
        return lock

    async def private(self, number: int = 1) -> str | None:
        private: str | None = await self.column(self.queue.names.private, number)
        return private

    def declare(self, **changes: Any) -> TableQueue:
        """The queue, declared otherwise."""
        self.queue = replace(self.queue, **changes)
        return self.queue

    @asynccontextmanager
    async def app(
        self, performer: Performer | Workers | None = None, **options: Any
    ) -> AsyncIterator[Queuetopia]:
        """A Queuetopia with this table queue, that runs no node yet."""
        given = {"table_queues": [self.queue], "scope": SCOPE, "repo": Repo(self.dsn), **options}
        async with an_app(self.dsn, performer, **given) as app:
            yield app

    @asynccontextmanager
    async def running(self, performer: Performer | Workers, **options: Any) -> AsyncIterator[Queuetopia]:
        """The same, with a node."""
        async with self.app(performer, **options) as app, app.running():
            yield app

    @asynccontextmanager
    async def table(self) -> AsyncIterator[Table]:
        """The table as a node has it, for what a node does step by step."""
        repo = Repo(self.dsn)
        try:
            yield Table(repo, self.queue, SCOPE)
        finally:
            await repo.close()

    async def claim(self, lease: float = 300, room: int = 10, node: str = "another node") -> list[Row]:
        """Claim rows as a node does, which then dies."""
        async with self.table() as table:
            return await table.claim(room, node, lease, 0)
