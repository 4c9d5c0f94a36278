"""What a node runs by: the settings of its Queuetopia, and what is paused on this node alone."""

from dataclasses import dataclass, field
from datetime import timedelta

from pgqueuetopia.modes import SuccessMode
from pgqueuetopia.topics import Topic


@dataclass(slots=True)
class Pause:
    """A local suspension: of this node alone, and not kept."""

    all: bool = False
    queues: set[str] = field(default_factory=set)

    def holds(self, queue: str) -> bool:
        """Whether this queue must not be run here."""
        return self.all or queue in self.queues


@dataclass(frozen=True, slots=True)
class Plan:
    """How a node works. Times in seconds."""

    scope: str
    concurrency: int
    prefetch: int
    poll_interval: float
    shutdown: float
    session_timeout: float
    job_retention: timedelta
    cleanup_interval: float
    max_job_time: float
    success_mode: SuccessMode | None
    per_queue_suspension: bool
    topics: tuple[Topic, ...]
    pause: Pause

    @property
    def keeps_finished_jobs(self) -> bool:
        """With no retention a job is removed as it ends."""
        return self.job_retention > timedelta(0)
