import subprocess
import sys
from typing import Any

import anyio
import asyncpg
import pytest

from pgqueuetopia import MigrationFailed, NotMigrated
from pgqueuetopia.db import migrations
from pgqueuetopia.migrate import main
from tests.conftest import execute
from tests.support import Recorder, an_app, eventually


async def fetch(dsn: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql, *arguments)
    finally:
        await connection.close()


async def test_up_applies_everything_once_and_down_leaves_nothing(fresh_dsn: str) -> None:
    everything = [m.version for m in migrations.all_migrations()]
    assert [m.version for m in await migrations.up(fresh_dsn)] == everything
    assert await migrations.up(fresh_dsn) == []
    assert [m.version for m in await migrations.down(fresh_dsn)] == everything[::-1]
    assert await fetch(fresh_dsn, "select from pg_namespace where nspname = 'pgqueuetopia'") == []
    assert [m.version for m in await migrations.up(fresh_dsn)] == everything


async def test_every_migration_can_be_undone_and_done_again(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn)
    for migration in reversed(migrations.all_migrations()):
        await migrations.down(fresh_dsn, to=migration.version - 1 or 1)
        await migrations.up(fresh_dsn)
    assert all(state.applied_at for state in await migrations.status(fresh_dsn))


async def test_two_that_migrate_at_once_both_succeed(fresh_dsn: str) -> None:
    applied: list[int] = []

    async def migrate() -> None:
        applied.append(len(await migrations.up(fresh_dsn)))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(migrate)
    assert sorted(applied) == [0, 0, len(migrations.all_migrations())]


async def test_a_changed_checksum_is_refused_and_nothing_changes(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn, to=1)
    await execute(fresh_dsn, "update pgqueuetopia.schema_migrations set checksum = 'other'")
    with pytest.raises(MigrationFailed, match="applied with another text"):
        await migrations.up(fresh_dsn)
    assert [row["version"] for row in await fetch(fresh_dsn, migrations.APPLIED)] == [1]


async def test_a_database_newer_than_the_code_is_refused(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn)
    await execute(fresh_dsn, "insert into pgqueuetopia.schema_migrations values (9999, 'future', 'x')")
    with pytest.raises(MigrationFailed, match="Install the version that migrated the database"):
        await migrations.up(fresh_dsn)


async def test_the_sql_can_be_applied_by_other_means(fresh_dsn: str) -> None:
    await execute(fresh_dsn, migrations.sql())
    assert await migrations.up(fresh_dsn) == []


def test_the_command_migrates_and_tells(fresh_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        return main([*words, "--dsn", fresh_dsn]), capsys.readouterr().out

    assert run("status")[0] == 1
    assert "applied 0001 initial" in run()[1]
    assert "nothing to do" in run("up")[1]
    assert run("status")[0] == 0
    assert "undone 0001 initial" in run("down")[1]
    assert "create table pgqueuetopia.jobs" in run("sql")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "least"), [("up --to 99", 1), ("up --to -1", 1), ("sql --to 0", 1), ("down --to -1", 0)]
)
def test_a_version_that_there_is_not_is_refused(
    fresh_dsn: str, capsys: pytest.CaptureFixture[str], words: str, least: int
) -> None:
    main(["up", "--dsn", fresh_dsn])
    newest = migrations.all_migrations()[-1].version
    assert main([*words.split(), "--dsn", fresh_dsn]) == 1
    assert f"--to must be between {least} and {newest}, the newest, not" in capsys.readouterr().err
    assert main(["status", "--dsn", fresh_dsn]) == 0


def test_it_is_run_as_a_module(fresh_dsn: str) -> None:
    command = [sys.executable, "-m", "pgqueuetopia.migrate", "--dsn", fresh_dsn]
    assert b"applied 0001 initial" in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def test_a_missing_privilege_is_a_clear_error(fresh_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(execute, fresh_dsn, "create role nobody_much login")
    try:
        dsn = fresh_dsn.replace("postgres@", "nobody_much@")
        assert main(["up", "--dsn", dsn]) == 1
        assert "permission denied" in capsys.readouterr().err
    finally:
        anyio.run(execute, fresh_dsn, "drop role nobody_much")


async def test_a_node_refuses_a_database_that_is_older_than_the_code(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn, to=5)
    async with an_app(fresh_dsn, Recorder()) as app:
        with pytest.raises(NotMigrated, match=r"python -m pgqueuetopia\.migrate"):
            async with app.running():
                pass


async def test_an_unmigrated_database_says_to_migrate(fresh_dsn: str) -> None:
    async with an_app(fresh_dsn, Recorder()) as app:
        with pytest.raises(NotMigrated, match=r"python -m pgqueuetopia\.migrate"):
            await app.create_job("q", "a")
        with pytest.raises(NotMigrated, match=r"python -m pgqueuetopia\.migrate"):
            async with app.running():
                pass


async def test_a_publication_of_all_tables_refuses_nothing(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """It would refuse to update a row of a table that says nothing of how to tell its rows apart."""
    performer = Recorder(lambda job: 1 / 0 if job.action == "fail" else None)
    await connection.execute("create publication everything for all tables")
    async with an_app(dsn, performer, job_retention=0) as app, app.running():
        await app.create_jobs([{"queue": f"q{n % 3}", "action": "a"} for n in range(30)])
        await app.create_job("failing", "fail")
        await eventually(lambda: len(performer.performed) == 31)
        assert await app.retry_all() == 1
        await eventually(lambda: len(performer.failed) == 2)
