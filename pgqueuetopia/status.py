"""What operators are told."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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
