"""What is said to CockroachDB: nothing that it lacks, in every statement."""

import inspect
import re
from pathlib import Path

import pytest

from pgqueuetopia import Misconfigured, Move, Queuetopia, Repo, Retry, TableQueue
from pgqueuetopia.db import table, table_rows, table_sql
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.db.table_sql import DESCRIBE, STATES, TableSql
from pgqueuetopia.node import table as node_table
from pgqueuetopia.node import table_leases, table_node, tables
from tests.table.cockroach import FUNCTIONS, LACKING, RELEASE, Lacks, check

QUEUES = [
    TableQueue("classify", table="photos", database="cockroachdb"),
    TableQueue(
        'with "quotes"',
        table="photos of all",
        schema="gallery",
        key=("id", "tenant"),
        run_if="name is not null",
        database="cockroachdb",
    ),
]
POSTGRESQL = TableQueue("q", table="t", rerun_when=["n"])
# Only where there are jobs of the Queuetopia's own.
NOT_SAID = {"move"}
STATEMENTS = sorted(
    name
    for name, member in vars(TableSql).items()
    if isinstance(member, property) and not name.startswith("_") and name not in NOT_SAID
)


def sql(queue: TableQueue) -> TableSql:
    return TableSql(queue, ["bigint", "text"][: len(queue.columns)])


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: str(queue.queue))
@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_has_what_cockroachdb_lacks(queue: TableQueue, name: str) -> None:
    check(getattr(sql(queue), name))


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: str(queue.queue))
@pytest.mark.parametrize("state", STATES)
def test_no_list_has_what_cockroachdb_lacks(queue: TableQueue, state: str) -> None:
    check(sql(queue).in_state(state))


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: str(queue.queue))
def test_no_statement_of_the_migration_has_what_cockroachdb_lacks(queue: TableQueue) -> None:
    for statement in [
        *queue.up_statements(),
        *queue.up_statements(enqueue_existing=True),
        *queue.down_statements(),
        DESCRIBE,
        # Suspending is a row of job_configs.
        *(SQL[name] for name in ("set_config", "delete_config", "list_configs")),
    ]:
        check(statement)


@pytest.mark.parametrize("statement", POSTGRESQL.up_statements()[3:])
def test_the_reader_refuses_postgresqls_own_migration(statement: str) -> None:
    with pytest.raises(Lacks):
        check(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "listen pgqueuetopia_tables",
        "notify pgqueuetopia_tables",
        "select pg_notify('a', 'b')",
        "select pg_try_advisory_lock(1)",
        "select pg_catalog.pg_notify('a', 'b')",
        "select pgqueuetopia.may_start('a')",
        "select pg_current_xact_id()",
        "select 1 / 2",
        "select now()::regclass",
        "select count(*) from t where a @> b",
        "select (with gone as (delete from t returning 1) select 1 from gone)",
        "with a as (update t set n = 1 returning 1) update t set n = 2",
        "create index concurrently i on t (n)",
        "do $$ begin end $$",
        "create function f() returns trigger language plpgsql as 'begin end'",
    ],
)
def test_the_reader_refuses_what_cockroachdb_lacks(statement: str) -> None:
    with pytest.raises(Lacks):
        check(statement)


@pytest.mark.parametrize(
    "module", [table, table_rows, table_sql, node_table, table_leases, tables, table_node]
)
def test_no_portal_is_left_open(module: object) -> None:
    """asyncpg's fetchrow, fetchval and cursor leave one, and CockroachDB has room for one."""
    source = inspect.getsource(module)  # type: ignore[arg-type]  # a module
    assert not re.search(r"\.(fetchrow|fetchval|cursor)\(", source)
    assert ".transaction(" not in source, "every statement is one by itself"


def test_nothing_is_promised_that_it_cannot_do() -> None:
    with pytest.raises(Misconfigured, match="rerun_when needs a trigger"):
        TableQueue("q", table="t", rerun_when=["name"], database="cockroachdb")
    with pytest.raises(Misconfigured, match="holds no jobs but the rows"):
        TableQueue("q", table="t", failure_mode=Retry(1, finally_=Move("dead")), database="cockroachdb")


def test_the_table_queues_of_a_queuetopia_are_on_one_database() -> None:
    with pytest.raises(Misconfigured, match="one database"):
        Queuetopia(repo=Repo(), table_queues=[QUEUES[0], TableQueue("other", table="t")])


def test_the_documentation_lists_what_the_reader_knows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "table-queues.md").read_text(encoding="utf-8")
    assert f"CockroachDB {RELEASE}" in page
    for word in {*LACKING, *FUNCTIONS}:
        assert f"`{word}`" in page, word
