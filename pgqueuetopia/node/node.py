"""A running node: what it runs, how it comes back after a lost session, and how it leaves."""

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

import anyio
import anyio.abc
import structlog

from pgqueuetopia.db.hearing import Told, nobody
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, settlement_columns
from pgqueuetopia.dispatching import LRUNode
from pgqueuetopia.errors import DatabaseUnavailable, QueuetopiaError
from pgqueuetopia.failure import FailurePolicy
from pgqueuetopia.job import Job
from pgqueuetopia.node.bell import Bell
from pgqueuetopia.node.cleaner import clean_for_ever
from pgqueuetopia.node.execution import Execution, Listener, task_name
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.room import Room
from pgqueuetopia.node.scheduler import Scheduler
from pgqueuetopia.node.stalls import report_stalls
from pgqueuetopia.node.tables import Tables
from pgqueuetopia.node.turns import Turns
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.workers import Workers

log = structlog.get_logger("pgqueuetopia")

# In seconds: what a cancelled job has to come to its end, and how long to wait between two connections.
GRACE = 5.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0

Configs = list[tuple[str, str, str]]


class Node:
    """One node of a Queuetopia."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        repo: Repo,
        performer: BasePerformer | Workers,
        policy: FailurePolicy,
        on_configs: Callable[[Configs], None],
        tables: Tables,
    ) -> None:
        self.name = name
        self._tables = tables
        self._plan = plan
        self._repo = repo
        self._on_configs = on_configs
        self._bell = Bell()
        self._configs_changed = True
        self._left = anyio.Event()
        self._leaving = anyio.Event()
        self._scheduler: Scheduler | None = None
        self._unsaved: list[Ended] = []
        self._execution = Execution(performer, plan, policy, repo, self._bell.ring)
        self._turns = Turns(repo, plan.scope, name) if _takes_turns(performer) else None
        self._log = log.bind(scope=plan.scope, node=name)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Everything that a node runs, until it has left; started once its first session is open.

        From then on only leave() ends it: who is cancelled leaves in order, too.
        """
        try:
            await self._tables.check()
            session = await self._first_session()
            with anyio.CancelScope(shield=True):
                await self._live(session, task_status)
        finally:
            self._left.set()

    async def _live(self, session: Session | None, task_status: anyio.abc.TaskStatus[None]) -> None:
        # A job's task is asyncio's own: anyio's start_soon costs six times as much, 26 µs of a job's time.
        async with asyncio.TaskGroup() as jobs, anyio.create_task_group() as tasks:
            tasks.start_soon(clean_for_ever, self._repo, self._plan, name="cleaner")
            tasks.start_soon(report_stalls, self._log, name="stalls")
            tasks.start_soon(self._execution.serve, name="workers and progress")
            tasks.start_soon(self._tables.run, name="table queues")
            if self._turns is not None:
                tasks.start_soon(self._turns.keep_company, name="company")
            self._log.info("node_started")
            task_status.started()
            while session is not None:
                await self._serve(session, jobs)
                session = None if self._leaving.is_set() else await self._next_session()
                await self._save_late()
            await self._tables.end()
            tasks.cancel_scope.cancel()
            self._log.info("node_left")

    async def leave(self) -> None:
        """Claim nothing more, let the jobs end for `shutdown` seconds, cancel the rest, and go."""
        if self._leaving.is_set():
            await self._left.wait()
            return
        self._leaving.set()
        self._tables.leave()
        if self._scheduler is not None:
            self._scheduler.leaving = True
        self._bell.ring()
        with anyio.move_on_after(self._plan.shutdown):
            await self._left.wait()
        if not self._left.is_set():
            self.hurry()
            with anyio.move_on_after(GRACE):
                await self._left.wait()
            self._lose()
            await self._left.wait()

    def hurry(self) -> None:
        """Cancel what runs; it counts as interrupted, not as failed, and runs again first."""
        if self._scheduler is not None and self._scheduler.held.running:
            self._log.warning("jobs_interrupted", queues=len(self._scheduler.held.running))
        self._execution.interrupt()
        self._tables.interrupt()

    def wake(self) -> None:
        """Look now: something that the database does not tell has changed."""
        self._bell.ring()
        self._tables.wake()

    async def _first_session(self) -> Session | None:
        """Wait for the database; what an operator must mend is raised."""
        try:
            return await self._connect()
        except DatabaseUnavailable as error:
            self._log.warning("database_unavailable", error=str(error))
            return await self._next_session(patient=False)

    async def _next_session(self, *, patient: bool = True) -> Session | None:
        """Connect again and again, until it works or the node leaves."""
        pause, told = FIRST_PAUSE, ""
        while not self._leaving.is_set():
            try:
                return await self._connect()
            except QueuetopiaError as error:
                if not (patient or isinstance(error, DatabaseUnavailable)):
                    raise
                if str(error) != told:
                    told = str(error)
                    self._log.warning("cannot_resume", error=told)
            with anyio.move_on_after(pause * random.uniform(0.5, 1.0)):
                await self._leaving.wait()
            pause = min(pause * 2, LONGEST_PAUSE)
        return None

    async def _connect(self) -> Session:
        self._configs_changed = True
        session = await Session.open(
            self._repo.session_dsn,
            self._plan.scope,
            self.name,
            Told(
                jobs=self._bell.ring,
                join=self._join,
                lost=self._bell.ring,
                config=self._hear_config,
                kill=self._execution.kill,
                turn=self._turns.took if self._turns else nobody,
            ),
            timeout=self._plan.session_timeout,
            workers=self._execution.workers,
        )
        try:
            self._on_configs(await session.configs())
        except BaseException:
            session.abort()
            raise
        return session

    async def _serve(self, session: Session, jobs: asyncio.TaskGroup) -> None:
        """Run jobs until the node leaves or the session is lost."""
        scheduler = self._scheduler = Scheduler(
            session,
            self._plan,
            Room(self._plan.concurrency, self._count_free),
            self._bell,
            start=lambda job: self._start(jobs, job, scheduler.held),
            on_saved=partial(self._after_save, jobs),
            before_step=self._check,
        )
        scheduler.leaving = self._leaving.is_set()
        try:
            await scheduler.run()
        except QueuetopiaError as error:
            self._log.warning("session_lost", error=str(error), running=len(scheduler.held.running))
            session.abort()
            await self._end_without_session(scheduler)
        except BaseException:
            session.abort()
            raise
        else:
            await session.close()

    async def _check(self, session: Session) -> None:
        """Before each step: is the session alive, and are the settings those in force?"""
        if session.lost:
            raise DatabaseUnavailable("The node's session has ended.")
        if self._configs_changed:
            self._configs_changed = False
            self._on_configs(await session.configs())
        if self._turns is not None and not self._has_news:
            await self._turns.stand_back(self._bell)

    @property
    def _has_news(self) -> bool:
        """Whether there are outcomes to be written."""
        return self._scheduler is not None and bool(self._scheduler.held.ended)

    def _count_free(self) -> int | None:
        """How many jobs there is a free worker for, if that counts; who takes turns takes one at a time."""
        free = self._execution.count_free()
        return min(free, 1) if free is not None and self._turns and self._turns.in_company else free

    async def _end_without_session(self, scheduler: Scheduler) -> None:
        """The locks are gone: stop what runs, and write what has ended if it is still ours."""
        scheduler.leaving = True
        self._execution.interrupt()
        with anyio.move_on_after(GRACE):
            while scheduler.held.running:
                await self._bell.wait(GRACE)
        if scheduler.held.running:
            self._log.error(
                "jobs_ignore_cancellation",
                queues=sorted(hold.job.queue for hold in scheduler.held.running.values())[:10],
            )
        self._unsaved += [one for one in scheduler.held.ended if one.job is not None]
        await self._save_late()

    async def _save_late(self) -> None:
        """Write through the pool what ended without a session; what cannot be written now, later."""
        if not self._unsaved:
            return
        ended, self._unsaved = self._unsaved, []
        try:
            saved = await self._persist(ended)
        except (DatabaseUnavailable, TimeoutError) as error:
            self._unsaved = ended
            self._log.warning("outcomes_unsaved", jobs=len(ended), error=str(error))
        except QueuetopiaError as error:
            self._log.error("outcomes_lost", jobs=len(ended), error=str(error))
        else:
            self._log.info("outcomes_saved_late", saved=saved, jobs=len(ended))

    async def _persist(self, ended: list[Ended]) -> int:
        with anyio.fail_after(GRACE):
            columns = settlement_columns(ended, self.name)
            keep = self._plan.keeps_finished_jobs
            return len(await self._repo.persist(self._plan.scope, self.name, columns, keep=keep))

    def _start(self, jobs: asyncio.TaskGroup, job: Job, listener: Listener) -> None:
        jobs.create_task(self._run(jobs, job, listener), name=task_name(job))
        if self._turns is not None:
            self._turns.took(self.name)
            jobs.create_task(self._turns.tell(), name="turn")

    async def _run(self, jobs: asyncio.TaskGroup, job: Job, listener: Listener) -> None:
        context = copy_context()
        following = await self._execution.run(job, listener)
        if following is not None:
            # In the context that this one began with.
            context.run(self._start, jobs, following, listener)

    def _after_save(self, jobs: asyncio.TaskGroup, one: Ended) -> None:
        if (hook := self._execution.hook(one)) is not None:
            jobs.create_task(hook, name=f"hook of {one.job and one.job.id}")

    def _hear_config(self, key: str) -> None:
        self._configs_changed = True
        self._bell.ring()

    def _join(self) -> None:
        if self._turns is not None:
            self._turns.join()
        if self._scheduler is not None:
            self._scheduler.join()

    def _lose(self) -> None:
        """Go on as if the session had ended."""
        self._tables.give_up()
        if self._scheduler is not None:
            self._scheduler.session.lost = True
        self._bell.ring()


def _takes_turns(performer: BasePerformer | Workers) -> bool:
    return isinstance(performer, Workers) and isinstance(performer.dispatcher, LRUNode)
