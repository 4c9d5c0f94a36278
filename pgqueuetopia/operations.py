"""What operators do with the jobs of a scope."""

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import JobNotFound
from pgqueuetopia.job import Job, Page
from pgqueuetopia.status import BlockedQueue, Cancelled, Status


class Operations:
    """Looking at jobs, and deciding about them by hand."""

    repo: Repo
    scope: str

    async def status(self, queue: str | None = None) -> Status:
        """The pending jobs of this scope, or of one queue, counted by state; suspension; the nodes."""
        counts = await self.repo.status(self.scope, queue)
        return Status(
            scope=self.scope,
            queue=queue,
            suspended=await self.repo.suspended(self.scope, queue),
            nodes=tuple(await self.repo.nodes(self.scope)),
            **counts,
        )

    async def blocked_queues(self, *, limit: int = 100) -> list[BlockedQueue]:
        """The queues whose head has failed and waits, those blocked longest first."""
        return [BlockedQueue(**row) for row in await self.repo.blocked_queues(self.scope, limit)]

    async def get_job(self, job: Job | int) -> Job:
        """A job as it is now. Raises JobNotFound."""
        found = await self.repo.get_job(self.scope, _id(job))
        if found is None:
            raise JobNotFound(f"Scope {self.scope!r} has no job {_id(job)}.")
        return found

    async def list_jobs(
        self,
        *,
        queue: str | None = None,
        action: str | None = None,
        state: str | None = None,
        search: str | None = None,
        limit: int = 100,
        after: int = 0,
    ) -> Page:
        """A page of this scope's jobs in the order of creation; `after` is the `next` of the page before.

        `state` is a Job's state; `search` finds text in queue, action and params (case counts).
        """
        filters = (queue, action, state, search or None)
        jobs = await self.repo.list_jobs(self.scope, *filters, after=after, limit=limit + 1)
        total = await self.repo.count_jobs(self.scope, *filters)
        return Page(jobs[:limit], total, jobs[limit - 1].id if len(jobs) > limit else None)

    async def cancel(self, job: Job | int) -> Cancelled:
        """End a job that has not ended and does not run: OK, IN_PROGRESS or NOT_FOUND."""
        return Cancelled(await self.repo.end_job(self.scope, _id(job), "cancelled"))

    async def abandon(self, job: Job | int) -> Cancelled:
        """Give a job up: its queue goes on with the next. OK, IN_PROGRESS or NOT_FOUND."""
        return Cancelled(await self.repo.end_job(self.scope, _id(job), "abandoned"))

    async def retry(self, job: Job | int) -> None:
        """Have a job run now that waits for its next attempt, or one that has ended run again, in its place.

        Its attempts are counted anew. Raises JobNotFound for a job that runs, or has never failed.
        """
        if not await self.repo.retry_jobs(self.scope, _id(job), None):
            raise JobNotFound(
                f"Scope {self.scope!r} has no job {_id(job)} that waits for an attempt or has ended."
            )

    async def retry_all(self, queue: str | None = None) -> int:
        """Have every job run now that waits for its next attempt; returns how many."""
        return await self.repo.retry_jobs(self.scope, None, queue)


def _id(job: Job | int) -> int:
    return job.id if isinstance(job, Job) else job
