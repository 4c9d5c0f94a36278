"""The migrations: plain SQL in numbered files, applied under a lock, each in its own transaction."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg

from pgqueuetopia.db.driver import CONNECT_TIMEOUT, Connection, resolved_dsn, translated
from pgqueuetopia.errors import MigrationFailed

LOCK = "select pg_advisory_lock(hashtextextended('pgqueuetopia.migrations', 0))"
PREPARE = """
create schema if not exists pgqueuetopia;
create table if not exists pgqueuetopia.schema_migrations (
  version integer primary key,
  name text not null,
  checksum text not null,
  applied_at timestamptz not null default now()
);
"""
EXISTS = "select to_regclass('pgqueuetopia.schema_migrations') is not null"
APPLIED = "select version, name, checksum, applied_at from pgqueuetopia.schema_migrations order by version"
RECORD = "insert into pgqueuetopia.schema_migrations (version, name, checksum) values ($1, $2, $3)"
FORGET = "delete from pgqueuetopia.schema_migrations where version = $1"
# The schema goes only if nothing of the user's is left in it.
REMOVE = "drop table pgqueuetopia.schema_migrations; drop schema pgqueuetopia restrict"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered pair of SQL files."""

    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """Of what `up` runs; a file that was applied must never change."""
        return hashlib.sha256(self.up.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """One migration and when it was applied, if it was."""

    version: int
    name: str
    applied_at: datetime | None


def all_migrations() -> list[Migration]:
    """The migrations that this version of the code has, in order."""
    return [
        Migration(
            int(path.name[:4]),
            path.name[5:].removesuffix(".up.sql"),
            path.read_text(encoding="utf-8"),
            path.with_name(path.name.replace(".up.", ".down.")).read_text(encoding="utf-8"),
        )
        for path in sorted(_folder().glob("[0-9]*.up.sql"))
    ]


async def up(dsn: str | None, to: int | None = None) -> list[Migration]:
    """Apply what is missing, up to version `to`; returns what was applied.

    Raises MigrationFailed where an applied file has changed or the database is newer than the code, and
    AccessDenied where the role may not; what was applied before the failing one stays.
    """
    async with _locked(dsn) as connection:
        await connection.execute(PREPARE)
        applied = await _applied(connection)
        todo = [m for m in all_migrations() if m.version not in applied and _wanted(m, to)]
        for migration in todo:
            async with connection.transaction():
                await connection.execute(migration.up)
                await connection.execute(RECORD, migration.version, migration.name, migration.checksum)
        return todo


async def down(dsn: str | None, to: int = 0) -> list[Migration]:
    """Undo what was applied, newest first, down to version `to` (0: everything goes, jobs and all)."""
    async with _locked(dsn) as connection:
        applied = await _applied(connection)
        todo = [m for m in reversed(all_migrations()) if m.version in applied and m.version > to]
        for migration in todo:
            async with connection.transaction():
                await connection.execute(migration.down)
                await connection.execute(FORGET, migration.version)
        if to == 0 and todo:
            await connection.execute(REMOVE)
        return todo


async def status(dsn: str | None) -> list[State]:
    """Every migration that the code has, and when it was applied to this database."""
    async with _connected(dsn) as connection:
        applied = await _applied(connection)
    return [State(m.version, m.name, applied.get(m.version)) for m in all_migrations()]


def sql(to: int | None = None) -> str:
    """The SQL that `up` runs on an empty database, for people who apply it by other means."""
    parts = [PREPARE.strip()]
    for migration in all_migrations():
        if _wanted(migration, to):
            parts += [
                f"-- {migration.version:04} {migration.name}\nbegin;",
                migration.up.strip(),
                "insert into pgqueuetopia.schema_migrations (version, name, checksum)\n"
                f"values ({migration.version}, '{migration.name}', '{migration.checksum}');\ncommit;",
            ]
    return "\n\n".join(parts) + "\n"


def _wanted(migration: Migration, to: int | None) -> bool:
    return to is None or migration.version <= to


def _folder() -> Path:
    """In a wheel the migrations lie in the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "migrations"
    return shipped if shipped.is_dir() else package.parent / "migrations"


async def _applied(connection: Connection) -> dict[int, datetime]:
    """When each version was applied, after a check that it is what the code has."""
    if not (await connection.fetch(EXISTS))[0][0]:
        return {}
    known = {migration.version: migration for migration in all_migrations()}
    applied = await connection.fetch(APPLIED)
    _check(applied, known)
    return {row["version"]: row["applied_at"] for row in applied}


def _check(applied: Sequence[asyncpg.Record], known: dict[int, Migration]) -> None:
    newest = max(known)
    for row in applied:
        if row["version"] not in known:
            raise MigrationFailed(
                f"The database has migration {row['version']} ({row['name']}), and this version of "
                f"pgqueuetopia knows {newest} at most. Install the version that migrated the database."
            )
        if row["checksum"] != known[row["version"]].checksum:
            raise MigrationFailed(
                f"Migration {row['version']} ({row['name']}) was applied with another text than "
                "this version has. Put the file back as it was released; nothing was changed."
            )


@asynccontextmanager
async def _connected(dsn: str | None) -> AsyncIterator[Connection]:
    with translated():
        connection = await asyncpg.connect(
            resolved_dsn(dsn),
            timeout=CONNECT_TIMEOUT,
            server_settings={"application_name": "pgqueuetopia migrate"},
        )
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def _locked(dsn: str | None) -> AsyncIterator[Connection]:
    """A connection that migrates alone: a second one waits here."""
    async with _connected(dsn) as connection:
        await connection.execute("set lock_timeout = 0; set statement_timeout = 0")
        await connection.execute(LOCK)
        yield connection
