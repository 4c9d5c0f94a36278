"""What a performer's answer, or its end, means."""

import inspect
import traceback
from datetime import timedelta

import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job, as_delay, json_text
from pgqueuetopia.modes import Success
from pgqueuetopia.node.run import Stop
from pgqueuetopia.outcome import (
    Discard,
    Discarded,
    Err,
    Failed,
    Failure,
    Interrupted,
    Killed,
    Ok,
    Outcome,
    Settlement,
    Snooze,
    Snoozed,
    Succeeded,
)

log = structlog.get_logger("pgqueuetopia")

LONGEST_RESULT = 1_000_000
# What most runs come to.
WITHOUT_RESULT = Succeeded()


def outcome_of(value: object) -> Outcome:
    """Of what a performer returned."""
    match value:
        case None:
            return WITHOUT_RESULT
        case Ok(result):
            return Succeeded(result)
        case Err(message):
            return Failed(Failure(_said(message)))
        case Snooze(delay):
            return Snoozed(as_delay(delay))
        case Discard(reason):
            return Discarded(Failure(_said(reason)))
        case Interrupted():
            return value
        case _ if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
            raise Misconfigured(
                f"perform returned a {type(value).__name__}, which nobody runs: await it, "
                "or return Launched(...)"
            )
        case _:
            return Succeeded(value)


def outcome_of_a_stop(why: Stop | None, limit: float, error: BaseException) -> Outcome:
    """Of a run that was cancelled; `error` counts where nobody stopped it."""
    match why:
        case Stop.TIMED_OUT:
            return Failed(timed_out(limit))
        case Stop.INTERRUPTED:
            return Interrupted()
        case Stop.KILLED:
            return Killed()
        case None:
            return Failed(failure_of(error))


def timed_out(limit: float) -> Failure:
    """After so many seconds."""
    return Failure(f"timeout: the job took longer than {limit:g} s")


def success_of(job: Job, settlement: Settlement, run_time: float) -> Success:
    """What a success mode is told; `run_time` in seconds."""
    due = max(job.scheduled_at, job.next_attempt_at or job.scheduled_at)
    waited = (job.attempted_at or due) - due
    return Success(job, settlement.result, max(waited, timedelta(0)), timedelta(seconds=run_time))


def failure_of(error: BaseException) -> Failure:
    """Of what a performer raised."""
    return Failure(
        f"{type(error).__name__}: {_said(error)}",
        "".join(traceback.format_exception(error)),
        error,
    )


def _said(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"its text cannot be had ({type(error).__name__})"


def encoded(job: Job, result: object) -> str | None:
    """A result as JSON; one that is not JSON is not stored, for the job has succeeded all the same."""
    if result is None:
        return None
    try:
        text, faults = json_text("result", result, LONGEST_RESULT)
    except Exception as error:
        # One that only looks like JSON: a proxy of a dict, say.
        text, faults = "", [f"result: {type(error).__name__}: {_said(error)}"]
    if faults:
        log.warning("result_not_stored", job=job.id, queue=job.queue, faults=faults[:3])
    return None if faults else text
