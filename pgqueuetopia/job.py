"""A job as it is stored, a new one as it is given, and the rules for what may be given."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from html import escape
from typing import Any

from pydantic import BaseModel

from pgqueuetopia.errors import InvalidJob
from pgqueuetopia.progress import progress

LONGEST_NAME = 255
DEEPEST_PARAMS = 200
LONGEST_DELAY = timedelta(days=365_000)
LARGEST_INTEGER = 2**31 - 1
LARGEST_INTEGER_BITS = 10_000
LARGEST_ID = 2**63 - 1

STATES = (
    *("ready", "scheduled", "retrying", "blocked", "executing", "launched"),
    *("succeeded", "abandoned", "discarded", "cancelled", "moved"),
)

Seconds = float | timedelta


# Without slots: a node makes one from a dictionary in half the time (rows.claimed_job_of).
@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as the database has it.

    `attempts` counts the runs that were started, this one included; `claim` is a number that only ever
    grows: hand it to other stores as a fencing token. Times are aware datetimes of the database's clock.
    `next_attempt_at` is None for a job that waits for an operator, too; its state is blocked then.
    `state` is one of executing, ready, scheduled, retrying, blocked, or the outcome of a job that has
    ended (succeeded, abandoned, cancelled, moved). A `topic`'s job may also be launched (`launched_at`),
    and is called discarded where others are abandoned. `failure_mode` is the job's own, as it is stored;
    `reply` says whether it can be asked for replies; `moved_from` is the first of the jobs that it was
    moved from. `last_progress` is what was told last by `progress`, in this run or an earlier one.
    """

    id: int
    scope: str
    queue: str
    action: str
    params: dict[str, Any]
    priority: int = 0
    timeout: timedelta = timedelta(seconds=60)
    max_backoff: timedelta = timedelta(days=1)
    max_attempts: int = 20
    scheduled_at: datetime
    next_attempt_at: datetime | None = None
    attempts: int = 0
    claim: int = 0
    attempted_at: datetime | None = None
    attempted_by: str | None = None
    errors: tuple[dict[str, Any], ...] = ()
    last_progress: Any = None
    result: Any = None
    done_at: datetime | None = None
    outcome: str | None = None
    failure_mode: dict[str, Any] | None = None
    reply: bool = False
    moved_from: int | None = None
    topic: bool = False
    launched_at: datetime | None = None
    inserted_at: datetime
    updated_at: datetime
    state: str = "ready"
    key: Any = None

    async def progress(self, value: Any) -> None:
        """Tell how far this job has come, from within its performer: as pgqueuetopia.progress(value)."""
        await progress(value)

    def failure_report(self) -> tuple[str, str]:
        """The subject and the HTML body of a mail about this job's last failure (Queuetopia's helpers)."""
        last = self.errors[-1] if self.errors else {"error": "no error was recorded", "traceback": ""}
        subject = f"[{self.scope}] job {self.id} ({self.action}) of queue {self.queue} failed"
        facts = {
            "scope": self.scope,
            "queue": self.queue,
            "action": self.action,
            "job": self.id,
            "attempt": f"{self.attempts} of {self.max_attempts}",
            "next attempt": self.next_attempt_at or "none",
            "params": json.dumps(self.params),
            "error": last.get("error", ""),
        }
        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(str(fact))}</td></tr>" for name, fact in facts.items()
        )
        return subject, f"<table>{rows}</table><pre>{escape(str(last.get('traceback', '')))}</pre>"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created: create_job's arguments, for create_jobs.

    Times are seconds or timedelta; `scheduled_at` is an aware datetime or a timedelta from now. Without
    `max_attempts` and `priority`: 20 and 0, or what the queue's Topic says.
    """

    queue: str
    action: str
    params: Mapping[str, Any] | BaseModel = field(default_factory=dict)
    scheduled_at: datetime | timedelta | None = None
    timeout: Seconds = 60
    max_backoff: Seconds = 86_400
    max_attempts: int | None = None
    priority: int | None = None
    failure_mode: Any = None
    reply: bool = False


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a new job has where nothing else is said: by its topic, if its queue is one."""

    max_attempts: int = 20
    priority: int = 0
    topic: bool = False


NO_TOPIC = Defaults()


class Page(list[Job]):
    """A page of jobs: `total` counts all that match, `next` is what to give as `after`, None at the end."""

    def __init__(self, jobs: Iterable[Job], total: int, next_: int | None) -> None:
        super().__init__(jobs)
        self.total = total
        self.next = next_


@dataclass(frozen=True, slots=True)
class JobRow:
    """A new job that was checked: what goes to the database, in the order of create_job.sql."""

    queue: str
    action: str
    params: str
    priority: int
    timeout: timedelta
    max_backoff: timedelta
    max_attempts: int
    scheduled_at: datetime | None
    delay: timedelta | None
    failure_mode: str | None
    reply: bool
    topic: bool


def checked(
    job: NewJob, refusal: Callable[[str, object], list[str]] = lambda *_: [], defaults: Defaults = NO_TOPIC
) -> JobRow:
    """The row of a new job; `refusal` says what else is wrong with an action and its params.

    Raises InvalidJob with every fault that it has.
    """
    params = job.params.model_dump(mode="json") if isinstance(job.params, BaseModel) else job.params
    faults = [*_faults(job), *_params_faults(params), *refusal(job.action, params)]
    if faults:
        raise InvalidJob(faults)
    return JobRow(
        queue=job.queue,
        action=job.action,
        params=json.dumps(params, separators=(",", ":"), ensure_ascii=False),
        priority=defaults.priority if job.priority is None else job.priority,
        timeout=as_timedelta(job.timeout),
        max_backoff=as_timedelta(job.max_backoff),
        max_attempts=defaults.max_attempts if job.max_attempts is None else job.max_attempts,
        scheduled_at=job.scheduled_at if isinstance(job.scheduled_at, datetime) else None,
        delay=job.scheduled_at if isinstance(job.scheduled_at, timedelta) else None,
        failure_mode=None if job.failure_mode is None else json.dumps(job.failure_mode),
        reply=job.reply,
        topic=defaults.topic,
    )


def as_delay(value: Seconds) -> timedelta:
    """Seconds or a timedelta, as a timedelta that the database can add to a time; never negative."""
    return min(max(as_timedelta(value), timedelta(0)), LONGEST_DELAY)


def as_timedelta(value: Seconds) -> timedelta:
    """Seconds or a timedelta, as a timedelta."""
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def name_faults(what: str, name: object) -> Iterator[str]:
    """What is wrong with the name of a scope, a queue or an action."""
    if not isinstance(name, str):
        yield f"{what} must be a string, not {type(name).__name__}"
    elif not name:
        yield f"{what} must not be empty"
    elif len(name) > LONGEST_NAME:
        yield f"{what} has {len(name)} characters; at most {LONGEST_NAME} are allowed"
    else:
        yield from _text_faults(what, name)


def _faults(job: NewJob) -> Iterator[str]:
    yield from name_faults("queue", job.queue)
    yield from name_faults("action", job.action)
    yield from _duration_faults("timeout", job.timeout)
    yield from _duration_faults("max_backoff", job.max_backoff)
    if job.max_attempts is not None:
        yield from integer_faults("max_attempts", job.max_attempts, least=1)
    if job.priority is not None:
        yield from integer_faults("priority", job.priority, least=-LARGEST_INTEGER)
    yield from _schedule_faults(job.scheduled_at)
    if not isinstance(job.reply, bool):
        yield f"reply must be True or False, not {type(job.reply).__name__}"


def _duration_faults(what: str, value: object) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        yield f"{what} must be seconds or a timedelta, not {type(value).__name__}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{what} must be finite, not {value}"
    elif _seconds(value) < 0:
        yield f"{what} must not be negative"
    elif _seconds(value) > LONGEST_DELAY.total_seconds():
        yield f"{what} must be at most {LONGEST_DELAY.days:,} days"


def _seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def integer_faults(what: str, value: object, *, least: int, most: int = LARGEST_INTEGER) -> Iterator[str]:
    """What is wrong with a number that the database is to hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        yield f"{what} must be an integer, not {type(value).__name__}"
    elif not least <= value <= most:
        yield f"{what} must be between {least} and {most}, not {value}"


def _schedule_faults(value: object) -> Iterator[str]:
    match value:
        case None:
            return
        case datetime():
            if value.tzinfo is None or value.utcoffset() is None:
                yield "scheduled_at has no time zone; use datetime.now(UTC), or a timedelta from now"
        case timedelta():
            if abs(value) > LONGEST_DELAY:
                yield f"scheduled_at must be within {LONGEST_DELAY.days:,} days"
        case _:
            yield f"scheduled_at must be an aware datetime or a timedelta, not {type(value).__name__}"


def _params_faults(params: object) -> Iterator[str]:
    if isinstance(params, dict):
        yield from json_faults("params", params)
    else:
        yield f"params must be a dict, not {type(params).__name__}"


def is_duration(value: object) -> bool:
    """Whether it is a time that can be waited for: seconds or a timedelta, not negative, not too long."""
    if isinstance(value, timedelta):
        return value >= timedelta(0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= LONGEST_DELAY.total_seconds()


def count_faults(what: str, count: object) -> list[str]:
    """What is wrong with a number of which there must be one at least."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        return [f"{what} must be an integer of at least 1, not {count!r}"]
    return []


def json_text(what: str, value: object, longest: int) -> tuple[str, list[str]]:
    """A value as JSON of at most so many characters, and what is wrong with it: then the text is empty."""
    try:
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    except Exception as error:
        # A serializer of the user's may raise anything.
        return "", [f"{what} cannot be dumped: {type(error).__name__}: {error}"]
    faults = list(json_faults(what, plain))
    text = "" if faults else json.dumps(plain)
    if len(text) > longest:
        return "", [f"{what} has {len(text):,} characters; at most {longest:,} are stored"]
    return text, faults


def json_faults(where: str, value: object, depth: int = 0) -> Iterator[str]:
    """Everything in `value` that JSON, or PostgreSQL's jsonb, cannot hold, with the place it is at."""
    match value:
        case None | bool():
            return
        case int() | float():
            yield from _number_faults(where, value)
        case str():
            yield from _text_faults(where, value)
        case _ if depth >= DEEPEST_PARAMS:
            yield f"{where[:40]}… is nested more than {DEEPEST_PARAMS} levels deep"
        case dict():
            yield from _object_faults(where, value, depth)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from json_faults(f"{where}[{index}]", item, depth + 1)
        case _:
            yield f"{where} is a {type(value).__name__}, which is not JSON"


def _number_faults(where: str, value: float) -> Iterator[str]:
    if isinstance(value, int):
        if value.bit_length() > LARGEST_INTEGER_BITS:
            yield f"{where} is an integer of {value.bit_length():,} bits; send it as text"
    elif not math.isfinite(value):
        yield f"{where} is {value}, which JSON cannot hold"


def _object_faults(where: str, value: dict[Any, Any], depth: int) -> Iterator[str]:
    for key, item in value.items():
        if isinstance(key, str):
            yield from _text_faults(f"a key of {where}", key)
            yield from json_faults(f"{where}.{key}", item, depth + 1)
        else:
            yield f"{where} has the key {key!r}, which is not a string"


def _text_faults(where: str, text: str) -> Iterator[str]:
    if "\0" in text:
        yield f"{where} contains a NUL character, which PostgreSQL cannot store"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        yield f"{where} contains a lone surrogate, which is not valid text"
