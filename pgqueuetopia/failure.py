"""What becomes of a job after its attempt: pure decisions, one branch for each outcome."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pgqueuetopia.job import Job
from pgqueuetopia.outcome import (
    Failed,
    Failure,
    Interrupted,
    Outcome,
    Settlement,
    Snoozed,
    Succeeded,
)

OnExhausted = Literal["abandon", "block"]

NODE_DIED = Failure("The node that ran the last attempt died, and no attempt is left.")


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """Retry after a delay until max_attempts is reached; then abandon the job or block its queue."""

    on_exhausted: OnExhausted = "abandon"

    def settle(self, job: Job, failure: Failure, delay: timedelta) -> Settlement:
        """What is written about a failed attempt; `delay` is the backoff."""
        if job.attempts < job.max_attempts:
            return Settlement.retried(failure, delay)
        return self.exhausted(failure)

    def exhausted(self, failure: Failure) -> Settlement:
        """What is written when no attempt is left."""
        if self.on_exhausted == "block":
            return Settlement.blocked(failure)
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
        case Interrupted():
            return Settlement.interrupted()
