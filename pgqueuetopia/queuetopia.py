"""Queuetopia, the public face: create jobs, run nodes, pause, look and operate."""

import inspect
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import anyio
import structlog
from pydantic import BaseModel

from pgqueuetopia import options
from pgqueuetopia.db.configs import Configs, merged
from pgqueuetopia.db.driver import AnyConnection
from pgqueuetopia.db.replies import Replies
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.sharing import SharedCommits
from pgqueuetopia.errors import InvalidJob, Misconfigured, NoReply
from pgqueuetopia.failure import FailurePolicy, OnExhausted
from pgqueuetopia.job import Job, NewJob, Seconds, as_timedelta, checked
from pgqueuetopia.modes import FailureMode, SuccessMode, stored
from pgqueuetopia.node.leaving import until_told_to_stop
from pgqueuetopia.node.node import Node
from pgqueuetopia.node.plan import Pause, Plan
from pgqueuetopia.operations import Operations
from pgqueuetopia.outcome import Reply
from pgqueuetopia.performer import Performer
from pgqueuetopia.settings import Settings

log = structlog.get_logger("pgqueuetopia")

DRAINED_LOOK = 0.05


class Queuetopia(Operations):
    """Subclass it with a `repo` and a `performer`; the class's name is its scope on the database.

    Every setting can be a class attribute or an argument of the constructor: `repo`, `performer`, `scope`,
    `settings` (a Settings of yours, kept in step with job_configs) and those of `options.Options`. Raises
    Misconfigured for a setting that is unknown or cannot work.
    """

    performer: Performer | None = None
    settings: Settings = Settings()

    poll_interval: Seconds = 60
    concurrency: int = 100
    on_exhausted: OnExhausted = "abandon"
    job_retention: Seconds = timedelta(days=7)
    cleanup_interval: Seconds = 600
    shutdown: Seconds = 30
    session_timeout: Seconds = 15
    disabled: bool = False
    failure_mode: FailureMode | None = None
    failure_modes: Mapping[str, FailureMode] = MappingProxyType({})
    success_mode: SuccessMode | None = None
    max_job_time: Seconds = 0
    retry_seconds: Seconds = 0

    def __init__(self, **given: Any) -> None:
        self._set(given)
        self._options = options.Options(**{name: self._option(name) for name in options.NAMES})
        options.check(type(self).__name__, self.scope, self._options)
        self.configs = Configs(self.repo, self.scope, type(self.settings), self._take_configs)
        self._shared = SharedCommits(partial(self.repo.create_jobs, self.scope))
        self._replies = Replies(self.repo)
        self._pause = Pause()
        self._nodes: list[Node] = []
        self._log = log.bind(scope=self.scope)

    def _set(self, given: Mapping[str, Any]) -> None:
        known = {"repo", "performer", "scope", "settings", *options.NAMES}
        if unknown := sorted(given.keys() - known):
            raise Misconfigured(f"Unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        for name, value in given.items():
            setattr(self, name, value)
        if not hasattr(self, "scope"):
            self.scope = type(self).__name__
        if not hasattr(self, "repo"):
            self.repo = Repo()
        if isinstance(self.settings, type):
            self.settings = self.settings()

    # Creating

    async def create_job(
        self,
        queue: str,
        action: str,
        params: Mapping[str, Any] | BaseModel | None = None,
        *,
        scheduled_at: datetime | timedelta | None = None,
        timeout: Seconds = 60,
        max_backoff: Seconds = 86_400,
        max_attempts: int = 20,
        priority: int = 0,
        failure_mode: FailureMode | None = None,
        reply: bool = False,
        conn: AnyConnection | None = None,
    ) -> Job:
        """Store a job; its queue exists from then on. Returns the job as stored.

        `scheduled_at` is an aware datetime or a timedelta from now; `timeout` (0: none) and `max_backoff` are
        seconds or timedelta; `max_attempts` counts all runs. `failure_mode` (Abandon, Move, Retry or
        ExponentialRetry) is the job's own; with `reply` it can be asked for replies. With `conn` the job is
        part of the caller's transaction: rolled back, it never existed. Without it, what other tasks of this
        process create at the same time is committed together, in the order of the calls. Raises InvalidJob,
        before anything is sent, with all that is wrong; NotMigrated, AccessDenied, DatabaseUnavailable.
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
        row = checked(_storable(job), self._refusal)
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
                rows.append(checked(_storable(_new_job(given)), self._refusal))
            except InvalidJob as error:
                faults += [f"job {index}: {fault}" for fault in error.faults]
        if faults:
            raise InvalidJob(faults)
        return await self.repo.create_jobs(self.scope, rows, conn) if rows else []

    async def reply(self, job: Job | int, *, timeout: Seconds = 5) -> Reply | None:
        """What became of a job created with `reply=True`: the reply after the one that was read last.

        One for each attempt that tells something, in order: Ok(result), Retrying(error), Moved(queue) or
        Err(error) (Honeydew's yield); None after `timeout` seconds. Any process may ask; each instance begins
        with the first reply. Replies are kept as long as the job is, an hour at least. Raises NoReply,
        JobNotFound, DatabaseUnavailable.
        """
        found = job if isinstance(job, Job) else await self.get_job(job)
        if not found.reply:
            raise NoReply(f"Job {found.id} has no replies: create it with create_job(..., reply=True).")
        return await self._replies.next(found.moved_from or found.id, as_timedelta(timeout).total_seconds())

    def _refusal(self, action: str, params: object) -> list[str]:
        return self.performer.faults(action, params) if self.performer else []

    # Running

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run a node in the background; at the end it leaves gracefully.

        Raises NotMigrated, AccessDenied or Misconfigured where it cannot start; waits for a database that
        cannot be reached yet.
        """
        if self.disabled:
            yield self
            return
        failure: Exception | None = None
        node = self._new_node()
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(node.run, name=f"node {node.name}")
                self._nodes.append(node)
                yield self
            except Exception as error:
                failure = error
            finally:
                await self._leave(node)
        if failure is not None:
            raise failure

    async def run(self) -> None:
        """Run a node until SIGTERM, SIGINT or cancelled; a second signal cancels the jobs at once."""
        async with until_told_to_stop(self._hurry) as told, self.running():
            await told.wait()

    async def _leave(self, node: Node) -> None:
        if node in self._nodes:
            with anyio.CancelScope(shield=True):
                await node.leave()
            self._nodes.remove(node)

    def _hurry(self) -> None:
        for node in self._nodes:
            node.hurry()

    def _new_node(self) -> Node:
        if self.performer is None:
            raise Misconfigured(
                f"{type(self).__name__} needs a performer to run jobs: performer = MyPerformer()"
            )
        return Node(
            f"{socket.gethostname()[:30]}-{os.getpid()}-{secrets.token_hex(2)}".replace(" ", "-"),
            self._plan(),
            self.repo,
            self.performer,
            self._policy(),
            self._take_configs,
        )

    def _policy(self) -> FailurePolicy:
        least_delay = as_timedelta(self.retry_seconds)
        mode = self._option("failure_mode")
        return FailurePolicy(self.on_exhausted, mode, self.failure_modes, least_delay)

    def _option(self, name: str) -> Any:
        """An option as it was given: a function that is a class's attribute must not become a method."""
        return vars(self).get(name, inspect.getattr_static(self, name))

    def _plan(self) -> Plan:
        return Plan(
            scope=self.scope,
            concurrency=self.concurrency,
            poll_interval=as_timedelta(self.poll_interval).total_seconds(),
            shutdown=as_timedelta(self.shutdown).total_seconds(),
            session_timeout=as_timedelta(self.session_timeout).total_seconds(),
            job_retention=as_timedelta(self.job_retention),
            cleanup_interval=as_timedelta(self.cleanup_interval).total_seconds(),
            max_job_time=as_timedelta(self.max_job_time).total_seconds(),
            success_mode=self._option("success_mode"),
            pause=self._pause,
        )

    def notify(self) -> bool:
        """Have this instance's nodes look now; False if none runs here (PgQueuetopia's handle_event)."""
        for node in self._nodes:
            node.wake()
        return bool(self._nodes)

    async def close(self) -> None:
        """Close the pool; it opens again on its next use."""
        await self._replies.close()
        await self.repo.close()

    # Pausing

    async def suspend(self, queue: str | None = None, *, local: bool = False, wait: bool = False) -> None:
        """Start no job any more: on every node, or of one queue, or (`local`) on this instance alone.

        No job starts after this has returned; those that run go on, and with `wait` it returns when they have
        ended. A suspension is kept until `resume`, through deploys; a local one as long as this instance.
        """
        if local:
            self._pause_here(queue, paused=True)
        else:
            await self.configs.set(_suspension(queue), "true")
        if wait:
            await self._drained(queue)

    async def _drained(self, queue: str | None) -> None:
        """Wait until nothing runs: the locks tell, and nobody rings for them."""
        while await self.repo.executing(self.scope, queue):  # noqa: ASYNC110
            await anyio.sleep(DRAINED_LOOK)

    async def resume(self, queue: str | None = None, *, local: bool = False) -> None:
        """Undo `suspend`: jobs start at once. A suspension by scope `*`, or by the other kind, stays."""
        if local:
            self._pause_here(queue, paused=False)
            return
        await self.configs.set(_suspension(queue), "false")
        if await self.repo.suspended(self.scope, queue):
            self._log.warning("still_suspended", queue=queue, by="scope * or the whole scope")

    def _pause_here(self, queue: str | None, *, paused: bool) -> None:
        if queue is None:
            self._pause.all = paused
        elif paused:
            self._pause.queues.add(queue)
        else:
            self._pause.queues.discard(queue)
        self.notify()

    def _take_configs(self, configs: Iterable[tuple[str, str, str]]) -> None:
        """Bring the settings in step with the database."""
        self.settings, faults = self.settings.updated(merged(configs))
        for key, fault in faults.items():
            self._log.warning("config_refused", key=key, error=fault)


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


def _suspension(queue: str | None) -> str:
    return "suspended" if queue is None else f"{queue}_suspended"
