"""What becomes of a job after its attempt: pure decisions, one branch for each outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job
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
        if job.attempts <= runs(mode):
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


def _decided(mode: FailureMode, job: Job, failure: Failure) -> Settlement:
    """What a mode says; a mode that raises, or says nothing that can be written, has its job abandoned."""
    try:
        settlement = mode(job, failure)
        if not isinstance(settlement, Settlement):
            raise TypeError(f"a failure mode must return a Settlement, not {type(settlement).__name__}")
        return settlement
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        log.error("failure_mode_raised", job=job.id, queue=job.queue, error=what)
        return Settlement.abandoned(failure)


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
