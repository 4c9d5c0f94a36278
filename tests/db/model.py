"""What the queues of two nodes should do, in a few lines: the tests compare the database with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class ModelJob:
    """A job, scheduled so many hours from now; one that has been started comes first in its queue."""

    id: int
    queue: str
    hours: int
    waits: bool = False
    due: bool = False
    attempts: int = 0
    claim: int = 0
    node: str | None = None
    outcome: str | None = None
    orphaned: bool = False

    @property
    def place(self) -> tuple[bool, int, int]:
        return (not self.waits, self.hours, self.id)


@dataclass
class Model:
    """All jobs, and what is suspended: queues, or None for everything."""

    jobs: dict[int, ModelJob] = field(default_factory=dict)
    suspended: set[str | None] = field(default_factory=set)

    def create(self, job_id: int, queue: str, hours: int) -> None:
        self.jobs[job_id] = ModelJob(job_id, queue, hours, due=hours <= 0)

    def renew(self, job: ModelJob) -> None:
        self.jobs[job.id] = ModelJob(job.id, job.queue, job.hours, due=job.hours <= 0, claim=job.claim + 1)

    def pending(self) -> Iterable[ModelJob]:
        return (job for job in self.jobs.values() if job.outcome is None)

    def running(self, node: str) -> list[ModelJob]:
        return [job for job in self.pending() if job.node == node]

    def wait(self, job: ModelJob, *, due: bool) -> None:
        job.waits, job.due, job.node, job.orphaned = True, due, None, False

    def claim(self, node: str) -> list[int]:
        """Start what `node` must start now; returns the jobs."""
        heads: dict[str, ModelJob] = {}
        for job in sorted(self.pending(), key=lambda job: job.place):
            heads.setdefault(job.queue, job)
        busy = {job.queue for job in self.pending() if job.node} | self.suspended
        claimed = [job for job in heads.values() if job.due and job.queue not in busy and None not in busy]
        for job in claimed:
            job.node, job.waits = node, False
            job.attempts, job.claim = job.attempts + 1, job.claim + 1
        return sorted(job.id for job in claimed)

    def kill(self, node: str) -> None:
        for job in self.running(node):
            job.node, job.orphaned = None, True

    def rescue(self) -> list[ModelJob]:
        """Have what a dead node ran wait for a moment."""
        if None in self.suspended:
            return []
        orphans = [job for job in self.pending() if job.orphaned]
        for job in orphans:
            self.wait(job, due=False)
        return orphans
