"""Every statement on a user's table: the one place where SQL is put together. All names are quoted."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgqueuetopia.db.configs import TRUE
from pgqueuetopia.table.names import literal, quoted
from pgqueuetopia.table.queue import TableQueue

# The database's clock in microseconds. The statement's, for an index cannot be searched by a time that moves.
NOW = "(extract(epoch from statement_timestamp()) * 1000000)::bigint"
YES = ", ".join(literal(word) for word in sorted(TRUE))

# The types of the columns of a table; a table that is not there has none. -1, for without it a char(3) would
# be told as a char of one.
DESCRIBE = """
select a.attname as name, format_type(a.atttypid, -1) as type
from pg_attribute a
join pg_class c on c.oid = a.attrelid
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = $2::text and a.attnum > 0 and not a.attisdropped
"""

# A job of the Queuetopia's own, made by the statement that gives the row up: both or neither.
INSERT_MOVED = """
insert into pgqueuetopia.jobs (scope, queue, action, params)
select $3::text, $4::text, $5::text, $6::jsonb from given_up
returning id
"""


@dataclass(frozen=True, slots=True)
class TableSql:
    """The statements of one table queue; `types` are those of its key's columns."""

    queue: TableQueue
    types: Sequence[str]

    @property
    def claim(self) -> str:
        """Give rows that are due to a node, locked and leased in one statement, unless all is suspended.

        $1 how many at most, $2 the lease and $4 from where to look, in microseconds, $3 the node, $5 the
        scope and $6 the configs that suspend. Rows that somebody has locked are passed over this time.
        """
        lock, private = self._lock, self._private
        return f"""
with due as materialized (
  select {self._keys("t")}, t.{lock} as due, t.{private} as private
  from {self._table} t
  where t.{lock} between $4::bigint and {NOW} and {self._may_run("$5", "$6")}
  order by t.{lock}
  limit $1::bigint
  for update skip locked
)
update {self._table} t
set
  {lock} = {NOW} + $2::bigint,
  {private} = coalesce(due.private - 'again'::text, '{{}}'::jsonb) || jsonb_build_object(
    'attempts', coalesce((due.private ->> 'attempts')::bigint, 0) + 1,
    'claim', greatest(coalesce((due.private ->> 'claim')::bigint, 0) + 1, {NOW}),
    'node', $3::text,
    'at', {NOW}
  )
from due
where {self._same("t", "due")}
returning {self._keys("t")}, due.due as due, t.{private}::text as private
"""

    @property
    def settle(self) -> str:
        """Write what became of runs, of those that are still theirs; returns their numbers.

        After the arrays of the key's columns: number, claim, outcome (null: to be run again), from when on or
        after how long (microseconds), private. A row that is to run again, since it was updated, does.
        """
        lock, private = self._lock, self._private
        given = (("n", "bigint"), ("claim", "bigint"), ("outcome", "text"), ("due", "bigint"))
        return f"""
with {self._held(*given, ("wait", "bigint"), ("private", "text"))}
update {self._table} t
set
  {lock} = case
    when held.again then {NOW}
    when held.outcome = 'finished' then null
    when held.outcome = 'abandoned' then -{NOW}
    else coalesce(held.due, {NOW} + held.wait)
  end,
  {private} = case when held.again then null else held.private::jsonb end
from held
where {self._same("t", "held")}
returning held.n as n
"""

    @property
    def renew(self) -> str:
        """Renew the locks of rows that are still theirs, and write progress; returns their numbers.

        After the arrays of the key's columns: number, claim, the last moment (microseconds; null: none),
        progress (null: none); then the lease in microseconds.
        """
        columns = (("n", "bigint"), ("claim", "bigint"), ("until", "bigint"), ("progress", "text"))
        return f"""
with {self._held(*columns)}
update {self._table} t
set
  {self._lock} = least({NOW} + ${len(self.types) + len(columns) + 1}::bigint, held.until),
  {self._private} = case
    when held.progress is null then held.was
    else held.was || jsonb_build_object('progress', held.progress::jsonb)
  end
from held
where {self._same("t", "held")}
returning held.n as n
"""

    @property
    def still_held(self) -> str:
        """The numbers of those that still have their claim, whether or not somebody has locked the row now.

        After the arrays of the key's columns: number, claim.
        """
        return f"""
select e.n as n
from {self._table} t
join {self._given(("n", "bigint"), ("claim", "bigint"))} on {self._same("t", "e")}
where {self._fence("e.claim")}
"""

    @property
    def move(self) -> str:
        """Give a row up, and have the Queuetopia run a job of its own in its place.

        $1 the claim, $2 private; $3 to $6 the job; then the key's columns. No row: it is no longer ours.
        """
        return f"""
with given_up as (
  update {self._table} t
  set {self._lock} = -{NOW}, {self._private} = $2::jsonb
  where {self._is_key(first=7)} and {self._fence("$1::bigint")}
  returning 1
)
{INSERT_MOVED}"""

    @property
    def soonest(self) -> str:
        """In how many microseconds the next row is due, or stale; whether one is, and may run, now.

        Not "exists", for which the planner may read the table from its start, where all rows have ended.

        $1 the scope, $2 the configs that suspend.
        """
        return f"""
select
  (select min(t.{self._lock}) from {self._table} t where t.{self._lock} > {NOW}) - {NOW} as wait,
  coalesce((
    select true from {self._table} t
    where t.{self._lock} between 0 and {NOW} and {self._may_run("$1", "$2")}
    order by t.{self._lock} limit 1
  ), false) as held_up
"""

    @property
    def status(self) -> str:
        """How many rows there are in each state."""
        counts = ",\n  ".join(f"count(*) filter (where {self._is_in(state)}) as {state}" for state in STATES)
        return f"select\n  {counts}\nfrom {self._table} t\nwhere t.{self._lock} is not null"

    def in_state(self, state: str) -> str:
        """The rows in a state, the one due longest first; $1 how many at most."""
        return f"""
select {self._keys("t")}, abs(t.{self._lock}) as due, t.{self._private}::text as private
from {self._table} t
where {self._is_in(state)}
order by t.{self._lock}
limit $1::bigint
"""

    @property
    def cancel(self) -> str:
        """Have a row not run: it counts as finished. The parameters are the key's columns."""
        return f"""
update {self._table} t set {self._lock} = null, {self._private} = null
where {self._is_key(first=1)}
returning 1 as found
"""

    @property
    def retry(self) -> str:
        """Have a row run now, from its first attempt, unless it runs. The parameters: the key's columns."""
        return f"""
update {self._table} t set {self._lock} = {NOW}, {self._private} = null
where {self._is_key(first=1)} and ({self._is_in("in_progress")}) is not true
returning 1 as found
"""

    @property
    def _table(self) -> str:
        return self.queue.names.relation

    @property
    def _lock(self) -> str:
        return self.queue.names.lock

    @property
    def _private(self) -> str:
        return self.queue.names.private

    @property
    def _columns(self) -> list[tuple[str, str]]:
        """The key's columns, and what each is called in our statements, whatever others it has."""
        return [(quoted(column), f"key_{n}") for n, column in enumerate(self.queue.columns, 1)]

    def _keys(self, table: str) -> str:
        return ", ".join(f"{table}.{column} as {name}" for column, name in self._columns)

    def _same(self, table: str, other: str) -> str:
        return " and ".join(f"{table}.{column} = {other}.{name}" for column, name in self._columns)

    def _is_key(self, *, first: int) -> str:
        return " and ".join(f"t.{column} = ${n}" for n, (column, _) in enumerate(self._columns, first))

    def _fence(self, claim: str) -> str:
        """Whether a row is still that of a claim: not taken by others, cancelled or set to be run anew.

        Not `lock >= 0`: where statistics say that hardly a row waits, the planner would find the row among
        all that do, by their index, and not by its key.
        """
        return f"t.{self._private} ->> 'claim' = ({claim})::text and coalesce(t.{self._lock}, -1) >= 0"

    def _may_run(self, scope: str, suspensions: str) -> str:
        """Whether nothing is suspended, and the user lets the row run."""
        # On lines of its own, for it may end with a comment.
        run_if = "" if self.queue.run_if is None else f" and (\n{self.queue.run_if}\n)"
        return f"""not exists (
    select 1 from pgqueuetopia.job_configs c
    where c.scope in ('*', {scope}::text) and c.key = any({suspensions}::text[])
      and lower(trim(c.value)) in ({YES})
  ){run_if}"""

    def _given(self, *columns: tuple[str, str]) -> str:
        """Arrays as a table `e`: those of the key's columns, and then these."""
        every = [*zip((name for _, name in self._columns), self.types, strict=True), *columns]
        arrays = ", ".join(f"${n}::{type_}[]" for n, (_, type_) in enumerate(every, 1))
        return f"unnest({arrays}) as e ({', '.join(name for name, _ in every)})"

    def _held(self, *columns: tuple[str, str]) -> str:
        """The rows that still are those of their claims, locked; not those that somebody else has locked."""
        rest = ", ".join(f"e.{name}" for name, _ in columns)
        return f"""held as materialized (
  select {self._keys("t")}, {rest}, t.{self._private} as was, t.{self._private} ? 'again' as again
  from {self._table} t
  join {self._given(*columns)} on {self._same("t", "e")}
  where {self._fence("e.claim")}
  for update of t skip locked
)"""

    def _is_in(self, state: str) -> str:
        runs = f"coalesce(t.{self._private} ? 'claim', false)"
        lock = f"t.{self._lock}"
        return {
            "ready": f"{lock} between 0 and {NOW} and not {runs}",
            "delayed": f"{lock} > {NOW} and not {runs}",
            "in_progress": f"{lock} > {NOW} and {runs}",
            "stale": f"{lock} between 0 and {NOW} and {runs}",
            "abandoned": f"{lock} < 0",
        }[state]


STATES = ("ready", "delayed", "in_progress", "stale", "abandoned")
