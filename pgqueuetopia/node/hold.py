"""A queue, or a slot of one, that is held while its jobs run, one after the other."""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pgqueuetopia.db.rows import Row, claimed_job_of
from pgqueuetopia.job import Job
from pgqueuetopia.slices import Slice

# Of several jobs that were claimed at once those not started after so long are given back. In seconds.
LONG = 0.04
# A queue that goes on gets as many at once as should take so long by the last ones, at most so much more.
MEANT = LONG / 2
GROWTH = 8


@dataclass(slots=True)
class Hold:
    """What runs, and what was prefetched behind it.

    When the first was started, when the one that runs was, the slice of the queue, and what the claim had
    seen.
    """

    job: Job
    began: float
    since: float
    slice: Slice
    snapshot: str
    claimed_at: datetime | None
    slot: int | None = None
    prefetched: deque[Row] = field(default_factory=deque)
    # How many were claimed at once; whether the server knows which runs, and what is prefetched behind it.
    size: int = 1
    noted: bool = True

    def go_on(self, now: float) -> Job:
        """The next job is run."""
        self.job = claimed_job_of(self.prefetched.popleft(), self.job.scope, str(self.job.attempted_by))
        self.since, self.noted = now, False
        if self.claimed_at is not None:
            self.job.__dict__["attempted_at"] = self.claimed_at + timedelta(0, now - self.began)
        return self.job

    @property
    def last(self) -> int | None:
        """The last that was prefetched, by its id."""
        return self.prefetched[-1]["id"] if self.prefetched else None

    def is_late(self, now: float) -> bool:
        """Whether what has not been started is to be given back."""
        return now - self.began > LONG

    def next_size(self, now: float) -> int:
        """How many jobs the queue gets at once when it goes on."""
        run = self.size - len(self.prefetched)
        return max(1, round(run * min(GROWTH, MEANT / max(now - self.began, 1e-6))))
