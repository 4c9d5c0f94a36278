"""Queuetopia, the public face: create jobs, run nodes, pause, look and operate."""

import inspect
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Self

import anyio
import anyio.abc
import structlog

from pgqueuetopia import options
from pgqueuetopia.creating import Creating
from pgqueuetopia.db.configs import Configs, merged
from pgqueuetopia.db.events import Broadcast
from pgqueuetopia.db.replies import Replies
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.sharing import SharedCommits
from pgqueuetopia.db.table import Table
from pgqueuetopia.declaring import misspelt, part_faults
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.failure import FailurePolicy, OnExhausted
from pgqueuetopia.job import Defaults, Seconds, as_timedelta
from pgqueuetopia.modes import FailureMode, SuccessMode
from pgqueuetopia.node.leaving import until_told_to_stop
from pgqueuetopia.node.node import Node
from pgqueuetopia.node.plan import Pause, Plan
from pgqueuetopia.node.table_node import TableNode
from pgqueuetopia.node.tables import Tables
from pgqueuetopia.operations import Operations
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.reporting import Reporting
from pgqueuetopia.settings import Settings
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.together import named
from pgqueuetopia.table_operations import TableOperations
from pgqueuetopia.topics import Topic
from pgqueuetopia.workers import Workers

log = structlog.get_logger("pgqueuetopia")

DRAINED_LOOK = 0.05
SETTINGS = {"repo", "performer", "scope", "settings", *options.NAMES}


class Queuetopia(Creating, Operations, Reporting):
    """Subclass it with a `repo` and a `performer`; the class's name is its scope on the database.

    Every setting can be a class attribute or an argument of the constructor: `repo`, `performer`, `scope`,
    `settings` (a Settings of yours, kept in step with job_configs) and those of `options.Options`. Raises
    Misconfigured for a setting that is unknown or cannot work.
    """

    settings: Settings = Settings()

    poll_interval: Seconds = 60
    concurrency: int = 100
    prefetch: int = 1
    on_exhausted: OnExhausted = "abandon"
    job_retention: Seconds = timedelta(days=7)
    cleanup_interval: Seconds = 600
    shutdown: Seconds = 30
    session_timeout: Seconds = 15
    disabled: bool = False
    suspended: bool = False
    per_queue_suspension: bool = True
    failure_mode: FailureMode | None = None
    failure_modes: Mapping[str, FailureMode] = MappingProxyType({})
    success_mode: SuccessMode | None = None
    max_job_time: Seconds = 0
    retry_seconds: Seconds = 0
    topics: Sequence[Topic] = ()
    table_queues: Sequence[TableQueue] = ()

    def __init__(self, **given: Any) -> None:
        self._set(given)
        self._options = options.Options(**{name: self._option(name) for name in options.NAMES})
        faults = part_faults(self.repo, self.performer, self.settings)
        options.check(type(self).__name__, self.scope, self._options, faults)
        self.configs = Configs(self.repo, self.scope, type(self.settings), self._take_configs)
        self._shared = SharedCommits(partial(self.repo.create_jobs, self.scope))
        self._replies = Replies(self.repo)
        self._broadcast = Broadcast(self.repo, self.scope)
        self._pause = Pause(all=self.suspended)
        self._defaults = {
            topic.name: Defaults(topic.max_attempts, topic.priority, topic=True) for topic in self.topics
        }
        self._nodes: list[Node | TableNode] = []
        self._log = log.bind(scope=self.scope)
        for name, meant in misspelt(type(self), Queuetopia, SETTINGS - given.keys()):
            self._log.warning("attribute_ignored", name=name, hint=f"is {meant} meant?")

    def _set(self, given: Mapping[str, Any]) -> None:
        if unknown := sorted(given.keys() - SETTINGS):
            raise Misconfigured(
                f"Unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(SETTINGS))}."
            )
        for name, value in given.items():
            setattr(self, name, value)
        if not hasattr(self, "scope"):
            self.scope = type(self).__name__
        if not hasattr(self, "repo"):
            self.repo = Repo()
        if isinstance(self.settings, type):
            self.settings = self.settings()

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
                await tasks.start(_run, node, name=f"node {node.name}")
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
        with until_told_to_stop(self._hurry):
            async with self.running():
                await anyio.sleep_forever()

    async def _leave(self, node: Node | TableNode) -> None:
        if node in self._nodes:
            with anyio.CancelScope(shield=True):
                await node.leave()
            self._nodes.remove(node)

    def _hurry(self) -> None:
        for node in self._nodes:
            node.hurry()

    def _new_node(self) -> Node | TableNode:
        if self.performer is None and (self.table_queues or not self.topics):
            raise Misconfigured(
                f"{type(self).__name__} needs a performer to run jobs: performer = MyPerformer()"
            )
        name = f"{socket.gethostname()[:20]}-{os.getpid()}-{secrets.token_hex(2)}".replace(" ", "-")
        performer = BasePerformer() if self.performer is None else self.performer
        plan, policy = self._plan(), self._policy()
        tables = Tables(self.table_queues, self.repo, plan, policy, performer, name)
        if tables.are_all_there_is:
            return TableNode(name, plan, tables)
        return Node(name, plan, self.repo, performer, policy, self._take_configs, tables)

    def table(self, queue: TableQueue | str) -> TableOperations:
        """One of its table queues, to look at its rows and decide about them. Raises Misconfigured."""
        table = Table(
            self.repo,
            named(self.table_queues, queue),
            self.scope,
            alone_suspended=self.per_queue_suspension,
        )
        return TableOperations(table, self.scope, self, self._pause.holds)

    def _policy(self) -> FailurePolicy:
        least_delay = as_timedelta(self.retry_seconds)
        mode = self._option("failure_mode")
        return FailurePolicy(self.on_exhausted, mode, self.failure_modes, least_delay)

    def _option(self, name: str) -> Any:
        """An option as it was given: a function that is a class's attribute must not become a method."""
        return vars(self).get(name, inspect.getattr_static(self, name))

    def _shutdown(self) -> Seconds:
        return self.performer.shutdown if isinstance(self.performer, Workers) else self.shutdown

    def _plan(self) -> Plan:
        return Plan(
            scope=self.scope,
            concurrency=self.concurrency,
            # Workers are dispatched one job at a time.
            prefetch=1 if isinstance(self.performer, Workers) else self.prefetch,
            poll_interval=as_timedelta(self.poll_interval).total_seconds(),
            shutdown=as_timedelta(self._shutdown()).total_seconds(),
            session_timeout=as_timedelta(self.session_timeout).total_seconds(),
            job_retention=as_timedelta(self.job_retention),
            cleanup_interval=as_timedelta(self.cleanup_interval).total_seconds(),
            max_job_time=as_timedelta(self.max_job_time).total_seconds(),
            success_mode=self._option("success_mode"),
            per_queue_suspension=self.per_queue_suspension,
            topics=tuple(self.topics),
            pause=self._pause,
        )

    def notify(self) -> bool:
        """Have this instance's nodes look now; False if none runs here (PgQueuetopia's handle_event)."""
        for node in self._nodes:
            node.wake()
        return bool(self._nodes)

    def wake_up(self) -> bool:
        """As `notify` (JobQueue's name)."""
        return self.notify()

    async def close(self) -> None:
        """Close the pool; it opens again on its next use."""
        await self._replies.close()
        await self._broadcast.close()
        await self.repo.close()

    # Pausing

    async def suspend(self, queue: str | None = None, *, local: bool = False, wait: bool = False) -> None:
        """Start no job any more: on every node, or of one queue, or (`local`) on this instance alone.

        No job starts after this has returned; those that run go on, and with `wait` it returns when they have
        ended. A suspension is kept until `resume`, through deploys; a local one as long as this instance.
        Raises Misconfigured for a queue where `per_queue_suspension` is off, and for what is no queue's name.
        """
        options.check_queue(queue)
        if local:
            self._pause_here(queue, paused=True)
        elif queue is not None and not self.per_queue_suspension:
            raise Misconfigured(
                "Nodes would not obey: per_queue_suspension is off. Suspend all, or local=True."
            )
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
        options.check_queue(queue)
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


async def _run(node: Node | TableNode, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """A node, which leaves as well if its host is cancelled in the very moment in which it has started."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_leave_when_cancelled, node, name="host")
        try:
            await node.run(task_status=task_status)
        except Exception as error:
            # Raised below: the task group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _leave_when_cancelled(node: Node | TableNode) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await node.leave()


def _suspension(queue: str | None) -> str:
    return "suspended" if queue is None else f"{queue}_suspended"
