"""TableQueue: a table of the user's whose rows are jobs (Honeydew's Ecto Poll Queue)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Seconds, as_timedelta, count_faults, is_duration, name_faults
from pgqueuetopia.modes import ExponentialRetry, FailureMode, Move, Retry, failure_mode_faults
from pgqueuetopia.table import schema as ddl
from pgqueuetopia.table.dialect import DIALECTS, Dialect
from pgqueuetopia.table.names import Names

# What is left of the 63 bytes of a column's name.
LONGEST_QUEUE = 40
LONGEST_IDENTIFIER = 63

# Given a row's key and the queue's name: the action and the params of its job.
Task = Callable[[Any, str], tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class TableQueue:
    """A table of which every row that is inserted is a job, from the commit that inserts it.

    `queue` names it, in two columns of the table as well; `key` is the table's primary key, one column or
    several, or another unique one. The columns, an index and a trigger come from `up_sql()`, or from
    `python -m pgqueuetopia.migrate table`.

    task: makes the action and the params of a row's job from its key and the queue's name; else the action
        is "run" and the params are {"key": key}. The key itself is `job.key`: a value, or a dict of a key's
        columns.
    run_if: SQL; only rows for which it is true are run. It goes into the statement as it is: never let it
        come from a stranger.
    rerun_when: columns; a row runs again when an UPDATE has changed one of them. Else an UPDATE never
        runs a row.
    poll_interval: how often a node looks that hears nothing (10 s); it hears of inserts where it can listen.
    stale_timeout: how long after the last sign of life of its node a row is run by another (300 s).
    max_job_time: how long a run may last (3600 s); five seconds later at the latest its row is another's.
    max_attempts: how many runs a row has, without a failure mode (20).
    failure_mode: what follows a failure; else that of the Queuetopia.
    concurrency: how many rows a node runs at once; None: as many as the Queuetopia's own.
    database: "postgresql" or "cockroachdb".

    Times are seconds or timedelta. Raises Misconfigured with all that is wrong. From Honeydew's Ecto Poll
    Queue: the name, run_if, poll_interval, stale_timeout, database.
    """

    queue: str
    table: str
    key: str | Sequence[str] = "id"
    schema: str = "public"
    task: Task | None = None
    run_if: str | None = None
    rerun_when: Sequence[str] = ()
    poll_interval: Seconds = 10
    stale_timeout: Seconds = 300
    max_job_time: Seconds = 3600
    max_attempts: int = 20
    failure_mode: FailureMode | None = None
    concurrency: int | None = None
    database: str = "postgresql"

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise Misconfigured(f"TableQueue {self.queue!r}: {'; '.join(faults)}")

    @property
    def names(self) -> Names:
        """What it is called in the database."""
        return Names(self.schema, self.table, self.queue)

    @property
    def dialect(self) -> Dialect:
        """How its database speaks."""
        return DIALECTS[self.database]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the key."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    def up_sql(self, *, enqueue_existing: bool = False, concurrently: bool = True) -> str:
        """The SQL that makes a queue of the table; harmless if run again.

        Rows that are there already are no jobs, unless `enqueue_existing`: this counts when the column is
        added, and never again. No statement rewrites the table. `concurrently` makes the index while others
        write, and cannot be in a transaction; without it everything can be, and writers wait for the index.
        """
        return ddl.script(self.up_statements(enqueue_existing=enqueue_existing, concurrently=concurrently))

    def down_sql(self) -> str:
        """The SQL that makes the table what it was: the rows stay, what was still to be run is forgotten."""
        return ddl.script(self.down_statements())

    def up_statements(self, *, enqueue_existing: bool = False, concurrently: bool = True) -> list[str]:
        """What up_sql says, one by one."""
        return ddl.up(
            self.names,
            self.dialect,
            rerun_when=self.rerun_when,
            enqueue_existing=enqueue_existing,
            concurrently=concurrently,
        )

    def down_statements(self) -> list[str]:
        """What down_sql says, one by one."""
        return ddl.down(self.names, self.dialect)

    def values(self, key: Any) -> tuple[Any, ...]:
        """The columns' values of a key as users give it: a value, or of several columns a dict or a tuple.

        Raises Misconfigured for a key of another shape.
        """
        if len(self.columns) == 1 and not isinstance(key, dict):
            return (key,)
        if isinstance(key, dict) and key.keys() == set(self.columns):
            return tuple(key[column] for column in self.columns)
        if isinstance(key, tuple) and len(key) == len(self.columns):
            return key
        raise Misconfigured(f"A key of {self.table!r} has {', '.join(self.columns)}; this is none: {key!r}")

    def key_of(self, values: Sequence[Any]) -> Any:
        """A key as users get it: a value, or a dict of a key's columns."""
        return values[0] if len(self.columns) == 1 else dict(zip(self.columns, values, strict=True))

    def moves_to(self) -> Iterator[str]:
        """The queues that its failure mode moves jobs to, as far as it tells."""
        yield from moves_of(self.failure_mode)

    def _faults(self) -> Iterator[str]:
        yield from _identifier_faults("its name", self.queue, LONGEST_QUEUE)
        yield from _identifier_faults("table", self.table)
        yield from _identifier_faults("schema", self.schema)
        yield from self._column_faults()
        yield from count_faults("max_attempts", self.max_attempts)
        if self.concurrency is not None:
            yield from count_faults("concurrency", self.concurrency)
        for name in ("poll_interval", "stale_timeout", "max_job_time"):
            yield from _duration_faults(name, getattr(self, name))
        if self.failure_mode is not None:
            yield from failure_mode_faults("failure_mode", self.failure_mode)
        if self.task is not None and not callable(self.task):
            yield f"task must be a function of the key and the queue's name, not {self.task!r}"
        run_if: object = self.run_if
        if run_if is not None and not (isinstance(run_if, str) and run_if.strip()):
            yield f"run_if must be SQL, not {run_if!r}"
        yield from self._database_faults()

    def _column_faults(self) -> Iterator[str]:
        key: object = [self.key] if isinstance(self.key, str) else self.key
        yield from _columns_faults("key", key)
        yield from _columns_faults("rerun_when", self.rerun_when)
        if not key:
            yield "key must name at least one column"

    def _database_faults(self) -> Iterator[str]:
        if self.database not in DIALECTS:
            yield f"database must be one of {', '.join(DIALECTS)}, not {self.database!r}"
        elif not self.dialect.notifies:
            if self.rerun_when:
                yield f"rerun_when needs a trigger, and is not there for {self.database}"
            if targets := list(self.moves_to()):
                yield f"no job can be moved to {targets[0]!r}: {self.database} holds no jobs but the rows"
        if self.queue in self.moves_to():
            yield "its failure_mode moves its jobs to itself"


def moves_of(mode: object) -> Iterator[str]:
    """The queues that a failure mode moves jobs to, as far as it tells: a function does not."""
    match mode:
        case Move(queue):
            yield queue
        case Retry() | ExponentialRetry():
            yield from moves_of(mode.finally_)
        case _:
            return


def _columns_faults(what: str, columns: object) -> Iterator[str]:
    if not isinstance(columns, list | tuple):
        yield f"{what} must be a list or a tuple of columns, not {columns!r}"
        return
    for column in columns:
        yield from _identifier_faults(f"a column of {what}", column)
    if len(set(map(str, columns))) < len(columns):
        yield f"{what} names a column twice"


def _identifier_faults(what: str, name: object, longest: int = LONGEST_IDENTIFIER) -> Iterator[str]:
    faults = list(name_faults(what, name))
    yield from faults
    if not faults and len(str(name).encode()) > longest:
        yield f"{what} has {len(str(name).encode())} bytes; at most {longest} are allowed"


def _duration_faults(what: str, value: Any) -> Iterator[str]:
    if not is_duration(value) or as_timedelta(value) < timedelta(seconds=0.01):
        yield f"{what} must be seconds or a timedelta, at least 0.01 seconds, not {value!r}"
