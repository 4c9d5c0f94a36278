"""What operators do with the jobs of a scope."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import anyio

from pgqueuetopia.db.replies import Replies
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import InvalidJob, JobNotFound, NoReply
from pgqueuetopia.job import (
    LARGEST_ID,
    STATES,
    Job,
    Page,
    Seconds,
    integer_faults,
    name_faults,
)
from pgqueuetopia.options import as_duration, refuse
from pgqueuetopia.outcome import Reply
from pgqueuetopia.status import BlockedQueue, Cancelled, Status, workers_of
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.together import job_faults

FILTER_PAGE = 1_000
# What has not ended, in whatever state.
PENDING = "pending"
FIELDS = frozenset(one.name for one in fields(Job))
# Of how many jobs that run status tells who runs them.
MOST_EXECUTING = 1_000
# In seconds: how long a job that is killed has to end, and how often it is looked at, less and less.
KILL_PATIENCE = 5.0
KILL_LOOK = 0.02
LONGEST_KILL_LOOK = 0.25


class Operations:
    """Looking at jobs, and deciding about them by hand."""

    repo: Repo
    scope: str
    table_queues: Sequence[TableQueue] = ()
    _replies: Replies

    async def status(self, queue: str | None = None) -> Status:
        """The pending jobs of this scope, or of one queue, by state; suspension; nodes and workers."""
        counts = await self.repo.status(self.scope, queue)
        nodes = await self.repo.nodes(self.scope)
        executing = await self.repo.executing_jobs(self.scope, MOST_EXECUTING)
        return Status(
            scope=self.scope,
            queue=queue,
            suspended=await self.repo.suspended(self.scope, queue),
            nodes=tuple(nodes),
            workers=workers_of(nodes, executing, queue),
            **counts,
        )

    async def blocked_queues(self, *, limit: int = 100) -> list[BlockedQueue]:
        """The queues whose head has failed and waits, those blocked longest first. Raises Misconfigured."""
        refuse(integer_faults("limit", limit, least=1))
        return [BlockedQueue(**row) for row in await self.repo.blocked_queues(self.scope, limit)]

    async def get_job(self, job: Job | int) -> Job:
        """A job as it is now. Raises JobNotFound, or InvalidJob for what is neither a Job nor an id."""
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

        `state` is a Job's state, or pending: all that have not ended; `search` finds text in queue, action
        and params (case counts). Raises Misconfigured for another state, and for numbers that cannot be.
        """
        refuse(_state_faults(state))
        refuse(integer_faults("limit", limit, least=1))
        refuse(integer_faults("after", after, least=0, most=LARGEST_ID))
        filters = (queue, action, state, search or None)
        jobs = await self.repo.list_jobs(self.scope, *filters, after=after, limit=limit + 1)
        total = await self.repo.count_jobs(self.scope, *filters)
        return Page(jobs[:limit], total, jobs[limit - 1].id if len(jobs) > limit else None)

    async def filter(
        self, queue: str | None, condition: Callable[[Job], object] | Mapping[str, Any] | str
    ) -> AsyncIterator[Job]:
        """The jobs of a queue, or of all, that meet a condition, in the order of creation (Honeydew).

        A function of the job, or a dict of its fields (`params` and other dicts match as a subset): jobs that
        have not ended, running ones included. A string: jobs in that state ("abandoned"). They are read
        a thousand at a time, so no queue is too long. Raises Misconfigured for a state or a field that no
        job has.
        """
        refuse(_condition_faults(condition))
        state = condition if isinstance(condition, str) else PENDING
        after: int | None = 0
        while after is not None:
            filters = (queue, None, state, None)
            page = await self.repo.list_jobs(self.scope, *filters, after=after, limit=FILTER_PAGE)
            for job in page:
                if isinstance(condition, str) or _meets(job, condition):
                    yield job
            after = page[-1].id if len(page) == FILTER_PAGE else None

    async def reply(self, job: Job | int, *, timeout: Seconds = 5) -> Reply | None:
        """What became of a job created with `reply=True`: the reply after the one that was read last.

        One for each attempt that tells something, in order: Ok(result), Retrying(error), Moved(queue) or
        Err(error) (Honeydew's yield); None after `timeout` seconds, with 0 at once if none is there. Any
        process may ask; each instance begins with the first reply. Replies are kept as long as the job is, an
        hour at least. Raises NoReply, JobNotFound, DatabaseUnavailable, and Misconfigured for a timeout that
        cannot be.
        """
        patience = as_duration("timeout", timeout).total_seconds()
        found = job if isinstance(job, Job) else await self.get_job(job)
        if not found.reply:
            raise NoReply(f"Job {found.id} has no replies: create it with create_job(..., reply=True).")
        return await self._replies.next(found.moved_from or found.id, patience)

    async def cancel(self, job: Job | int, *, kill: bool = False) -> Cancelled:
        """End a job that has not ended and does not run: OK, IN_PROGRESS or NOT_FOUND.

        With `kill` a job that runs is stopped, on whichever node, and ends as cancelled: OK once it has
        ended, IN_PROGRESS after five seconds (a thread cannot be stopped).
        """
        told = Cancelled(await self.repo.end_job(self.scope, _id(job), "cancelled"))
        if told is Cancelled.IN_PROGRESS and kill:
            return await self._kill(_id(job))
        return told

    async def _kill(self, job_id: int) -> Cancelled:
        """Again and again, for it may be about to start, or to be given back."""
        pause = KILL_LOOK
        with anyio.move_on_after(KILL_PATIENCE):
            while await self.repo.end_job(self.scope, job_id, "cancelled") == Cancelled.IN_PROGRESS:
                await self.repo.kill_job(job_id)
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_KILL_LOOK)
            job = await self.repo.get_job(self.scope, job_id)
            return Cancelled.OK if job is None or job.outcome == "cancelled" else Cancelled.NOT_FOUND
        return Cancelled.IN_PROGRESS

    async def move(self, job: Job | int, queue: str) -> Job:
        """Have a job run at the end of another queue instead; one that has ended runs again (Honeydew).

        Returns the new job: the old one ends as moved, and its replies go on. Raises InvalidJob for a queue
        that cannot be, JobNotFound for a job that is not there or that runs.
        """
        if faults := [*name_faults("queue", queue), *job_faults(self.table_queues, queue)]:
            raise InvalidJob(faults)
        moved, why_not = await self.repo.move_job(self.scope, _id(job), queue)
        if moved is None:
            raise JobNotFound(
                f"Job {_id(job)} of scope {self.scope!r} cannot be moved: "
                + (
                    "it runs; cancel it with kill=True first."
                    if why_not == "IN_PROGRESS"
                    else "it is not there."
                )
            )
        return await self.get_job(moved)

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


def _state_faults(state: object) -> Iterator[str]:
    if state is not None and state not in (*STATES, PENDING):
        yield f"A job is {', '.join(STATES)}, or {PENDING}; there is no state {state!r}"


def _condition_faults(condition: object) -> Iterator[str]:
    if isinstance(condition, Mapping):
        if unknown := sorted(condition.keys() - FIELDS):
            yield f"A job has no {', '.join(unknown)}; it has: {', '.join(sorted(FIELDS))}"
    elif isinstance(condition, str):
        yield from _state_faults(condition)
    elif not callable(condition):
        yield f"a condition is a function, a dict or a state, not {type(condition).__name__}"


def _meets(job: Job, condition: Callable[[Job], object] | Mapping[str, Any]) -> bool:
    if callable(condition):
        return bool(condition(job))
    return all(_matches(getattr(job, name, None), wanted) for name, wanted in condition.items())


def _matches(value: object, wanted: object) -> bool:
    """Whether they are equal; of a dict, whether it has at least what is wanted."""
    if isinstance(wanted, Mapping) and isinstance(value, dict):
        return all(name in value and _matches(value[name], item) for name, item in wanted.items())
    return value == wanted


def _id(job: Job | int) -> int:
    number = job.id if isinstance(job, Job) else job
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidJob([f"job must be a Job or its id, not {number!r}"])
    # What the database cannot hold is no job's id, and neither is the largest that it can.
    return max(-LARGEST_ID, min(number, LARGEST_ID))
