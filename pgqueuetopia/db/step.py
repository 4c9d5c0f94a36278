"""What goes into a step, and what comes out of it."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

import asyncpg

from pgqueuetopia.db import rows
from pgqueuetopia.db.arrays import numbers, texts, times
from pgqueuetopia.job import Job
from pgqueuetopia.outcome import SUCCEEDED, Settlement
from pgqueuetopia.slices import Slice


# Not frozen, for one is made for each job: that costs three times as much.
@dataclass(slots=True)
class Ended:
    """A held queue whose job has ended, to be settled and looked at again.

    `job` is None where a held queue is only to be looked at. `snapshot` is that of the step that claimed
    the job; `run_time` is in seconds; `size` is how many jobs the queue gets at once if it goes on; the job
    may be `one_of_many` that were claimed at once. A topic's job has a slot of its queue, and not all of it.
    """

    queue: str
    job: Job | None = None
    settlement: Settlement | None = None
    result: str | None = None
    slice: Slice | None = None
    snapshot: str | None = None
    run_time: float = 0.0
    slot: int | None = None
    size: int = 1
    one_of_many: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it has succeeded, and there is nothing more to say of it."""
        return self.settlement is SUCCEEDED and self.result is None


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did, and when to look again."""

    claimed: list[Job]
    # What is to be run behind them, by its queue and in its order: rows, each made a job when its turn comes.
    prefetched: dict[str, list[rows.Row]]
    # Of the jobs of topics, which come last in claimed.
    slots: list[int]
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

    def of_queues(self) -> list[Job]:
        """What was claimed, but for the jobs of topics."""
        return self.claimed[: len(self.claimed) - len(self.slots)]

    def of_topics(self) -> list[Job]:
        """What was claimed of topics, in the order of the slots."""
        return self.claimed[len(self.claimed) - len(self.slots) :]

    def queues(self) -> list[str]:
        """Those that are held from now on."""
        return [job.queue for job in self.of_queues()] + self.again


@dataclass(slots=True)
class Lines:
    """What a node may run of topics, and the slots that it holds.

    `rooms`: topic, how many of its jobs run at once in the cluster, for how many more there is room here,
    and when one was started here last. `held`: topic, number of the slot, id of the job, and whether that
    has ended.
    """

    rooms: list[tuple[str, int, int, datetime | None]]
    held: list[tuple[str, int, int, bool]]

    def columns(self) -> list[Any]:
        """One array for each."""
        return [
            *[[room[n] for room in self.rooms] for n in range(4)],
            *[[held[n] for held in self.held] for n in range(4)],
        ]


NO_LINES = (None,) * 8


@dataclass(slots=True)
class Question:
    """What a node asks of a step.

    `ended` is persisted, oldest first. `yielding`: which of its queues go on only where others need no room.
    `running`: the queues whose job runs on, and when it was claimed, by the server's clock. `avoid`: queues
    that are paused here. `room`: how many more queues and slots may be held. `rescue`: look for the queues
    of the dead. `keep`: finished jobs are kept. `everything`: scan the run queue from its start, and not
    from where the last step came to. `queues_suspended`: whether configs suspend single queues. `starting`:
    how many of the steps before have claimed jobs that have not been started yet. `size`: how many jobs a
    queue gets at once that we did not hold. `begun`: of several that were claimed at once those that run by
    now, each with the last that is prefetched behind it. A `careful` step passes over rows that somebody has
    locked; another one waits for them a little, and then becomes careful. `lines`: the topics of this node.
    """

    ended: Sequence[Ended] = ()
    yielding: Sequence[str] = ()
    running: Mapping[str, datetime | None] = field(default_factory=dict)
    avoid: Sequence[str] = ()
    room: int = 0
    rescue: bool = False
    keep: bool = True
    everything: bool = True
    queues_suspended: bool = True
    starting: int = 0
    size: int = 1
    begun: Mapping[int, int | None] = field(default_factory=dict)
    careful: bool = False
    lines: Lines | None = None

    def lasts(self) -> dict[str, Ended]:
        """Of queues of which nothing runs any longer, what ended last."""
        return last_of_queues(self.ended, self.running)


def stepped_of(row: asyncpg.Record, scope: str, node: str) -> Stepped:
    """What a step did, from its answer."""
    claimed, slots = rows.rows_in(row["claimed"]), row["slots"] or []
    blocking = len(claimed) - len(slots)
    return Stepped(
        claimed=[
            *[rows.claimed_job_of(job, scope, node) for job in claimed[:blocking]],
            *[rows.topic_job_of(job, scope, node) for job in claimed[blocking:]],
        ],
        prefetched=prefetched_of(rows.rows_in(row["prefetched"])),
        slots=slots,
        saved=frozenset(row["saved"] or ()),
        busy=frozenset(row["busy"] or ()),
        again=row["again"],
        suspended=row["suspended"],
        held_up=row["held_up"],
        careful=bool(row["careful"]),
        crowded=row["crowded"],
        more=row["more"],
        # A front comes from a scan, or from the step before.
        scanned=row["fronts"] is not None,
        next_ready_in=row["next_ready_in"],
        horizon=row["horizon"],
        snapshot=row["snapshot"],
    )


def prefetched_of(claimed: Iterable[rows.Row]) -> dict[str, list[rows.Row]]:
    """Of each queue what was prefetched, in its order."""
    found: dict[str, list[rows.Row]] = {}
    for row in claimed:
        found.setdefault(row["queue"], []).append(row)
    for some in found.values():
        some.sort(key=itemgetter("scheduled_at", "id"))
    return found


def settlement_columns(ended: Iterable[Ended], node: str, *, keep: bool = True) -> tuple[list[Any], ...]:
    """What ended as one array for each column: id, claim, outcome, delay, spent, error, result, move, time.

    The plain ones come last, in the order of their ids: all but the first two columns end where they begin.
    But run times, in microseconds, are those of all that are written, or of none: only of several that were
    claimed at once the server does not know when each began.
    """
    told: list[Ended] = []
    plain: list[Ended] = []
    for one in ended:
        (plain if one.is_plain else told).append(one)
    told = [one for one in told if one.job]
    plain.sort(key=_id)
    both = told + plain
    written = both if keep else told
    return (
        [_id(one) for one in both],
        [one.job and one.job.claim for one in both],
        [one.settlement and one.settlement.outcome for one in told],
        [one.settlement and one.settlement.delay for one in told],
        [one.settlement and one.settlement.attempt_spent for one in told],
        [_error(one, node) for one in told],
        [one.result for one in told],
        [one.settlement and one.settlement.moved_to for one in told],
        [int(one.run_time * 1e6) for one in written] if any(one.one_of_many for one in written) else [],
    )


def last_of_queues(ended: Iterable[Ended], running: Container[Any]) -> dict[str, Ended]:
    """Of queues of which nothing runs any longer, what ended last: then the queue is looked at."""
    return {one.queue: one for one in ended if one.queue not in running and not one.slot}


def queue_columns(lasts: Iterable[Ended]) -> tuple[Any, ...]:
    """Of each queue that is looked at: name, its last job, the place it is at, the snapshot, and its size.

    It is at a place where that job has ended for good. Sizes are left out where each queue gets one job.
    """
    lasts = list(lasts)
    return (
        texts([one.queue for one in lasts]),
        numbers([one.job.id if one.job else None for one in lasts]),
        times([_place(one) for one in lasts]),
        texts([one.snapshot for one in lasts]),
        numbers([one.size for one in lasts] if any(one.size > 1 for one in lasts) else []),
    )


def _id(one: Ended) -> int:
    return one.job.id if one.job else 0


def _place(one: Ended) -> datetime | None:
    has_ended = one.settlement is not None and one.settlement.outcome is not None
    return one.job.scheduled_at if one.job and has_ended else None


def _error(one: Ended, node: str) -> str | None:
    if one.job is None or one.settlement is None:
        return None
    return rows.error_entry(one.settlement.failure, one.job.attempts, node)
