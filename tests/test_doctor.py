from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from pgqueuetopia import Repo
from pgqueuetopia.db import checkup, migrations
from pgqueuetopia.db.checkup import Holder, Locks, Server, Stranded, Table
from pgqueuetopia.db.migrations import State
from pgqueuetopia.doctor import judgment
from pgqueuetopia.doctor.examination import examine
from pgqueuetopia.doctor.finding import Finding, Level, worst
from tests.conftest import execute
from tests.support import Recorder, an_app, eventually

SERVER = Server(
    pooled=False,
    backend=1,
    started_at=datetime(2030, 1, 1, tzinfo=UTC),
    database="shop",
    role="node",
    version="16.2",
    version_number=160_002,
    standby=False,
    read_only=False,
    isolation="read committed",
    autovacuum=True,
    track_counts=True,
    clock_ahead=0.01,
    clock_error=0.001,
)
LOCKS = Locks(per_transaction=64, capacity=6_400, held=12, nodes=0)


def of(findings: list[Finding], check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


async def test_a_healthy_database_has_no_problem(dsn: str) -> None:
    findings = await examine(Repo(dsn))
    assert worst(findings) is Level.OK, findings
    assert len(findings) == 12


async def test_a_server_that_is_away_is_a_problem_and_nothing_else_is_asked() -> None:
    [finding] = await examine(Repo("postgresql://nobody@/none?host=/nowhere"))
    assert (finding.check, finding.level) == ("connection", Level.PROBLEM)


async def test_a_database_without_tables_says_what_to_run(fresh_dsn: str) -> None:
    findings = await examine(Repo(fresh_dsn))
    assert "pgqueuetopia migrate" in of(findings, "migrations").advice
    assert worst(findings) is Level.PROBLEM


@pytest.mark.slow
async def test_a_half_migrated_database_names_what_is_missing(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn, 2)
    found = of(await examine(Repo(fresh_dsn)), "migrations")
    assert found.level is Level.PROBLEM
    assert "0003 persist" in found.what
    assert "0001" not in found.what


@pytest.mark.slow
async def test_a_newer_database_is_a_problem(fresh_dsn: str) -> None:
    await migrations.up(fresh_dsn)
    await execute(
        fresh_dsn,
        "insert into pgqueuetopia.schema_migrations (version, name, checksum) values (9999, 'x', 'x')",
    )
    found = of(await examine(Repo(fresh_dsn)), "migrations")
    assert found.level is Level.PROBLEM
    assert "9999" in found.what


async def test_a_role_without_grants_is_told_what_it_lacks(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    role = f"bare_{await connection.fetchval('select pg_backend_pid()')}"
    await connection.execute(
        f"create role {role} login; grant usage on schema pgqueuetopia to {role};"
        f"grant select on pgqueuetopia.schema_migrations, pgqueuetopia.jobs to {role}"
    )
    try:
        findings = await examine(Repo(dsn.replace("//postgres@", f"//{role}@")))
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")
    found = of(findings, "privileges")
    assert found.level is Level.PROBLEM
    assert "DELETE on pgqueuetopia.jobs" in found.what
    assert "SELECT on pgqueuetopia.jobs," not in found.what
    assert "look_at" not in found.what
    assert of(findings, "run queue").level is Level.WARNING
    assert "pg_read_all_stats" in of(findings, "long transactions").advice


async def test_a_queue_that_nobody_would_look_at_is_found_and_the_advice_mends_it(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app:
        await app.create_jobs([{"queue": name, "action": "a"} for name in ("fine", "lost", "late")])
    await connection.execute(
        "delete from pgqueuetopia.run_queue where queue = 'lost';"
        "update pgqueuetopia.run_queue set ready_at = now() + interval '1 hour' where queue = 'late'"
    )
    found = of(await examine(Repo(dsn)), "run queue")
    assert found.level is Level.PROBLEM
    assert found.what.startswith("2 queues")
    assert "Test/late, Test/lost" in found.what
    await connection.execute(found.advice)
    assert of(await examine(Repo(dsn)), "run queue").level is Level.OK


async def test_a_suspended_queue_needs_no_place_in_the_run_queue(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app:
        await app.create_job("q", "a")
        await app.suspend("q")
        await connection.execute("delete from pgqueuetopia.run_queue")
        assert of(await examine(Repo(dsn)), "run queue").level is Level.OK
        await app.configs.delete("q_suspended")
    assert of(await examine(Repo(dsn)), "run queue").level is Level.OK


@pytest.mark.slow
async def test_no_queue_is_stranded_at_any_moment_while_nodes_work(dsn: str) -> None:
    performer = Recorder(lambda job: 1 / 0 if job.id % 7 == 0 and job.attempts == 1 else None)
    async with (
        an_app(dsn, performer) as one,
        an_app(dsn, performer) as two,
        checkup.connected(dsn) as questions,
    ):
        await one.create_jobs(
            [{"queue": f"q{n % 40}", "action": "a", "max_backoff": 0} for n in range(1_200)]
        )
        async with one.running(), two.running():
            looks = 0
            while (await one.status()).count:
                assert (await questions.stranded()).queues == 0
                looks += 1
        assert looks >= 1


async def test_a_table_without_autovacuum_is_a_problem(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute("alter table pgqueuetopia.run_queue set (autovacuum_enabled = off)")
    try:
        found = of(await examine(Repo(dsn)), "autovacuum")
    finally:
        await connection.execute("alter table pgqueuetopia.run_queue reset (autovacuum_enabled)")
    assert found.level is Level.PROBLEM
    assert "run_queue" in found.what


async def test_an_open_transaction_is_seen_with_its_age(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with checkup.connected(dsn) as questions, connection.transaction(isolation="repeatable_read"):
        pid = await connection.fetchval(
            "select pg_backend_pid() from pgqueuetopia.jobs right join now() on true"
        )
        holders, sees_all = await questions.holders()
    assert sees_all
    [ours] = [one for one in holders if f"pid {pid}" in one.holder]
    assert ours.seconds is not None
    assert 0 <= ours.seconds < judgment.LONG_TRANSACTION


async def test_running_nodes_are_counted(dsn: str) -> None:
    async with (
        an_app(dsn, Recorder()) as one,
        an_app(dsn, Recorder(), scope="Other") as two,
        one.running(),
        two.running(),
        checkup.connected(dsn) as questions,
    ):

        async def both() -> bool:
            return (await questions.locks()).nodes >= 2

        await eventually(both)


async def test_two_dsns_of_two_databases_are_a_problem(dsn: str, fresh_dsn: str) -> None:
    found = of(await examine(Repo(fresh_dsn, session_dsn=dsn)), "pooler")
    assert found.level is Level.PROBLEM


async def test_this_machines_clock_is_compared_to_the_databases(dsn: str) -> None:
    async with checkup.connected(dsn) as questions:
        server = await questions.server()
    assert abs(server.clock_ahead) < 1
    assert 0 < server.clock_error < 1


def test_a_pooler_before_nodes_is_a_problem_and_before_the_pool_is_none() -> None:
    pooled = replace(SERVER, pooled=True)
    assert judgment.judged_pooler(pooled, pooled).level is Level.PROBLEM
    assert judgment.judged_pooler(SERVER, pooled).level is Level.OK
    assert judgment.judged_pooler(SERVER, replace(SERVER, database="other")).level is Level.PROBLEM


def test_an_old_server_is_a_problem() -> None:
    old = replace(SERVER, version="13.9", version_number=130_009)
    assert judgment.judged_version(old).level is Level.PROBLEM
    assert judgment.judged_version(replace(old, version_number=140_000)).level is Level.OK


def test_a_server_that_takes_no_writes_is_a_problem() -> None:
    assert judgment.judged_writable(replace(SERVER, standby=True)).level is Level.PROBLEM
    assert judgment.judged_writable(replace(SERVER, read_only=True)).level is Level.PROBLEM
    assert judgment.judged_writable(SERVER).level is Level.OK


def test_another_isolation_is_a_warning() -> None:
    assert judgment.judged_isolation(replace(SERVER, isolation="serializable")).level is Level.WARNING


def test_clocks_that_differ_are_a_warning_and_a_slow_connection_is_not() -> None:
    assert judgment.judged_clock(replace(SERVER, clock_ahead=1.5)).level is Level.WARNING
    assert "behind the database" in judgment.judged_clock(replace(SERVER, clock_ahead=1.5)).what
    assert "ahead of the database" in judgment.judged_clock(replace(SERVER, clock_ahead=-1.5)).what
    assert judgment.judged_clock(replace(SERVER, clock_ahead=1.5, clock_error=0.6)).level is Level.OK


@pytest.mark.parametrize(
    ("nodes", "concurrency", "level"),
    [(None, 100, Level.OK), (30, 100, Level.OK), (31, 100, Level.WARNING), (61, 100, Level.PROBLEM)],
)
def test_nodes_may_fill_half_of_the_lock_table(nodes: int | None, concurrency: int, level: Level) -> None:
    assert judgment.judged_locks(LOCKS, nodes, concurrency).level is level


def test_the_advice_for_a_lock_table_makes_it_large_enough() -> None:
    advice = judgment.judged_locks(LOCKS, 61, 100).advice
    assert "max_locks_per_transaction to 129" in advice
    roomier = replace(LOCKS, per_transaction=129, capacity=12_900)
    assert judgment.judged_locks(roomier, 61, 100).level is Level.OK


def test_what_is_open_for_long_is_a_warning_that_names_it() -> None:
    found = judgment.judged_horizon([Holder("transaction of pid 7 (psql)", 61.0), Holder("x", 1.0)], True)
    assert found.level is Level.WARNING
    assert "transaction of pid 7 (psql) for 61 s" in found.what
    assert judgment.judged_horizon([Holder("replication slot a", None)], True).level is Level.WARNING
    assert judgment.judged_horizon([Holder("x", 59.0)], True).level is Level.OK


def test_dead_rows_count_where_they_are_many_and_most() -> None:
    bloated = Table("jobs", live=1_000, dead=30_000, vacuumed_at=None, autovacuum_off=False)
    assert judgment.judged_autovacuum(SERVER, [bloated]).level is Level.WARNING
    assert judgment.judged_autovacuum(SERVER, [replace(bloated, dead=900)]).level is Level.OK
    assert judgment.judged_autovacuum(SERVER, [replace(bloated, live=90_000)]).level is Level.OK
    assert judgment.judged_autovacuum(replace(SERVER, autovacuum=False), []).level is Level.PROBLEM


def test_migrations_that_are_all_applied_are_fine() -> None:
    applied = [State(1, "initial", datetime(2030, 1, 1, tzinfo=UTC))]
    assert judgment.judged_migrations(applied).level is Level.OK


def test_the_worst_finding_decides() -> None:
    stranded = judgment.judged_stranded(Stranded(1, (("s", "q"),)))
    assert worst([judgment.judged_version(SERVER), stranded]) is Level.PROBLEM
    assert worst([judgment.judged_version(SERVER)]) is Level.OK
