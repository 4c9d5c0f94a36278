"""What operators are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pgqueuetopia.job import Job


class Cancelled(StrEnum):
    """What became of a request to cancel or abandon a job."""

    OK = "OK"
    IN_PROGRESS = "IN_PROGRESS"
    NOT_FOUND = "NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The pending jobs of a scope, or of one queue, each counted once.

    ready: due; scheduled: their time has not come; retrying: they wait for their next attempt; blocked: due,
    but behind a head that waits for its next attempt; executing: their queue's lock is held by a node.
    """

    scope: str
    queue: str | None
    ready: int = 0
    scheduled: int = 0
    retrying: int = 0
    blocked: int = 0
    executing: int = 0
    suspended: bool = False
    nodes: tuple[str, ...] = ()
    workers: Mapping[str, tuple[Job, Any] | None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """All jobs that have not ended."""
        return self.ready + self.scheduled + self.retrying + self.blocked + self.executing

    @property
    def in_progress(self) -> int:
        """The jobs that run now (Honeydew's name)."""
        return self.executing


@dataclass(frozen=True, slots=True)
class BlockedQueue:
    """A queue whose head has failed: the head's id, since when, when it is tried again, and the last error.

    `next_attempt_at` is None where the head is exhausted and waits for an operator.
    """

    queue: str
    head: int
    attempts: int
    next_attempt_at: datetime | None
    since: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of many times, the median, and the one that 99 of 100 do not exceed."""

    median: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What has ended of one queue and action.

    `done` by success, `failed` for good, `retried` after a failed attempt; `wait`: from when a job was due
    to its last start; `run`: from that to its end.
    """

    queue: str
    action: str
    done: int
    failed: int
    retried: int
    wait: Quantiles
    run: Quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """How much of a topic's parallelism is in use: on all nodes, and by node (running, launched)."""

    topic: str
    parallelism: int
    running: int
    launched: int
    nodes: Mapping[str, tuple[int, int]]


def workers_of(
    nodes: Mapping[str, int], executing: Iterable[Job], queue: str | None
) -> dict[str, tuple[Job, Any] | None]:
    """Who runs what of a queue, or of all: from how many Workers each node has and the jobs that run."""
    workers: dict[str, tuple[Job, Any] | None] = {}
    busy: dict[str, int] = {}
    for job in executing:
        node = str(job.attempted_by)
        busy[node] = busy.get(node, 0) + 1
        if queue in (None, job.queue):
            workers[f"{node}/{busy[node]}"] = job, _progress_of(job)
    for node, number in nodes.items():
        workers |= {f"{node}/{free}": None for free in range(busy.get(node, 0) + 1, number + 1)}
    return workers


def _progress_of(job: Job) -> Any:
    """What this run has told; not what an earlier one has."""
    told = job.attempted_at is not None and job.updated_at >= job.attempted_at
    return job.last_progress if told else None
