"""What becomes of a job after its attempt: pure decisions, one branch for each outcome."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job, as_delay, name_faults
from pgqueuetopia.modes import FailureMode, loaded, runs
from pgqueuetopia.outcome import (
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Killed,
    Outcome,
    Settlement,
    Snoozed,
    Succeeded,
)

log = structlog.get_logger("pgqueuetopia")

OUTCOMES = (None, "succeeded", "abandoned", "cancelled", "moved")

OnExhausted = Literal["abandon", "block"]

NODE_DIED = Failure("The node that ran the last attempt died, and no attempt is left.")


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What follows a failed attempt: the job's own failure mode, else its queue's, else the application's.

    Without a mode: retry after the backoff until max_attempts is reached, then abandon the job or block its
    queue. A retry waits for `least_delay` at least.
    """

    on_exhausted: OnExhausted = "abandon"
    mode: FailureMode | None = None
    modes: Mapping[str, FailureMode] = field(default_factory=dict)
    least_delay: timedelta = timedelta(0)

    def settle(self, job: Job, failure: Failure, delay: timedelta) -> Settlement:
        """What is written about a failed attempt; `delay` is the backoff."""
        mode = self._mode_of(job)
        if mode is not None:
            return self._not_sooner(_decided(mode, job, failure))
        if job.attempts < job.max_attempts:
            return self._not_sooner(Settlement.retried(failure, delay))
        return self._exhausted(failure)

    def died(self, job: Job) -> Settlement | None:
        """What is written about a job whose node died with its last attempt; None if it may still run."""
        if job.attempts <= job.max_attempts:
            return None
        mode = self._mode_of(job)
        if job.attempts <= runs(mode) or (mode is not None and _has_told_of_its_last_run(job)):
            return None
        settlement = self._exhausted(NODE_DIED) if mode is None else _decided(mode, job, NODE_DIED)
        if settlement.outcome is None and settlement.delay is not None:
            settlement = Settlement.abandoned(NODE_DIED)
        return replace(settlement, attempt_spent=False)

    def _mode_of(self, job: Job) -> FailureMode | None:
        if job.failure_mode is not None:
            try:
                return loaded(job.failure_mode)
            except Misconfigured as error:
                log.error("failure_mode_unreadable", job=job.id, queue=job.queue, error=str(error))
        return self.modes.get(job.queue, self.mode)

    def _exhausted(self, failure: Failure) -> Settlement:
        if self.on_exhausted == "block":
            return Settlement.blocked(failure)
        return Settlement.abandoned(failure)

    def _not_sooner(self, settlement: Settlement) -> Settlement:
        if settlement.delay is None or settlement.delay >= self.least_delay:
            return settlement
        return replace(settlement, delay=self.least_delay)


def _has_told_of_its_last_run(job: Job) -> bool:
    """Whether the run before this one has failed, and a mode has decided that there is this one."""
    return bool(job.errors) and job.errors[-1].get("attempt") == job.attempts - 1


def _decided(mode: FailureMode, job: Job, failure: Failure) -> Settlement:
    """What a mode says; a mode that raises, or says nothing that can be written, has its job abandoned."""
    try:
        settlement = mode(job, failure)
        if not isinstance(settlement, Settlement):
            raise TypeError(f"a failure mode must return a Settlement, not {type(settlement).__name__}")
        if faults := list(_settlement_faults(settlement)):
            raise TypeError("; ".join(faults))
        delay = settlement.delay
        return settlement if delay is None else replace(settlement, delay=as_delay(delay))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        log.error("failure_mode_raised", job=job.id, queue=job.queue, error=what)
        return Settlement.abandoned(failure)


def _settlement_faults(settlement: Settlement) -> Iterator[str]:
    """Why it cannot be written: the database would refuse it, and with it all that has ended meanwhile."""
    if settlement.outcome not in OUTCOMES:
        yield f"there is no outcome {settlement.outcome!r}"
    if (settlement.outcome == "moved") != (settlement.moved_to is not None):
        yield "a job that is moved, and no other, has a queue that it is moved to"
    elif settlement.moved_to is not None:
        yield from name_faults("moved_to", settlement.moved_to)
    if not isinstance(settlement.failure, Failure | None):
        yield f"failure must be a Failure, not {type(settlement.failure).__name__}"


def settle(job: Job, outcome: Outcome, policy: FailurePolicy, delay: timedelta) -> Settlement:
    """What is written about an attempt; `delay` is the backoff, should it be tried again."""
    match outcome:
        case Succeeded(result):
            return Settlement.succeeded(result)
        case Failed(failure):
            return policy.settle(job, failure, delay)
        case Snoozed(snooze):
            return Settlement.snoozed(snooze)
        case Discarded(failure):
            return Settlement.abandoned(failure)
        case Interrupted():
            return Settlement.interrupted()
        case Killed():
            return Settlement.cancelled()
