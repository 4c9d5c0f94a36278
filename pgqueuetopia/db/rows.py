"""Between Python's values and the database's rows."""

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
from pydantic_core import from_json

from pgqueuetopia.job import Job, JobRow
from pgqueuetopia.outcome import Failure

# In digits: Python refuses to read longer ones.
LONGEST_INTEGER = 4_000
LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 8_000

# Of a job that was claimed what is not as usual.
Row: TypeAlias = dict[str, Any]

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
# The same, with what is known of a job that was just claimed.
USUAL: dict[str, Any] = CLAIMED | {
    "last_progress": None,
    "result": None,
    "done_at": None,
    "outcome": None,
    "state": "executing",
    "topic": False,
    "launched_at": None,
    "key": None,
}


def rows_in(columns: asyncpg.Record | None) -> list[Row]:
    """The rows in a job_columns, in their order."""
    if columns is None:
        return []
    if columns["ids"] is None:
        return [row_of(record) for record in columns["unusual"]]
    rows: list[Row] = [
        {
            "id": number,
            "queue": queue,
            "action": action,
            "params": params,
            "scheduled_at": scheduled_at,
            "claim": claim,
            "attempted_at": attempted_at,
        }
        for number, queue, action, params, scheduled_at, claim, attempted_at in zip(
            *columns[:-1], strict=True
        )
    ]
    if columns["unusual"]:
        by_id = {row["id"]: row for row in rows}
        for record in columns["unusual"]:
            by_id[record["id"]].update(row_of(record))
    return rows


def row_of(record: asyncpg.Record) -> Row:
    """The row in a claimed_job."""
    return {name: value for name, value in record.items() if value is not None}


def topic_job_of(row: Row, scope: str, node: str) -> Job:
    """A topic's job from what is not as usual."""
    job = claimed_job_of(row, scope, node)
    job.__dict__["topic"] = True
    return job


def claimed_job_of(row: Row, scope: str, node: str) -> Job:
    """A job that a node has claimed, from what is not as usual."""
    # Job's own constructor takes 5 µs, for it is frozen: a quarter of what a job costs a node.
    job = object.__new__(Job)
    values = job.__dict__
    values.update(USUAL)
    values.update(row)
    values["scope"] = scope
    values["attempted_by"] = node
    if values["params"] is not None:
        try:
            values["params"] = loaded(values["params"])
        except (ValueError, RecursionError):
            # Asked for again as it is performed: its run fails then, and not the node.
            values["params"] = None
    if values["inserted_at"] is None:
        values["inserted_at"] = values["scheduled_at"]
    if values["updated_at"] is None:
        values["updated_at"] = values["inserted_at"]
    if values["errors"] or values["next_attempt_at"] is not None or values["failure_mode"] is not None:
        _put_what_is_rare(values)
    return job


def _put_what_is_rare(values: dict[str, Any]) -> None:
    if values["errors"]:
        values["errors"] = _errors(values["errors"])
    values["next_attempt_at"] = _finite(values["next_attempt_at"])
    if values["failure_mode"] is not None:
        values["failure_mode"] = _readable(values["failure_mode"])


def _errors(text: Any) -> tuple[dict[str, Any], ...]:
    """A job's errors; among those that somebody has written by SQL may be anything."""
    found = _readable(text)
    entries = found if isinstance(found, list) else [found]
    return tuple(one if isinstance(one, dict) else {"error": str(one)} for one in entries)


def _readable(text: Any) -> Any:
    """A json value; what is nested too deep to be read, as text."""
    try:
        return loaded(text)
    except RecursionError:
        return {"unreadable": text[:LONGEST_MESSAGE]}


def _finite(time: datetime | None) -> datetime | None:
    """None for what is infinite, which asyncpg gives without a time zone: a job waits for an operator."""
    return None if time is None or time.tzinfo is None else time


def job_of(row: asyncpg.Record) -> Job:
    """A job from a row of job_states."""
    values = dict(row.items())
    values["last_progress"] = values.pop("progress")
    values.pop("prefetched_to", None)
    for name in ("params", "last_progress", "result", "failure_mode"):
        if values.get(name) is not None:
            values[name] = _readable(values[name])
    values["errors"] = () if values["errors"] == "[]" else _errors(values["errors"])
    values["next_attempt_at"] = _finite(values["next_attempt_at"])
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
        # It is six times as fast, but does not take more than 200 levels, nor the longest numbers.
        return json.loads(text, parse_int=_integer)


def _integer(text: str) -> int | str:
    """As text where Python would refuse it, as create_job asks for."""
    return int(text) if len(text) <= LONGEST_INTEGER else text


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
