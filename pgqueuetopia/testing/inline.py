"""Jobs performed in line, without a node, by what a node performs them with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio

from pgqueuetopia.db.inline import Head, InlineSession
from pgqueuetopia.db.step import Ended, settlement_columns
from pgqueuetopia.errors import JobNotFound, Misconfigured
from pgqueuetopia.job import Job
from pgqueuetopia.node.execution import Execution
from pgqueuetopia.outcome import Settlement
from pgqueuetopia.performer import Performer
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.workers import Workers

# What jobs have as attempted_by.
NODE = "in-line"
MOST_JOBS = 10_000
# In seconds, for the init of a Worker.
WORKER_PATIENCE = 30.0
WITHOUT_END = "Does a job create another one each time?"


async def perform_job(app: Queuetopia, job: Job | int) -> Job:
    """Perform one pending job of this scope now, in this task; returns the job as it is afterwards.

    It is claimed, performed under its timeout and written as by a node: attempts, claim, backoff, errors,
    result, on_exhausted, handle_failed_job. What the performer raises is the job's failure, and is not raised
    here. Unlike a node:

    - it is performed whether it is due or not: schedule, backoff, place in the queue, suspension and
      `disabled` do not count, and a job that is blocked for an operator begins anew, as after `retry`;
    - it is kept when it has ended, even with a `job_retention` of 0;
    - if the caller is cancelled, so is the job, as if its node had been killed: the attempt counts.

    Raises JobNotFound for a job that does not exist, has ended, or whose queue runs at this moment, on a node
    or in line; Misconfigured without a performer.
    """
    async with _in_line(app) as line:
        return await line.perform(job.id if isinstance(job, Job) else job)


async def drain(app: Queuetopia, queue: str | None = None, *, with_scheduled: bool = False) -> list[Job]:
    """Perform the due jobs of this scope, or of one queue, in line, until none is due.

    Returns the jobs that were performed, in this order, each as it was afterwards. A queue keeps its order;
    among the queues the head with the highest priority comes first, then the one due longest. Jobs that are
    created meanwhile are performed, too, if they are due. With `with_scheduled` also those that were stored
    before the call and are scheduled for later or wait for their next attempt, in the order of their times.

    A job is performed once at most: one that has failed or snoozed holds its queue up until the next call,
    however soon it is due. Passed over is what is suspended (also locally), what waits for an operator, and
    what runs on a node at this moment. All else is as with `perform_job`.

    Raises AssertionError after 10,000 jobs, if jobs create others without end; Misconfigured without a
    performer.
    """
    performed: list[Job] = []
    passed: set[str] = set()
    async with _in_line(app) as line:
        newest = await line.session.newest() if with_scheduled else 0
        while head := await line.next_head(queue, passed, newest):
            if len(performed) == MOST_JOBS:
                raise AssertionError(f"{MOST_JOBS:,} jobs were performed, and more are due. {WITHOUT_END}")
            job = await line.perform_if_free(head.job)
            if job is not None:
                performed.append(job)
            if job is None or job.done_at is None:
                passed.add(head.queue)
    return performed


class _Line:
    """Performs jobs of one Queuetopia, one at a time."""

    def __init__(self, app: Queuetopia, execution: Execution, session: InlineSession) -> None:
        self.session = session
        self._app = app
        self._execution = execution

    async def next_head(self, queue: str | None, passed: set[str], newest: int) -> Head | None:
        """The head to be performed next."""
        pause = self._app._pause
        return None if pause.all else await self.session.next_head(queue, passed | pause.queues, newest)

    async def perform_if_free(self, job_id: int) -> Job | None:
        """Perform a job, unless somebody else does."""
        with suppress(JobNotFound):
            return await self.perform(job_id)
        return None

    async def perform(self, job_id: int) -> Job:
        """Claim a job, run it, and write what became of it."""
        app, listener = self._app, _Listener()
        app._take_configs(await app.repo.configs(app.scope))
        async with self.session.claimed(job_id) as job:
            await self._execution.run(job, listener)
            columns = settlement_columns(listener.ended, NODE)
            saved = await app.repo.persist(app.scope, NODE, columns, keep=True)
        for one in listener.ended if saved else ():
            if (hook := self._execution.hook(one)) is not None:
                await hook
        return await app.repo.get_job(app.scope, job_id) or job


class _Listener:
    """Hears what became of a job."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self._begun = anyio.current_time()

    def begin(self, job: Job) -> bool:
        """Nobody else can have it."""
        return True

    def end(self, job: Job, settlement: Settlement, result: str | None) -> None:
        """Keep it until it is written; nothing follows."""
        run_time = anyio.current_time() - self._begun
        self.ended.append(Ended(job.queue, job, settlement, result, run_time=run_time))


@asynccontextmanager
async def _in_line(app: Queuetopia) -> AsyncIterator[_Line]:
    if app.performer is None:
        raise Misconfigured(
            f"{type(app).__name__} needs a performer to perform jobs: performer = MyPerformer()"
        )
    ready = anyio.Event()
    failure: Exception | None = None
    execution = Execution(_one(app.performer), app._plan(), app._policy(), app.repo, ready.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execution.serve)
        try:
            async with InlineSession.opened(app.repo.session_dsn, app.scope, NODE) as session:
                if isinstance(app.performer, Workers):
                    with anyio.fail_after(WORKER_PATIENCE):
                        await ready.wait()
                yield _Line(app, execution, session)
        except Exception as error:
            # Not in a group, as the task group would have it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _one(performer: Performer | Workers) -> Performer | Workers:
    return replace(performer, num=1) if isinstance(performer, Workers) else performer
