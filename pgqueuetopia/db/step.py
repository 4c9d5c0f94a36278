"""What goes into a step, and what comes out of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.job import Job
from pgqueuetopia.outcome import SUCCEEDED, Settlement


# Not frozen, for one is made for each job: that costs three times as much.
@dataclass(slots=True)
class Ended:
    """A held queue whose job has ended, to be settled and looked at again.

    `job` is None where a held queue is only to be looked at. `slice_since` is when the queue's slice began,
    by the node's clock; `snapshot` is that of the step that claimed the job; `run_time` is in seconds.
    """

    queue: str
    job: Job | None = None
    settlement: Settlement | None = None
    result: str | None = None
    slice_since: float = 0.0
    snapshot: str | None = None
    run_time: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it has succeeded, and there is nothing more to say of it."""
        return self.settlement is SUCCEEDED and self.result is None


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did, and when to look again."""

    claimed: list[Job]
    saved: frozenset[int]
    busy: frozenset[int]
    again: list[str]
    suspended: bool
    held_up: bool
    careful: bool
    crowded: bool
    more: bool
    scanned: bool
    next_ready_in: float | None
    horizon: int
    snapshot: str


def stepped_of(row: asyncpg.Record, scope: str) -> Stepped:
    """What a step did, from the row that it returned."""
    return Stepped(
        claimed=[rows.claimed_job_of(job, scope) for job in row["claimed"]],
        saved=frozenset(row["saved"]),
        busy=frozenset(row["busy"]),
        again=row["again"],
        suspended=row["suspended"],
        held_up=row["held_up"],
        careful=row["careful"],
        crowded=row["crowded"],
        more=row["more"],
        # A front comes from a scan, or from the step before.
        scanned=row["fronts"] is not None,
        next_ready_in=row["next_ready_in"],
        horizon=row["horizon"],
        snapshot=row["snapshot"],
    )


def settlement_columns(ended: Sequence[Ended], node: str) -> tuple[list[Any], ...]:
    """What ended as one array for each column: id, claim, outcome, delay, spent, error, result, move.

    All but the first two end where the plain ones begin, which come last (see in_order).
    """
    told = [one for one in ended if not one.is_plain]
    return (
        [one.job and one.job.id for one in ended],
        [one.job and one.job.claim for one in ended],
        [one.settlement and one.settlement.outcome for one in told],
        [one.settlement and one.settlement.delay for one in told],
        [one.settlement and one.settlement.attempt_spent for one in told],
        [_error(one, node) for one in told],
        [one.result for one in told],
        [one.settlement and one.settlement.moved_to for one in told],
    )


def in_order(ended: Iterable[Ended]) -> list[Ended]:
    """The plain ones last, as settlement_columns wants them."""
    return sorted(ended, key=lambda one: one.is_plain)


def _error(one: Ended, node: str) -> str | None:
    if one.job is None or one.settlement is None:
        return None
    return rows.error_entry(one.settlement.failure, one.job.attempts, node)
