"""The SQL that makes a queue of a table, and undoes it."""

from collections.abc import Iterable, Sequence

from pgqueuetopia.table.dialect import Dialect
from pgqueuetopia.table.names import Names, literal, quoted

CHANNEL = "pgqueuetopia_tables"

# The microseconds since 1970, as a bigint. A row's own moment, so that rows of one statement keep order;
# and one moment for all the rows that are there already, which makes it a default that needs no rewrite.
OWN_MOMENT = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
ONE_MOMENT = "(extract(epoch from now()) * 1000000)::bigint"

# The one table of ours that a table queue reads; where Queuetopia's own migrations cannot run, this makes it.
CONFIGS = (
    "create schema if not exists pgqueuetopia",
    """create table if not exists pgqueuetopia.job_configs (
  scope text not null default '*',
  key text not null,
  value text not null,
  inserted_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (scope, key)
)""",
)


def up(
    names: Names,
    dialect: Dialect,
    *,
    rerun_when: Sequence[str] = (),
    enqueue_existing: bool = False,
    concurrently: bool = True,
) -> list[str]:
    """The statements that add the queue, each to be run by itself and harmless if run again."""
    statements = [
        f"alter table {names.relation} add column if not exists {names.lock} bigint"
        + (f" default {ONE_MOMENT}" if enqueue_existing else ""),
        f"alter table {names.relation} add column if not exists {names.private} jsonb",
        f"alter table {names.relation} alter column {names.lock} set default {OWN_MOMENT}",
        f"create index {dialect.concurrently if concurrently else ''}if not exists {names.index}"
        f" on {names.relation} ({names.lock}) where {names.lock} is not null",
    ]
    if dialect.notifies:
        # Without statistics on a new column the planner thinks that hardly a row has ended.
        statements.append(f"analyze {names.relation} ({names.lock})")
        statements += [_ring(names), _ring_when(names, "insert")]
    if rerun_when:
        statements += [*_rerun(names, rerun_when), _ring_when(names, _update_of(rerun_when))]
    else:
        statements += _no_rerun(names) if dialect.notifies else []
    return statements if dialect.has_jobs else [*CONFIGS, *statements]


def down(names: Names, dialect: Dialect) -> list[str]:
    """The statements that remove the queue; the rows stay. Its index goes with its column."""
    columns = [
        f"alter table {names.relation} drop column if exists {names.lock}",
        f"alter table {names.relation} drop column if exists {names.private}",
    ]
    if not dialect.notifies:
        return columns
    return [
        f"drop trigger if exists {names.trigger('insert')} on {names.relation}",
        *_no_rerun(names),
        f"drop function if exists {names.ring}()",
        *columns,
    ]


def script(statements: Iterable[str]) -> str:
    """Statements as text."""
    return "".join(f"{statement};\n\n" for statement in statements)


def sleeping(names: Names) -> str:
    """The key of the advisory lock that the nodes hold that are to be notified."""
    return f"pg_catalog.hashtextextended({literal(f'pgqueuetopia sleeping {names.identity}')}, 20)"


def _ring(names: Names) -> str:
    """As pgqueuetopia.ring: nobody sleeps, nobody is notified, for notifying makes commits wait in line."""
    return f"""create or replace function {names.ring}() returns trigger
language plpgsql
as $$
begin
  if pg_catalog.pg_try_advisory_lock({sleeping(names)}) then
    perform pg_catalog.pg_advisory_unlock({sleeping(names)});
  else
    perform pg_catalog.pg_notify({literal(CHANNEL)}, {literal(names.identity)});
  end if;
  return null;
end
$$"""


def _ring_when(names: Names, event: str) -> str:
    name = names.trigger(event.split()[0])
    return f"""create or replace trigger {name}
after {event} on {names.relation}
for each statement execute function {names.ring}()"""


def _rerun(names: Names, columns: Sequence[str]) -> list[str]:
    """A row that runs is run again when it has ended; any other at once, its attempts counted anew."""
    old, new = (", ".join(f"{row}.{quoted(column)}" for column in columns) for row in ("old", "new"))
    function = f"""create or replace function {names.rerun}() returns trigger
language plpgsql
as $$
begin
  if new.{names.lock} > {OWN_MOMENT} and new.{names.private} ? 'claim' then
    new.{names.private} := new.{names.private} || '{{"again": true}}'::jsonb;
  else
    new.{names.lock} := {OWN_MOMENT};
    new.{names.private} := null;
  end if;
  return new;
end
$$"""
    trigger = f"""create or replace trigger {names.trigger("rerun")}
before {_update_of(columns)} on {names.relation}
for each row when (({old}) is distinct from ({new}))
execute function {names.rerun}()"""
    return [function, trigger]


def _no_rerun(names: Names) -> list[str]:
    return [
        f"drop trigger if exists {names.trigger('rerun')} on {names.relation}",
        f"drop trigger if exists {names.trigger('update')} on {names.relation}",
        f"drop function if exists {names.rerun}()",
    ]


def _update_of(columns: Sequence[str]) -> str:
    return f"update of {', '.join(quoted(column) for column in columns)}"
