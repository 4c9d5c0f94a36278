"""Least privilege, with the grants of docs/operations.md and real roles."""

import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import asyncpg
import pytest

from pgqueuetopia import AccessDenied, Queuetopia
from tests.support import Recorder, an_app, eventually

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"
ROLES = ("creator", "reader", "node", "operator")


@dataclass(frozen=True)
class Roles:
    """The roles of the page under names of this test's own."""

    dsn: str
    prefix: str

    def name(self, role: str) -> str:
        return f"{self.prefix}_{role}"

    def dsn_of(self, role: str) -> str:
        return self.dsn.replace("//postgres@", f"//{self.name(role)}@")


def grants() -> str:
    [block] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


@pytest.fixture
async def roles(dsn: str, connection: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[Roles]:
    roles = Roles(dsn, f"t{uuid.uuid4().hex[:10]}")
    names = [roles.name(role) for role in ROLES]
    await connection.execute("".join(f"create role {name} login;" for name in names))
    await connection.execute(grants().replace("app_", f"{roles.prefix}_"))
    yield roles
    # Each has to go by itself: the operator is a member of the readers.
    for name in reversed(names):
        await connection.execute(f"drop owned by {name}; drop role {name}")


async def as_role(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def refused(dsn: str, statement: str) -> bool:
    try:
        await as_role(dsn, statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def test_a_creator_creates_jobs_alone_together_and_in_a_transaction(
    roles: Roles, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(roles.dsn_of("creator")) as app:
        job = await app.create_job("q", "a", {"n": 1}, timeout=5, max_attempts=2)
        assert [one.queue for one in await app.create_jobs([{"queue": "q", "action": "a"}] * 2)] == ["q"] * 2
    assert await connection.fetchval("select count(*) from pgqueuetopia.jobs") == 3
    assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue") == 2
    assert job.id
    await as_role(
        roles.dsn_of("creator"),
        "insert into pgqueuetopia.jobs (scope, queue, action) values ('Test', 'plain', 'a')",
    )


@pytest.mark.parametrize(
    "statement",
    [
        "select params from pgqueuetopia.jobs",
        "select * from pgqueuetopia.job_states",
        "insert into pgqueuetopia.jobs (scope, queue, action, claim) values ('s', 'q', 'a', 9)",
        "insert into pgqueuetopia.jobs (id, scope, queue, action) values (1, 's', 'q', 'a')",
        "update pgqueuetopia.jobs set scheduled_at = now()",
        "delete from pgqueuetopia.jobs",
        "truncate pgqueuetopia.jobs",
        "select * from pgqueuetopia.run_queue",
        "insert into pgqueuetopia.run_queue (scope, queue) values ('s', 'q')",
        "select * from pgqueuetopia.job_configs",
        "insert into pgqueuetopia.job_configs (scope, key, value) values ('s', 'suspended', 'true')",
        "select pgqueuetopia.look_at('s', 'q', now(), now())",
        "select pgqueuetopia.unpark('s', 'q')",
        "select pgqueuetopia.wait_for_starts('s')",
        "create table pgqueuetopia.mine (id integer)",
    ],
)
async def test_a_creator_may_do_nothing_else(roles: Roles, statement: str) -> None:
    assert await refused(roles.dsn_of("creator"), statement)


async def test_a_node_runs_jobs_retries_them_and_removes_old_ones(roles: Roles) -> None:
    performer = Recorder(lambda job: 1 / 0 if job.action == "fail" else None)
    async with (
        an_app(roles.dsn_of("creator")) as creator,
        an_app(roles.dsn_of("node"), performer, job_retention=0) as app,
        app.running(),
    ):
        done = await creator.create_job("q", "work")
        failed = await creator.create_job("failing", "fail")
        await eventually(lambda: performer.failed)
        assert done.id in performer.ids
        assert [job.id for job in await app.list_jobs()] == [failed.id]
        assert (await app.get_job(failed)).state == "retrying"
        assert await app.retry_all() == 1
        await eventually(lambda: len(performer.failed) == 2)
        assert (await app.status()).nodes
        assert await app.blocked_queues()


@pytest.mark.parametrize(
    "statement",
    [
        "insert into pgqueuetopia.job_configs (scope, key, value) values ('Test', 'suspended', 'true')",
        "update pgqueuetopia.job_configs set value = 'true'",
        "truncate pgqueuetopia.run_queue",
        "delete from pgqueuetopia.schema_migrations",
        "alter table pgqueuetopia.jobs disable trigger all",
        "drop schema pgqueuetopia cascade",
    ],
)
async def test_a_node_may_not_change_settings_or_tables(roles: Roles, statement: str) -> None:
    assert await refused(roles.dsn_of("node"), statement)


async def test_a_reader_sees_everything(roles: Roles) -> None:
    async with an_app(roles.dsn) as owner, an_app(roles.dsn_of("reader")) as app:
        job = await owner.create_job("q", "a", {"n": 1})
        assert (await app.get_job(job)).params == {"n": 1}
        assert (await app.list_jobs(queue="q")).total == 1
        assert (await app.status()).ready == 1
        assert await app.blocked_queues() == []
        assert await app.configs.get("suspended") == "false"


async def test_a_reader_sees_the_nodes_of_other_roles(roles: Roles) -> None:
    async with (
        an_app(roles.dsn_of("node"), Recorder()) as node,
        node.running(),
        an_app(roles.dsn_of("reader")) as app,
    ):
        assert len((await app.status()).nodes) == 1


async def test_a_reader_whose_role_reads_only_hears_events(
    roles: Roles, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute(f"alter role {roles.name('reader')} set default_transaction_read_only = on")
    async with an_app(roles.dsn) as owner, an_app(roles.dsn_of("reader")) as app, app.events() as events:
        job = await owner.create_job("q", "a")
        with anyio.fail_after(10):
            assert (await anext(aiter(events))).job == job.id


READERS_TRIES: list[Callable[[Queuetopia, int], Awaitable[object]]] = [
    lambda app, _: app.create_job("q", "a"),
    lambda app, job: app.cancel(job),
    lambda app, job: app.abandon(job),
    lambda app, _: app.retry_all(),
    lambda app, _: app.suspend(),
    lambda app, _: app.configs.delete("suspended"),
]


@pytest.mark.parametrize("attempt", READERS_TRIES)
async def test_a_reader_changes_nothing(
    roles: Roles, attempt: Callable[[Queuetopia, int], Awaitable[object]]
) -> None:
    async with an_app(roles.dsn) as owner, an_app(roles.dsn_of("reader")) as app:
        job = await owner.create_job("q", "a")
        with pytest.raises(AccessDenied, match=r"docs/operations\.md"):
            await attempt(app, job.id)


async def test_an_operator_cancels_retries_abandons_and_pauses(roles: Roles) -> None:
    async with an_app(roles.dsn) as owner, an_app(roles.dsn_of("operator")) as app:
        first, second = [await owner.create_job("q", "a") for _ in range(2)]
        assert await app.cancel(first) == "OK"
        assert await app.abandon(second) == "OK"
        await app.retry(first)
        await app.suspend("q")
        await app.suspend()
        assert (await app.status("q")).suspended
        await app.resume()
        await app.configs.delete("q_suspended")
        with pytest.raises(AccessDenied):
            await app.create_job("q", "a")
        with pytest.raises(AccessDenied):
            await app.move(first, "other")


HOSTILE = """
create schema {schema};
grant usage on schema {schema} to public;
create function {schema}.pg_notify(text, text) returns void language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create function {schema}.hashtextextended(text, bigint) returns bigint language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create function {schema}.is_hijacked(text, text) returns boolean language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create operator {schema}.= (leftarg = text, rightarg = text, function = {schema}.is_hijacked);
create operator {schema}.<> (leftarg = text, rightarg = text, function = {schema}.is_hijacked);
create operator {schema}.|| (leftarg = text, rightarg = text, function = {schema}.is_hijacked);
create function {schema}.is_hijacked(bigint, integer) returns boolean language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create operator {schema}.= (leftarg = bigint, rightarg = integer, function = {schema}.is_hijacked);
create function {schema}.pg_sequence_last_value(regclass) returns bigint language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create function {schema}.json_build_array(text, bigint, text, integer, text) returns json language plpgsql
  as $$ begin raise exception 'hijacked'; end $$;
create aggregate {schema}.max (integer) (sfunc = int4pl, stype = integer, initcond = '7');
create aggregate {schema}.min (timestamptz) (sfunc = pg_catalog.timestamptz_larger, stype = timestamptz);
create domain {schema}.text as pg_catalog.text check (false);
"""
TEMPORARY = """
create temp table inserted (scope text, queue text, priority integer, done_at timestamptz);
create temp table jobs (id bigint);
create temp table run_queue (scope text, queue text, priority integer, ready_at timestamptz);
create temp table job_configs (scope text);
"""


async def test_a_hostile_search_path_and_temporary_tables_do_not_matter_to_triggers(
    roles: Roles, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    schema = f"hostile_{roles.prefix}"
    await connection.execute(HOSTILE.format(schema=schema))
    try:
        await as_role(
            roles.dsn_of("creator"),
            TEMPORARY,
            f"set search_path = {schema}, pg_temp, pg_catalog",
            "insert into pgqueuetopia.jobs (scope, queue, action) values ('Test', 'q', 'a')",
            "insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at)"
            " values ('Test', 'r', 'a', now()), ('Test', 'r', 'a', now() + interval '1 day')",
        )
        looked_at = "select queue, priority, ready_at < now() from pgqueuetopia.run_queue order by queue"
        found = [tuple(row) for row in await connection.fetch(looked_at)]
        assert found == [("q", 0, True), ("r", 0, True)]
        await connection.execute("delete from pgqueuetopia.jobs where queue = 'r'")
        await connection.execute("delete from pgqueuetopia.run_queue where queue = 'r'")
        await as_role(
            roles.dsn_of("node"),
            TEMPORARY,
            f"set search_path = {schema}, pg_temp, pg_catalog",
            "update pgqueuetopia.jobs set scheduled_at = now() + interval '1 hour'",
            "update pgqueuetopia.jobs set next_attempt_at = now()",
            "delete from pgqueuetopia.jobs",
        )
        assert await connection.fetchval("select count(*) from pgqueuetopia.run_queue") == 3
        await as_role(
            roles.dsn_of("operator"),
            TEMPORARY,
            f"set search_path = {schema}, pg_temp, pg_catalog",
            "insert into pgqueuetopia.job_configs (scope, key, value) values ('Test', 'q_suspended', 'true')",
            "update pgqueuetopia.job_configs set value = 'false' where key like 'q_%'",
        )
    finally:
        await connection.execute(f"drop schema {schema} cascade")


# For each job that is created a search_path would cost more than to call an empty trigger.
SPELLED_OUT = "jobs_inserted"


async def test_every_function_that_runs_as_its_owner_pins_its_search_path(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    unpinned = await connection.fetch(
        """
        select p.proname
        from pg_proc p
        where p.pronamespace = 'pgqueuetopia'::regnamespace
          and (p.prosecdef or p.prorettype = 'trigger'::regtype)
          and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
        """
    )
    assert [name for (name,) in unpinned] == [SPELLED_OUT]


# What looks like a call, and is syntax.
SYNTAX = {"greatest", "exists", "array", "in", "operator", "run_queue"}
OPERATOR = re.compile(r"[-+*/<>=~!@#%^&|`?]+")


async def test_the_trigger_without_a_search_path_spells_everything_out(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """Or whoever may create jobs could have it run functions, operators, types of his own, as its owner."""
    source: str = await connection.fetchval(
        "select prosrc from pg_proc where proname = $1 and pronamespace = 'pgqueuetopia'::regnamespace",
        SPELLED_OUT,
    )
    source = re.sub(r"--.*", "", source)
    source = re.sub(r"'[^']*'", "''", source)
    calls = re.findall(r"((?:\w+\.)?\w+)\s*\(", source)
    assert {call for call in calls if "." not in call} <= SYNTAX
    assert {call.split(".")[0] for call in calls if "." in call} == {"pg_catalog", "pgqueuetopia"}
    casts = re.findall(r"::\s*([\w.]+)", source)
    declared = re.findall(r"^\s*v_\w+ ([\w.]+)", source.partition("begin")[0], re.MULTILINE)
    assert {name.split(".")[0] for name in [*casts, *declared]} == {"pg_catalog"}
    assert len(declared) == source.partition("begin")[0].count(";")
    spelled_out = re.sub(r"operator\(pg_catalog\.[^)]*\)|::|:=", "", source)
    assert OPERATOR.findall(spelled_out) == []


# They say who waits to be told, and no more than is so, whoever calls them.
FOR_ALL = ["begin_to_wait", "cease_to_wait", "note_whether_nobody_waits", "since_crash"]


async def test_nobody_else_may_call_a_function_that_runs_as_its_owner(
    roles: Roles, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    callable_by_all = await connection.fetch(
        """
        select p.proname::text
        from pg_proc p
        where p.pronamespace = 'pgqueuetopia'::regnamespace
          and p.prosecdef
          and has_function_privilege($1, p.oid, 'execute')
        order by 1
        """,
        roles.name("creator"),
    )
    assert [name for (name,) in callable_by_all] == FOR_ALL


ESCALATION = """
create type pg_temp.evil as (x integer);
create function pg_temp.evil_to_text(pg_temp.evil) returns text language plpgsql
  as $$ begin execute 'create role {role}_owned'; return 'q'; end $$;
create cast (pg_temp.evil as text) with function pg_temp.evil_to_text(pg_temp.evil) as assignment;
create temp table bait (
  scope text, queue pg_temp.evil, priority integer,
  scheduled_at timestamptz, next_attempt_at timestamptz, done_at timestamptz
);
create trigger bait after insert on pg_temp.bait referencing new table as inserted
for each statement execute function pgqueuetopia.jobs_inserted();
insert into pg_temp.bait (queue) values (row(1)::pg_temp.evil);
"""


async def test_a_trigger_function_cannot_be_put_on_a_table_of_ones_own_to_run_as_its_owner(
    roles: Roles,
) -> None:
    assert await refused(roles.dsn_of("reader"), ESCALATION.format(role=roles.prefix))
