"""What happens to jobs, as those are told who listen (JobQueue's events)."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple


class EventKind(StrEnum):
    """What has happened.

    To a job: inserted; started; completed; failed (an attempt), followed by retry_scheduled or discarded;
    retry_scheduled also after a snooze or an interruption; discarded (it has ended otherwise than by
    success); launched and process_completed (what it launched has begun, has ended); crashed (the node
    that ran it is gone). To a scope or a queue: suspended, resumed.
    """

    INSERTED = "inserted"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY_SCHEDULED = "retry_scheduled"
    DISCARDED = "discarded"
    LAUNCHED = "launched"
    PROCESS_COMPLETED = "process_completed"
    CRASHED = "crashed"
    SUSPENDED = "suspended"
    RESUMED = "resumed"


KINDS = {kind.value: kind for kind in EventKind}


# Not a dataclass: there are many of them, and it takes a quarter of the time to make one.
class Event(NamedTuple):
    """One event; what it tells of can be read in the database by then. Of a job: in the order of commits.

    `job` is its id, `queue` its topic or queue, `attempt` the number of its runs (0 before the first). A
    suspension of a whole scope has neither. `detail`: of failed the error; of discarded the outcome; of
    retry_scheduled when (None: when an operator acts); of crashed the node. `at`: when it was told, by
    the database's clock.
    """

    kind: EventKind
    scope: str
    job: int | None
    queue: str | None
    attempt: int
    at: datetime
    detail: str | datetime | None = None


def events_of(payload: str) -> list[Event]:
    """The events of one notification."""
    scope, seconds, *told = json.loads(payload)
    at = datetime.fromtimestamp(seconds, UTC)
    return [
        Event(KINDS[kind], scope, job, queue, attempt, at, detail and _detail(kind, detail))
        for kind, job, queue, attempt, detail in told
    ]


def _detail(kind: str, detail: str) -> str | datetime:
    return datetime.fromtimestamp(float(detail), UTC) if kind == EventKind.RETRY_SCHEDULED else detail
