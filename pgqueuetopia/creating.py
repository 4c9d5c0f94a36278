"""Creating jobs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from pgqueuetopia.db.driver import AnyConnection
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.sharing import SharedCommits
from pgqueuetopia.errors import InvalidJob, Misconfigured
from pgqueuetopia.job import NO_TOPIC, Defaults, Job, JobRow, NewJob, Seconds, checked
from pgqueuetopia.modes import FailureMode, stored
from pgqueuetopia.performer import Performer
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.together import job_faults
from pgqueuetopia.topic_worker import worker_of
from pgqueuetopia.workers import Workers


class Creating:
    """What whoever has work to give does with a Queuetopia."""

    repo: Repo
    scope: str
    performer: Performer | Workers | None = None
    _shared: SharedCommits
    _defaults: Mapping[str, Defaults]
    table_queues: Sequence[TableQueue] = ()

    async def create_job(
        self,
        queue: str,
        action: str,
        params: Mapping[str, Any] | BaseModel | None = None,
        *,
        scheduled_at: datetime | timedelta | None = None,
        timeout: Seconds = 60,
        max_backoff: Seconds = 86_400,
        max_attempts: int | None = None,
        priority: int | None = None,
        failure_mode: FailureMode | None = None,
        reply: bool = False,
        conn: AnyConnection | None = None,
    ) -> Job:
        """Store a job; its queue exists from then on. Returns the job as stored.

        `scheduled_at` is an aware datetime or a timedelta from now; `timeout` (0: none) and `max_backoff`
        are seconds or timedelta; `max_attempts` counts all runs (20, or the topic's); `priority` is 0, or
        the topic's. `failure_mode` (Abandon, Move, Retry or ExponentialRetry) is the job's own; with
        `reply` it can be asked for replies. With `conn` the job is part of the caller's transaction:
        rolled back, it never existed. Without it, what other tasks of this process create at the same
        time is committed together, in the order of the calls. Raises InvalidJob, before anything is sent,
        with all that is wrong; NotMigrated, AccessDenied, DatabaseUnavailable.
        """
        job = NewJob(
            queue,
            action,
            params if params is not None else {},
            scheduled_at,
            timeout,
            max_backoff,
            max_attempts,
            priority,
            failure_mode,
            reply,
        )
        row = self._checked(job)
        if conn is None:
            return await self._shared.create(row)
        return await self.repo.create_job(self.scope, row, conn)

    async def try_create_job(self, *arguments: Any, **options: Any) -> Job | InvalidJob:
        """create_job that returns InvalidJob instead of raising it (PgQueuetopia's create_job)."""
        try:
            return await self.create_job(*arguments, **options)
        except InvalidJob as error:
            return error

    async def create_jobs(
        self, jobs: Iterable[NewJob | Mapping[str, Any]], *, conn: AnyConnection | None = None
    ) -> list[Job]:
        """Store many jobs in one statement, all or nothing, in the order given.

        Each is a NewJob or a dict of create_job's arguments. Raises InvalidJob with the faults of all.
        """
        rows, faults = [], []
        for index, given in enumerate(jobs):
            try:
                rows.append(self._checked(_new_job(given)))
            except InvalidJob as error:
                faults += [f"job {index}: {fault}" for fault in error.faults]
        if faults:
            raise InvalidJob(faults)
        return await self.repo.create_jobs(self.scope, rows, conn) if rows else []

    def _checked(self, job: NewJob) -> JobRow:
        if faults := list(job_faults(self.table_queues, job.queue, job.failure_mode)):
            raise InvalidJob(faults)
        defaults = self._defaults_of(job.queue)
        is_workers_own = defaults.topic and worker_of(job.queue, job.action) is not None
        return checked(_storable(job), _no_refusal if is_workers_own else self._refusal, defaults)

    def _defaults_of(self, queue: object) -> Defaults:
        return self._defaults.get(queue, NO_TOPIC) if isinstance(queue, str) else NO_TOPIC

    def _refusal(self, action: str, params: object) -> list[str]:
        return [] if self.performer is None else self.performer.faults(action, params)


def _no_refusal(action: str, params: object) -> list[str]:
    return []


def _new_job(given: NewJob | Mapping[str, Any]) -> NewJob:
    if isinstance(given, NewJob):
        return given
    try:
        return NewJob(**given)
    except TypeError as error:
        raise InvalidJob([str(error).replace("NewJob.__init__() ", "")]) from None


def _storable(job: NewJob) -> NewJob:
    """The same job, its failure mode as it is stored."""
    if job.failure_mode is None:
        return job
    try:
        return replace(job, failure_mode=stored(job.failure_mode))
    except Misconfigured as error:
        raise InvalidJob([f"failure_mode: {error}"]) from None
