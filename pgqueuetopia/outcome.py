"""What a performer may return, and what became of one attempt."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Ok:
    """Success; `value` is stored as the job's result: anything JSON, or a pydantic model, dumped."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Err:
    """Failure: the job is tried again after its backoff (Queuetopia's `{:error, message}`)."""

    message: object = ""


@dataclass(frozen=True, slots=True)
class Retrying:
    """A reply: an attempt failed with this error, and the job is tried again, or waits for an operator."""

    error: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A reply: the job has failed and goes on in another queue; what becomes of it there is told as well."""

    queue: str


@dataclass(frozen=True, slots=True)
class Snooze:
    """Not now: run again after `delay` (a timedelta or seconds) without spending an attempt."""

    delay: timedelta | float


@dataclass(frozen=True, slots=True)
class Discard:
    """Give the job up at once, whatever attempts are left (JobQueue)."""

    reason: object = ""


@dataclass(frozen=True, slots=True)
class Launched:
    """The job goes on, and holds its place, until `handle` has ended (JobQueue's `{:ok, :pid, pid}`).

    A process of asyncio or anyio, a task, or anything that can be awaited, such as what run_process
    returns. Its timeout, `cancel(kill=True)` and the end of its node end it, a process with all that it
    has started.
    """

    handle: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    message: str
    traceback: str = ""
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The job is done."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; a policy decides what follows."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The performer asked to be called again later."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Discarded:
    """The job is given up."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The node stopped before the job ended; the attempt is given back."""


@dataclass(frozen=True, slots=True)
class Killed:
    """Somebody had the job stopped while it ran."""


Outcome = Succeeded | Failed | Snoozed | Discarded | Interrupted | Killed


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is written about an attempt: the columns that change, one constructor for each outcome.

    `outcome` is None while the job stays pending; it is then due after `delay`, or blocked until an
    operator acts where `delay` is None too.
    """

    outcome: str | None
    delay: timedelta | None = None
    attempt_spent: bool = True
    failure: Failure | None = None
    result: Any = None
    moved_to: str | None = None

    @classmethod
    def succeeded(cls, result: Any) -> "Settlement":
        """It is done."""
        return SUCCEEDED if result is None else cls("succeeded", result=result)

    @classmethod
    def retried(cls, failure: Failure, delay: timedelta) -> "Settlement":
        """It failed, and is due again after the delay."""
        return cls(None, delay, failure=failure)

    @classmethod
    def abandoned(cls, failure: Failure) -> "Settlement":
        """It failed for the last time, and its queue goes on."""
        return cls("abandoned", failure=failure)

    @classmethod
    def moved(cls, failure: Failure, queue: str) -> "Settlement":
        """It failed, and goes on as another job at the end of another queue."""
        return cls("moved", failure=failure, moved_to=queue)

    @classmethod
    def blocked(cls, failure: Failure) -> "Settlement":
        """It failed for the last time, and its queue waits for an operator."""
        return cls(None, None, failure=failure)

    @classmethod
    def snoozed(cls, delay: timedelta) -> "Settlement":
        """It was not run, by its own wish."""
        return cls(None, delay, attempt_spent=False)

    @classmethod
    def cancelled(cls) -> "Settlement":
        """It was stopped for good."""
        return cls("cancelled")

    @classmethod
    def interrupted(cls) -> "Settlement":
        """Its node stopped; it is due now."""
        return cls(None, timedelta(0), attempt_spent=False)


Reply = Ok | Retrying | Moved | Err

# What most jobs come to.
SUCCEEDED = Settlement("succeeded")
