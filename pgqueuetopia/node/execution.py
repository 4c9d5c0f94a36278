"""One job becomes one outcome, and the outcome what is written."""

import asyncio
import inspect
import math
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

from pgqueuetopia.backoff import doubling
from pgqueuetopia.db.step import Ended
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.failure import FailurePolicy, settle
from pgqueuetopia.job import Job, Seconds, as_delay
from pgqueuetopia.modes import SuccessMode
from pgqueuetopia.node.crew import Crew
from pgqueuetopia.node.outcomes import (
    WITHOUT_RESULT,
    encoded,
    failure_of,
    outcome_of,
    outcome_of_a_stop,
    success_of,
    timed_out,
)
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.processes import ended, stop, watch
from pgqueuetopia.node.progress import Progress
from pgqueuetopia.node.run import Run, Stop, Timeouts
from pgqueuetopia.node.store import Store
from pgqueuetopia.outcome import (
    SUCCEEDED,
    Err,
    Failed,
    Failure,
    Interrupted,
    Launched,
    Outcome,
    Settlement,
    Snoozed,
    Succeeded,
)
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.progress import reporter
from pgqueuetopia.topic_worker import TopicWorker, worker_of
from pgqueuetopia.workers import Workers

log = structlog.get_logger("pgqueuetopia")

HOOK_TIMEOUT = 60
NO_DELAY = timedelta(0)


class Listener(Protocol):
    """Whoever wants to know how a job fares."""

    def begin(self, job: Job) -> bool:
        """The performer is called now, by this thread, unless the answer is that the job may not be ours."""

    def end(self, job: Job, settlement: Settlement, result: str | None) -> Job | None:
        """This is to be written about the job; returns the one that is to be run after it."""


class Execution:
    """Runs jobs, and tells a listener when each begins and what is to be written about it in the end."""

    def __init__(
        self,
        performer: BasePerformer | Workers,
        plan: Plan,
        policy: FailurePolicy,
        repo: Store,
        on_ready: Callable[[], None],
    ) -> None:
        """`on_ready` is called when one of the Workers has become ready."""
        self._crew = Crew(performer, on_ready) if isinstance(performer, Workers) else None
        self._performer: BasePerformer = performer.template if isinstance(performer, Workers) else performer
        self._topics = {topic.name: topic for topic in plan.topics}
        self._made: dict[type[TopicWorker], TopicWorker] = {}
        self.workers = performer.num if isinstance(performer, Workers) else None
        self._policy = policy
        self._repo = repo
        self._max_job_time = plan.max_job_time
        self._success_mode = plan.success_mode
        self._progress = Progress(repo)
        self._threads = anyio.CapacityLimiter(plan.concurrency)
        # By id and claim: a run that ignores its cancellation may still be here when its job runs again.
        self._running: dict[tuple[int, int], Run] = {}
        self._timeouts = Timeouts()

    def count_free(self) -> int | None:
        """How many workers are free; None where there are none to be counted."""
        return self._crew.count_free() if self._crew else None

    async def serve(self) -> None:
        """What goes on beside the jobs, until cancelled: workers get ready, progress is written."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._progress.write_for_ever, name="progress")
            if self._crew is not None:
                tasks.start_soon(self._crew.run, name="workers")

    async def run(self, job: Job, listener: Listener) -> Job | None:
        """Run one job to its end, and those that follow it; returns one that needs a task of its own.

        A task costs a fifth of what a job costs a node. So jobs share one, as long as nobody can tell.
        """
        task = asyncio.current_task()
        assert task is not None, "a job is run by a task"
        while True:
            run = Run(task)
            settlement = await self._settlement(job, run, listener)
            _report(job, settlement)
            following = listener.end(job, settlement, encoded(job, settlement.result))
            if following is None or not run.leaves_no_trace:
                return following
            job = following
            task.set_name(task_name(job))
            try:
                # Others have their turn, too.
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                # What the last one left behind has cancelled its task: this one is not to be lost with it.
                return job

    async def _settlement(self, job: Job, run: Run, listener: Listener) -> Settlement:
        """Run one job; what is to be written about it."""
        settlement = self._policy.died(job)
        if settlement is not None:
            return settlement
        outcome = await self._perform_by_worker(job, run, listener)
        if outcome is WITHOUT_RESULT:
            return SUCCEEDED
        return settle(job, outcome, self._policy, self._delay(job, outcome))

    def interrupt(self) -> None:
        """Cancel every job that runs; their attempts are given back."""
        for run in self._running.values():
            run.stop(Stop.INTERRUPTED)

    def kill(self, job_id: int) -> None:
        """Cancel a job for good, if it runs here: it ends as cancelled. Not a thread: it would go on."""
        for (running, _), run in self._running.items():
            if running == job_id and not run.in_thread:
                run.stop(Stop.KILLED)

    def hook(self, one: Ended) -> Coroutine[Any, Any, None] | None:
        """What is to be called once this outcome has been written: handle_failed_job, or the success mode.

        None where nobody wants to be told. What they raise is logged.
        """
        if one.job is None or one.settlement is None:
            return None
        if one.settlement.failure is not None:
            wanted = self._wants_failures(one.job)
            return self._failed(one.job, one.settlement.failure) if wanted else None
        if one.settlement.outcome == "succeeded" and self._success_mode is not None:
            return self._succeeded(self._success_mode, one.job, one.settlement, one.run_time)
        return None

    def _wants_failures(self, job: Job) -> bool:
        """Not if it is the performer that cannot be made."""
        try:
            return self._performer_of(job).handles_failures
        except Exception:
            return False

    async def _failed(self, job: Job, failure: Failure) -> None:
        try:
            with anyio.fail_after(HOOK_TIMEOUT):
                stored = await self._repo.get_job(job.scope, job.id) or job
                await self._performer_of(job).after_failure(stored, failure)
        except (Exception, SystemExit) as error:
            _tell_exception("handle_failed_job_raised", job, error)

    async def _succeeded(self, mode: SuccessMode, job: Job, settlement: Settlement, run_time: float) -> None:
        try:
            with anyio.fail_after(HOOK_TIMEOUT):
                told = mode(success_of(job, settlement, run_time))
                if inspect.isawaitable(told):
                    await told
        except (Exception, SystemExit) as error:
            _tell_exception("success_mode_raised", job, error)

    async def _perform_by_worker(self, job: Job, run: Run, listener: Listener) -> Outcome:
        """By the performer, or the worker whose turn it is; a job that fails costs its worker."""
        try:
            performer = self._performer_of(job)
        except Exception as error:
            return Failed(failure_of(error))
        if self._crew is None or performer is not self._performer:
            return await self._attempt(job, run, listener, performer)
        try:
            post = self._crew.assign()
        except Exception as error:
            return Failed(failure_of(error))
        if post is None or post.worker is None:
            return Interrupted()
        outcome = await self._attempt(job, run, listener, post.worker)
        self._crew.release(post, keep=isinstance(outcome, Succeeded | Snoozed))
        return outcome

    def _performer_of(self, job: Job) -> BasePerformer:
        """The application's performer, or the worker of a topic that this job was made for."""
        worker = worker_of(job.queue, job.action) if job.topic else None
        if worker is None:
            return self._performer
        if worker not in self._made:
            self._made[worker] = worker()
        return self._made[worker]

    async def _attempt(self, job: Job, run: Run, listener: Listener, performer: BasePerformer) -> Outcome:
        """Call the performer under the job's timeout."""
        self._running[job.id, job.claim] = run
        reporter.set(partial(self._progress.tell, job))
        run.begin()
        try:
            return outcome_of(await self._perform(job, run, listener, performer))
        except asyncio.CancelledError as error:
            # Of a job that has cancelled itself, too: were it raised, its task would end without a word.
            return outcome_of_a_stop(run.stopped, self._limit(job), error)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if run.stopped in (Stop.INTERRUPTED, Stop.KILLED):
                # What it makes of its cancellation is no failure of its own.
                return outcome_of_a_stop(run.stopped, self._limit(job), error)
            return Failed(failure_of(error))
        finally:
            run.end()
            self._timeouts.discard(run)
            del self._running[job.id, job.claim]

    async def _perform(self, job: Job, run: Run, listener: Listener, performer: BasePerformer) -> Any:
        if job.params is None:
            job = replace(job, params=await self._repo.params(job.id))
        method, arguments = performer.bound(job)
        limit = self._limit(job)
        if not _is_async(getattr(method, "__func__", method)):
            run.in_thread = True
            call = partial(method, *arguments)
            value = await self._perform_in_thread(call, job, limit, listener)
            run.in_thread = False
            if inspect.iscoroutine(value):
                # Of an async def behind a decorator that does not say so.
                self._timeouts.add(run, limit)
                value = await value if listener.begin(job) else Interrupted()
        else:
            self._timeouts.add(run, limit)
            value = await method(*arguments) if listener.begin(job) else Interrupted()
        if isinstance(value, Launched):
            self._timeouts.add(run, limit)
            return await self._follow(job, performer, value.handle)
        return value

    async def _follow(self, job: Job, performer: BasePerformer, handle: Any) -> Any:
        """Wait until what the job has launched has ended, and ask what the job has come to."""
        watch(handle)
        try:
            await self._tell(job, "launched")
            value = await _value_of(handle)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await stop(handle)
            raise
        await self._tell(job, "process_completed")
        if type(performer).after_async is not BasePerformer.after_async:
            return await performer.after_async(job, handle)
        if isinstance(value, Exception):
            raise value
        return value

    async def _tell(self, job: Job, event: str) -> None:
        """Have others see how a job fares that has launched something; it goes on if that cannot be told."""
        try:
            await self._repo.tell_launched(job.id, job.claim, event)
        except QueuetopiaError as error:
            log.warning("launch_not_told", job=job.id, queue=job.queue, error=str(error))

    def _limit(self, job: Job) -> float:
        """How many seconds a run may last; 0 for ever."""
        timeout, most = job.timeout.total_seconds(), self._max_job_time
        return min(timeout, most) if timeout and most else timeout or most

    async def _perform_in_thread(
        self, method: Callable[[], Any], job: Job, limit: float, listener: Listener
    ) -> Any:
        """A thread cannot be stopped, and two jobs of a queue must not overlap: wait for it, however late."""

        def call() -> Any:
            return method() if listener.begin(job) else Interrupted()

        began = anyio.current_time()
        value = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        in_time = anyio.current_time() - began <= (limit or math.inf)
        return value if in_time else Err(timed_out(limit).message)

    def _delay(self, job: Job, outcome: Outcome) -> timedelta:
        """The performer's backoff, should the job be tried again."""
        if not isinstance(outcome, Failed):
            return NO_DELAY
        try:
            return as_delay(self._backoff(job))
        except (Exception, SystemExit) as error:
            _tell_exception("backoff_raised", job, error)
            return doubling(job.attempts - 1, job.max_backoff)

    def _backoff(self, job: Job) -> Seconds:
        """The performer's own, if it has one, else its topic's."""
        performer = self._performer_of(job)
        topic = self._topics.get(job.queue) if job.topic else None
        if topic is None or type(performer).backoff is not BasePerformer.backoff:
            return performer.backoff(job)
        return topic.delay(job)


@lru_cache(maxsize=1024)
def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)


async def _value_of(handle: Any) -> Any:
    """What a handle has come to, or the exception that it raised."""
    try:
        return await ended(handle)
    except Exception as error:
        return error


def task_name(job: Job) -> str:
    """Of the task that runs it."""
    return f"job {job.id}"


def _tell_exception(event: str, job: Job, error: BaseException) -> None:
    """Not by exc_info: with it structlog's console shows local values, and so the password of a DSN."""
    log.error(event, job=job.id, queue=job.queue, exception="".join(traceback.format_exception(error)))


def _report(job: Job, settlement: Settlement) -> None:
    if settlement.failure is None:
        return
    event = "job_abandoned" if settlement.outcome else "job_failed"
    log.warning(
        event,
        job=job.id,
        queue=job.queue,
        action=job.action,
        attempt=job.attempts,
        error=settlement.failure.message[:500],
        retry_in=settlement.delay and settlement.delay.total_seconds(),
    )
