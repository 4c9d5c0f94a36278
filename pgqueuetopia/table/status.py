"""What is told about the rows of a table queue."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """The rows of a table that have not ended, each counted once (Honeydew's Ecto Poll Queue).

    ready: due, whether or not run_if lets them run; delayed: they wait for their next attempt; in_progress:
    a node runs them; stale: the node that ran them has not renewed its lock in time, and the next one that
    looks runs them; abandoned: they have failed for the last time. count: all of these.
    """

    queue: str
    ready: int = 0
    delayed: int = 0
    in_progress: int = 0
    stale: int = 0
    abandoned: int = 0
    suspended: bool = False

    @property
    def count(self) -> int:
        """All rows that have not ended well, the abandoned ones included."""
        return self.ready + self.delayed + self.in_progress + self.stale + self.abandoned
