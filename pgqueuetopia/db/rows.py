"""Between Python's values and the database's rows."""

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
from pydantic_core import from_json

from pgqueuetopia.job import Job, JobRow
from pgqueuetopia.outcome import Failure

# PostgreSQL's infinity, as asyncpg gives it: a job that waits for an operator.
NEVER = datetime.max.replace(tzinfo=UTC)
LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 8_000

Row: TypeAlias = asyncpg.Record

# The columns of pgqueuetopia.claimed_job, in their order, with what null stands for there.
CLAIMED: dict[str, Any] = {
    "id": None,
    "queue": None,
    "action": None,
    "params": None,
    "priority": 0,
    "timeout": timedelta(seconds=60),
    "max_backoff": timedelta(days=1),
    "max_attempts": 20,
    "scheduled_at": None,
    "next_attempt_at": None,
    "attempts": 1,
    "claim": None,
    "attempted_at": None,
    "errors": (),
    # As scheduled_at, and as inserted_at.
    "inserted_at": None,
    "updated_at": None,
    "failure_mode": None,
    "reply": False,
    "moved_from": None,
}
# And what is known of a job that was just claimed.
RUNS: dict[str, Any] = {
    "last_progress": None,
    "result": None,
    "done_at": None,
    "outcome": None,
    "state": "executing",
    "topic": False,
    "launched_at": None,
    "key": None,
}
# Job's own constructor takes 5 µs, for it is frozen: a sixth of what a claim costs a node.
_put = {one.name: getattr(Job, one.name).__set__ for one in fields(Job)}
_put_scope, _put_node, _put_params = _put["scope"], _put["attempted_by"], _put["params"]
_put_inserted, _put_updated = _put["inserted_at"], _put["updated_at"]
_CLAIMED = [(_put[name], usual) for name, usual in CLAIMED.items()]
_RUNS = [(_put[name], value) for name, value in RUNS.items()]


def topic_job_of(row: Row, scope: str, node: str) -> Job:
    """A topic's job from a claimed_job."""
    job = claimed_job_of(row, scope, node)
    _put["topic"](job, True)
    return job


def claimed_job_of(row: Row, scope: str, node: str) -> Job:
    """A job that a node has claimed, from a claimed_job."""
    job = object.__new__(Job)
    for (put, usual), value in zip(_CLAIMED, row, strict=True):
        put(job, usual if value is None else value)
    for put, value in _RUNS:
        put(job, value)
    _put_scope(job, scope)
    _put_node(job, node)
    if job.params is not None:
        _put_params(job, loaded(job.params))
    _put_inserted(job, row["inserted_at"] or job.scheduled_at)
    _put_updated(job, row["updated_at"] or job.inserted_at)
    if job.errors or job.next_attempt_at is not None or job.failure_mode is not None:
        _put_what_is_rare(job)
    return job


def _put_what_is_rare(job: Job) -> None:
    if job.errors:
        _put["errors"](job, tuple(loaded(job.errors)))
    if job.next_attempt_at == NEVER:
        _put["next_attempt_at"](job, None)
    if job.failure_mode is not None:
        _put["failure_mode"](job, loaded(job.failure_mode))


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
