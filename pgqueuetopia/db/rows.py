"""Between Python's values and the database's rows."""

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeAlias

import asyncpg
from pydantic_core import from_json

from pgqueuetopia.job import Job, JobRow
from pgqueuetopia.outcome import Failure

# PostgreSQL's infinity, as asyncpg gives it: a job that waits for an operator.
NEVER = datetime.max.replace(tzinfo=UTC)
LONGEST_MESSAGE = 2_000

Row: TypeAlias = asyncpg.Record
LONGEST_TRACEBACK = 8_000

# The columns of pgqueuetopia.claimed_job, in their order, and what is known of a job that was just claimed.
CLAIMED = (
    "id",
    "queue",
    "action",
    "params",
    "priority",
    "timeout",
    "max_backoff",
    "max_attempts",
    "scheduled_at",
    "next_attempt_at",
    "attempts",
    "claim",
    "attempted_at",
    "attempted_by",
    "errors",
    "inserted_at",
    "updated_at",
    "failure_mode",
    "reply",
    "moved_from",
    "last_progress",
    "result",
    "done_at",
    "outcome",
    "state",
    "topic",
    "launched_at",
    "key",
    "scope",
)
RUNS = (None, None, None, None, "executing", False, None, None)
# Job's own constructor takes 5 µs, for it is frozen: a sixth of what a claim costs a node.
_PUT = tuple(getattr(Job, name).__set__ for name in CLAIMED)
_PUT_PARAMS, _PUT_NEXT, _PUT_ERRORS, _PUT_MODE, _PUT_TOPIC = (
    _PUT[CLAIMED.index(n)] for n in ("params", "next_attempt_at", "errors", "failure_mode", "topic")
)


def topic_job_of(row: asyncpg.Record, scope: str) -> Job:
    """A topic's job from a claimed_job."""
    job = claimed_job_of(row, scope)
    _PUT_TOPIC(job, True)
    return job


def claimed_job_of(row: asyncpg.Record, scope: str) -> Job:
    """A job from a claimed_job."""
    job = object.__new__(Job)
    for put, value in zip(_PUT, (*row, *RUNS, scope), strict=True):
        put(job, value)
    if job.params is not None:
        _PUT_PARAMS(job, loaded(job.params))
    _PUT_ERRORS(job, () if row["errors"] == "[]" else tuple(loaded(row["errors"])))
    if job.next_attempt_at == NEVER:
        _PUT_NEXT(job, None)
    if job.failure_mode is not None:
        _PUT_MODE(job, loaded(job.failure_mode))
    return job


def job_of(row: asyncpg.Record) -> Job:
    """A job from a row of job_states."""
    values = dict(row.items())
    values["last_progress"] = values.pop("progress")
    values.pop("prefetched_to", None)
    for name in ("params", "last_progress", "result", "failure_mode"):
        if values.get(name) is not None:
            values[name] = loaded(values[name])
    values["errors"] = () if values["errors"] == "[]" else tuple(loaded(values["errors"]))
    if values["next_attempt_at"] == NEVER:
        values["next_attempt_at"] = None
    return Job(**values)


def created_job(scope: str, row: JobRow, stored: asyncpg.Record) -> Job:
    """A job that has just been stored."""
    return Job(
        scope=scope,
        queue=row.queue,
        action=row.action,
        params=loaded(row.params),
        priority=row.priority,
        timeout=row.timeout,
        max_backoff=row.max_backoff,
        max_attempts=row.max_attempts,
        failure_mode=loaded(row.failure_mode),
        reply=row.reply,
        topic=row.topic,
        state="scheduled" if stored["scheduled_at"] > stored["inserted_at"] else "ready",
        **dict(stored.items()),
    )


def columns_of(rows: Sequence[JobRow]) -> list[list[Any]]:
    """New jobs as one array for each column, in the order of JobRow and create_jobs.sql."""
    return [[getattr(row, one.name) for row in rows] for one in fields(JobRow)]


def loaded(text: Any) -> Any:
    """A json value; a caller's own connection may have decoded it already."""
    if not isinstance(text, str):
        return text
    try:
        return from_json(text)
    except ValueError:
        # It is six times as fast, but goes 200 levels deep and no further.
        return json.loads(text)


def error_entry(failure: Failure | None, attempt: int, node: str) -> str | None:
    """One entry of a job's errors; the database adds when."""
    if failure is None:
        return None
    return json.dumps(
        {
            "attempt": attempt,
            "node": node,
            "error": storable(failure.message[:LONGEST_MESSAGE]),
            "traceback": storable(failure.traceback[-LONGEST_TRACEBACK:]),
        }
    )


def storable(text: str) -> str:
    """Text without what PostgreSQL cannot store."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
