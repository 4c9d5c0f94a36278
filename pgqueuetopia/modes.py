"""Failure modes and success modes: what an application decides about what its jobs came to (Honeydew)."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import (
    LONGEST_DELAY,
    Job,
    Seconds,
    as_delay,
    as_timedelta,
    count_faults,
    is_duration,
    name_faults,
)
from pgqueuetopia.outcome import Failure, Settlement

log = structlog.get_logger("pgqueuetopia")

FailureMode = Callable[[Job, Failure], Settlement]

# Given the job and its failure: how long to wait for the next run (seconds or timedelta), or None to give up.
Decide = Callable[[Job, Failure], Seconds | None]

_LARGEST_EXPONENT = 400  # 2.0**400 s is beyond any limit, and still a float


@dataclass(frozen=True, slots=True)
class Abandon:
    """The job ends as abandoned, and its queue goes on (Honeydew's default)."""

    def __call__(self, job: Job, failure: Failure) -> Settlement:
        """What is written about the failed attempt."""
        return Settlement.abandoned(failure)

    def as_json(self) -> dict[str, Any]:
        """As it is stored with a job."""
        return {"mode": "abandon"}


@dataclass(frozen=True, slots=True)
class Move:
    """The job ends as moved, and a new one like it stands at the end of another queue of the same scope.

    Both happen in one transaction: a job that was moved is neither lost nor there twice. Raises Misconfigured
    for a name that no queue can have.
    """

    queue: str

    def __post_init__(self) -> None:
        _refuse("Move", name_faults("queue", self.queue))

    def __call__(self, job: Job, failure: Failure) -> Settlement:
        """What is written about the failed attempt."""
        return Settlement.moved(failure, self.queue)

    def as_json(self) -> dict[str, Any]:
        """As it is stored with a job."""
        return {"mode": "move", "queue": self.queue}


@dataclass(frozen=True, slots=True)
class Retry:
    """Run again, `times` times at most after the first run, then as `finally_` says (Abandon by default).

    At once, unless `decide(job, failure)` returns how long to wait, in seconds or as a timedelta, or None to
    give up now. `times` stands in place of the job's max_attempts. Raises Misconfigured for bad arguments.
    """

    times: int
    finally_: FailureMode = Abandon()
    decide: Decide | None = None

    def __post_init__(self) -> None:
        _refuse(
            "Retry", [*count_faults("times", self.times), *failure_mode_faults("finally_", self.finally_)]
        )
        if self.decide is not None:
            _refuse("Retry", failure_mode_faults("decide", self.decide))

    def __call__(self, job: Job, failure: Failure) -> Settlement:
        """What is written about the failed attempt."""
        delay = self._delay(job, failure) if job.attempts <= self.times else None
        return self.finally_(job, failure) if delay is None else Settlement.retried(failure, as_delay(delay))

    def _delay(self, job: Job, failure: Failure) -> Seconds | None:
        return 0 if self.decide is None else self.decide(job, failure)

    def as_json(self) -> dict[str, Any]:
        """As it is stored with a job."""
        if self.decide is not None:
            raise Misconfigured("Retry's decide cannot be stored with a job; set the mode on the Queuetopia.")
        return {"mode": "retry", "times": self.times, "finally": stored(self.finally_)}


@dataclass(frozen=True, slots=True)
class ExponentialRetry:
    """Retry after base**k - 1 seconds, k being how often it has been retried: 0, 1, 3, 7 with base 2.

    `max_delay` (seconds or timedelta) limits the wait. After `times` runs again, `finally_` decides. Raises
    Misconfigured for bad arguments.
    """

    times: int
    base: int = 2
    finally_: FailureMode = Abandon()
    max_delay: Seconds | None = None

    def __post_init__(self) -> None:
        faults = [*count_faults("times", self.times), *count_faults("base", self.base)]
        faults += failure_mode_faults("finally_", self.finally_)
        if self.max_delay is not None and not is_duration(self.max_delay):
            faults.append(f"max_delay must be seconds or a timedelta, not negative, not {self.max_delay!r}")
        _refuse("ExponentialRetry", faults)

    def __call__(self, job: Job, failure: Failure) -> Settlement:
        """What is written about the failed attempt."""
        if job.attempts > self.times:
            return self.finally_(job, failure)
        return Settlement.retried(failure, self.delay(job.attempts - 1))

    def delay(self, retried: int) -> timedelta:
        """How long a job waits that has been retried so often."""
        limit = LONGEST_DELAY if self.max_delay is None else as_timedelta(self.max_delay)
        seconds = float(self.base) ** min(retried, _LARGEST_EXPONENT // self.base.bit_length()) - 1
        return timedelta(seconds=min(seconds, limit.total_seconds()))

    def as_json(self) -> dict[str, Any]:
        """As it is stored with a job."""
        limit = None if self.max_delay is None else as_timedelta(self.max_delay).total_seconds()
        return {
            "mode": "exponential_retry",
            "times": self.times,
            "base": self.base,
            "finally": stored(self.finally_),
            "max_delay": limit,
        }


@dataclass(frozen=True, slots=True)
class Success:
    """A job that has succeeded: its result, how long it was due before it started, and how long it ran."""

    job: Job
    result: Any
    queue_time: timedelta
    run_time: timedelta


SuccessMode = Callable[[Success], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Log:
    """Log each success through structlog: job, queue, queue_time and run_time in seconds, result."""

    def __call__(self, success: Success) -> None:
        """Log one success."""
        log.info(
            "job_succeeded",
            job=success.job.id,
            queue=success.job.queue,
            action=success.job.action,
            queue_time=round(success.queue_time.total_seconds(), 6),
            run_time=round(success.run_time.total_seconds(), 6),
            result=success.result,
        )


def stored(mode: FailureMode) -> dict[str, Any]:
    """A failure mode as JSON, to be stored with a job. Raises Misconfigured for what is only code."""
    if not isinstance(mode, Abandon | Move | Retry | ExponentialRetry):
        raise Misconfigured(
            "A function cannot be stored with a job: use Abandon, Move, Retry or ExponentialRetry, "
            "or set it as failure_mode on the Queuetopia."
        )
    return mode.as_json()


def loaded(given: Mapping[str, Any]) -> FailureMode:
    """The failure mode that was stored with a job. Raises Misconfigured for what no version has stored."""
    match given:
        case {"mode": "abandon"}:
            return Abandon()
        case {"mode": "move", "queue": queue}:
            return Move(queue)
        case {"mode": "retry", "times": times, "finally": last}:
            return Retry(times, loaded(last))
        case {"mode": "exponential_retry", "times": times, "base": base, "finally": last, **more}:
            return ExponentialRetry(times, base, loaded(last), more.get("max_delay"))
        case _:
            raise Misconfigured(f"This is no failure mode: {given!r}")


def runs(mode: FailureMode | None) -> int:
    """How many runs a mode allows at least; 0 if it does not say."""
    return mode.times + 1 if isinstance(mode, Retry | ExponentialRetry) else 0


def failure_mode_faults(what: str, mode: object) -> list[str]:
    """What is wrong with a failure mode, or what it asks."""
    if inspect.iscoroutinefunction(mode):
        return [f"{what} must be a plain function: it decides, and does nothing"]
    return callable_faults(what, mode)


def callable_faults(what: str, value: object) -> list[str]:
    """Why a value cannot be called, as a mode is."""
    if inspect.isclass(value):
        return [f"{what} must be an instance, not a class: {value.__name__}(...)"]
    return [] if callable(value) else [f"{what} must be callable, not {type(value).__name__}"]


def _refuse(what: str, faults: Iterable[str]) -> None:
    if found := list(faults):
        raise Misconfigured(f"{what}: {'; '.join(found)}")
