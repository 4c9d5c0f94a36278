"""Between a user's rows and their jobs: what a claim says, and what is written about a run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.job import Job, as_timedelta
from pgqueuetopia.outcome import Settlement
from pgqueuetopia.table.queue import TableQueue

DEFAULT_ACTION = "run"
MOST_ERRORS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table queue as it was read: its key, since when it is due, and what it keeps.

    Times are microseconds of the database's clock. `claim` is None of a row that does not run.
    """

    key: tuple[Any, ...]
    due: int
    attempts: int = 0
    claim: int | None = None
    node: str | None = None
    at: int | None = None
    errors: tuple[dict[str, Any], ...] = ()
    progress: Any = None


@dataclass(frozen=True, slots=True)
class Written:
    """What is written about a run, and whose it was: see TableSql.settle."""

    key: tuple[Any, ...]
    claim: int
    outcome: str | None
    due: int | None
    wait: int | None
    private: str | None


def row_of(record: asyncpg.Record, columns: int) -> Row:
    """A row, from a record that begins with the columns of its key."""
    kept = rows.loaded(record["private"]) or {}
    return Row(
        key=tuple(record.values())[:columns],
        due=record["due"],
        attempts=kept.get("attempts", 0),
        claim=kept.get("claim"),
        node=kept.get("node"),
        at=kept.get("at"),
        errors=tuple(kept.get("errors", ())),
        progress=kept.get("progress"),
    )


def job_of(row: Row, queue: TableQueue, scope: str, state: str) -> Job:
    """A row's job, before the queue's `task` has made anything of it."""
    key = queue.key_of(row.key)
    due = moment(row.due)
    claimed_at = due if row.at is None else moment(row.at)
    return Job(
        id=number_of(row.key),
        scope=scope,
        queue=queue.queue,
        action=DEFAULT_ACTION,
        params={"key": as_json(key)},
        timeout=as_timedelta(queue.max_job_time),
        max_attempts=queue.max_attempts,
        scheduled_at=due,
        attempts=row.attempts,
        claim=row.claim or 0,
        attempted_at=None if row.at is None else claimed_at,
        attempted_by=row.node,
        errors=row.errors,
        last_progress=row.progress,
        inserted_at=due,
        updated_at=claimed_at,
        state=state,
        key=key,
    )


def with_task(job: Job, queue: TableQueue) -> Job:
    """The job with the action and the params that the queue's `task` makes. Raises what that raises."""
    if queue.task is None:
        return job
    action, params = queue.task(job.key, queue.queue)
    return replace(job, action=action, params=dict(params))


def written_of(row: Row, job: Job, settlement: Settlement, at: str) -> Written:
    """What is written about a run; `at` is the time of its end, for its errors."""
    attempts = row.attempts - (not settlement.attempt_spent)
    kept: dict[str, Any] = {"attempts": attempts}
    if entry := rows.error_entry(settlement.failure, row.attempts, row.node or ""):
        kept["errors"] = [*row.errors, json.loads(entry) | {"at": at}][-MOST_ERRORS:]
    elif row.errors:
        kept["errors"] = list(row.errors)
    if settlement.moved_to is not None:
        kept["moved_to"] = settlement.moved_to
    return _as_settled(row, settlement, json.dumps(kept))


def _as_settled(row: Row, settlement: Settlement, kept: str) -> Written:
    """One branch for each outcome."""
    claim = row.claim or 0
    match settlement:
        case Settlement(outcome="succeeded" | "cancelled"):
            return Written(row.key, claim, "finished", None, None, None)
        case Settlement(outcome=None, delay=timedelta() as delay, attempt_spent=spent):
            # Who was interrupted keeps its place in the line.
            due = row.due if not spent and not delay else None
            return Written(row.key, claim, None, due, delay // MICROSECOND, kept)
        case _:
            # Nothing waits for an operator here: a row that is blocked would not block any other.
            return Written(row.key, claim, "abandoned", None, None, kept)


def moment(microseconds: int) -> datetime:
    """A time of the database's clock, as far as Python has years for it."""
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def number_of(key: Sequence[Any]) -> int:
    """A number for a key: the key itself if it is one, else one that is made from its text."""
    if len(key) == 1 and isinstance(key[0], int):
        return key[0]
    digest = hashlib.sha256(repr([as_json(value) for value in key]).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def as_json(key: Any) -> Any:
    """A key as JSON has it: what is neither text nor a number becomes text."""
    if isinstance(key, dict):
        return {name: as_json(value) for name, value in key.items()}
    return key if isinstance(key, str | int | float | None) else str(key)
