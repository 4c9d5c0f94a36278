"""The loop of a table queue on a node: write what ended, claim what is due, wait for the bell or the time."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, replace

import anyio
import structlog

from pgqueuetopia.backoff import doubling
from pgqueuetopia.db.step import Ended
from pgqueuetopia.db.table import MICROSECONDS, Table
from pgqueuetopia.db.table_ears import Ears
from pgqueuetopia.db.table_rows import Row, Written, job_of, moment, with_task, written_of
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.failure import FailurePolicy, settle
from pgqueuetopia.job import Job, as_timedelta
from pgqueuetopia.node.bell import Bell
from pgqueuetopia.node.execution import Execution
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.table_leases import Held, Leases
from pgqueuetopia.outcome import Failed, Failure, Settlement
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.workers import Workers

log = structlog.get_logger("pgqueuetopia")

# All in seconds. After work a node looks again every few milliseconds for a while, before it sleeps.
LINGER = 0.02
LINGER_LOOK = 0.004
# How often it looks for what it was too early for: inserts that may not notify, rows that are locked.
FIRST_NAP = 0.001
LONGEST_NAP = 1.0
BUSY_LOOK = 0.05
HELD_UP_LOOK = 0.02
# How long the next look waits for claimed rows to start, and how often it asks.
START_PATIENCE = 0.1
START_LOOK = 0.0005
# How often it looks at the front of the line, where rows may have come in late, while there is no end of it.
FRONT_LOOK = 1.0
# How long a row waits that is claimed while an earlier run of it, which was lost, goes on here.
OVERLAP_PAUSE = 1.0
# How long a database that does not answer is left alone.
UNAVAILABLE_PAUSE = 1.0


@dataclass(slots=True, eq=False)
class Over:
    """A run that has ended, and is to be written."""

    held: Held
    settlement: Settlement
    written: Written
    run_time: float
    is_written: bool = False


class TableLoop:
    """What a node does with one table queue, and what it holds of it."""

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: FailurePolicy,
        performer: BasePerformer | Workers,
        ears: Ears | None,
        node: str,
    ) -> None:
        self.queue: TableQueue = table.queue
        self._table = table
        self._plan = plan
        self._policy = policy
        self._ears = ears
        self._node = node
        self._bell = Bell()
        self._log = log.bind(scope=plan.scope, queue=self.queue.queue, node=node)
        self._leases = Leases(table, lambda job: self._execution.kill(job), self._log)
        self._execution = Execution(performer, plan, policy, self._leases, self._bell.ring)
        self._running = self._leases.running
        self._over: list[Over] = []
        self._starting: set[int] = set()
        self._leaving = False
        self._given_up = False
        self._nap = FIRST_NAP
        self._front = 0
        self._front_looked_at = 0.0
        self._last_claim = 0.0
        self._told = ""

    async def run(self) -> None:
        """Until this node leaves, and all that it ran is written."""
        async with asyncio.TaskGroup() as jobs, anyio.create_task_group() as tasks:
            tasks.start_soon(self._execution.serve, name=f"workers of {self.queue.queue}")
            tasks.start_soon(self._leases.keep_for_ever, name=f"locks of {self.queue.queue}")
            pause = await self._look(jobs)
            while self._running or (self._over and not self._given_up) or not self._leaving:
                await self._bell.wait(pause)
                pause = await self._look(jobs)
            tasks.cancel_scope.cancel()

    def ring(self) -> None:
        """Look now."""
        self._bell.ring()

    def leave(self) -> None:
        """Claim nothing more."""
        self._leaving = True
        self._bell.ring()

    def interrupt(self) -> None:
        """Cancel what runs; it runs again, and first."""
        self._execution.interrupt()

    def give_up(self) -> None:
        """Wait no longer for what cannot be written: its locks run out."""
        self._given_up = True
        self._bell.ring()

    def begin(self, job: Job) -> bool:
        """A run starts, in this thread or another; False if its row may be another's by now."""
        self._starting.discard(job.id)
        return self._running[job.id].is_ours

    def end(self, job: Job, settlement: Settlement, result: str | None) -> None:
        """A run has ended: have it written. Its result goes nowhere: the row itself is the place for it."""
        self._starting.discard(job.id)
        held = self._running.pop(job.id)
        if held.lost and settlement.outcome == "cancelled":
            settlement = Settlement.interrupted()
        self._finish(held, settlement)

    def _finish(self, held: Held, settlement: Settlement) -> None:
        run_time = time.monotonic() - held.since
        ended_at = moment((held.row.at or 0) + round(run_time * MICROSECONDS)).isoformat()
        written = written_of(held.row, held.job, settlement, ended_at)
        self._over.append(Over(held, settlement, written, run_time))
        self._bell.ring()

    async def _look(self, jobs: asyncio.TaskGroup) -> float:
        """Write, claim, start; returns after how many seconds to look again, if nothing rings before."""
        self._bell.hear()
        try:
            busy = await self._write(jobs)
            pause = await self._claim(jobs)
        except (QueuetopiaError, TimeoutError) as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log.warning("table_queue_stands_still", error=self._told)
            return UNAVAILABLE_PAUSE
        self._told = ""
        return min(pause, BUSY_LOOK) if busy else pause

    async def _claim(self, jobs: asyncio.TaskGroup) -> float:
        room = self._room()
        if not room or self._leaving or self._plan.pause.holds(self.queue.queue):
            await self._wake_up()
            return self._poll_interval()
        if self._ears is not None and not await self._ears.may_start():
            return HELD_UP_LOOK
        try:
            missed = self._ears is not None and await self._ears.may_miss_some(self.queue.names)
            rows = await self._claim_rows(jobs, room)
            await self._until_started()
        finally:
            if self._ears is not None:
                await self._ears.started()
        return await self._after(rows, room, missed=missed)

    async def _claim_rows(self, jobs: asyncio.TaskGroup, room: int) -> list[Row]:
        """From where the last look came to, for what is behind it has ended; now and then from the front."""
        now = time.monotonic()
        if now - self._front_looked_at > FRONT_LOOK:
            self._front = 0
        if not self._front:
            self._front_looked_at = now
        rows = await self._table.claim(room, self._node, self._leases.first, self._front)
        for row in rows:
            self._take(jobs, row, now)
        return rows

    def _take(self, jobs: asyncio.TaskGroup, row: Row, asked_at: float) -> None:
        """Run a row, unless an earlier run of it, which was lost, goes on here, in a thread."""
        job = job_of(row, self.queue, self._plan.scope, "executing")
        held = self._leases.held(row, job, asked_at)
        if job.id in self._running:
            self._log.warning("table_row_overlaps", key=job.key, claim=job.claim)
            self._finish(held, Settlement.snoozed(as_timedelta(OVERLAP_PAUSE)))
            return
        try:
            held.job = with_task(job, self.queue)
        except Exception as error:
            failure = Failed(Failure(f"task raised {type(error).__name__}: {error}"))
            delay = doubling(job.attempts - 1, job.max_backoff)
            self._finish(held, settle(job, failure, self._policy, delay))
            return
        self._running[job.id] = held
        self._starting.add(job.id)
        jobs.create_task(self._execution.run(held.job, self), name=f"{job.queue} {job.key}")

    async def _until_started(self) -> None:
        with anyio.move_on_after(START_PATIENCE):
            while self._starting:  # noqa: ASYNC110
                await anyio.sleep(START_LOOK)

    async def _after(self, rows: list[Row], room: int, *, missed: bool) -> float:
        """How long nothing needs to be looked at."""
        now = time.monotonic()
        if rows:
            self._last_claim = now
            await self._wake_up()
        if len(rows) == room:
            self._front = rows[-1].due
            return 0
        if self._front:
            self._front = 0
            return 0
        if now - self._last_claim < LINGER:
            return LINGER_LOOK
        return await self._doze(missed=missed)

    async def _doze(self, *, missed: bool) -> float:
        """Sleep, until the next row is due; nap while some may be missed, or are locked by somebody."""
        if self._ears is not None and await self._ears.fall_asleep(self.queue.names):
            self._nap = FIRST_NAP
            return 0
        soonest, held_up = await self._table.soonest()
        pause = self._poll_interval() if soonest is None else min(self._poll_interval(), soonest)
        if not (missed or held_up):
            self._nap = FIRST_NAP
            return pause
        nap, self._nap = self._nap, min(self._nap * 2, LONGEST_NAP)
        return min(nap, pause)

    async def _wake_up(self) -> None:
        if self._ears is not None:
            await self._ears.wake_up(self.queue.names)

    def _room(self) -> int:
        room = (self.queue.concurrency or self._plan.concurrency) - len(self._running)
        free = self._execution.count_free()
        return max(room if free is None else min(room, free), 0)

    def _poll_interval(self) -> float:
        """Not all nodes at once."""
        return as_timedelta(self.queue.poll_interval).total_seconds() * random.uniform(0.9, 1.0)

    async def _write(self, jobs: asyncio.TaskGroup) -> bool:
        """Write what ended; True if some must wait, for somebody has locked their rows."""
        over, self._over = self._over, []
        try:
            await self._settle(over)
            rest = [one for one in over if not one.is_written]
            ours = await self._table.still_held([one.held.row for one in rest])
        except BaseException:
            self._over = over + self._over
            raise
        for one in over:
            if one.is_written:
                self._tell(jobs, one)
        for n, one in enumerate(rest):
            if n not in ours:
                self._log.warning("outcome_lost", key=one.held.job.key, claim=one.held.job.claim)
        busy = [one for n, one in enumerate(rest) if n in ours]
        self._over = busy + self._over
        return bool(busy)

    async def _settle(self, over: list[Over]) -> None:
        """Write what can be written now, and mark it."""
        plain = [one for one in over if one.settlement.moved_to is None]
        for n in await self._table.settle([one.written for one in plain]):
            plain[n].is_written = True
        for one in over:
            if (queue := one.settlement.moved_to) is not None:
                one.is_written = await self._table.move(one.written, one.held.job, queue)

    def _tell(self, jobs: asyncio.TaskGroup, one: Over) -> None:
        """Who wants to be told of this outcome is."""
        job = one.held.job
        if one.settlement.failure is not None:
            kept = json.loads(one.written.private or "{}")
            job = replace(job, errors=tuple(kept.get("errors", ())), attempts=kept.get("attempts", 0))
        ended = Ended(queue=job.queue, job=job, settlement=one.settlement, run_time=one.run_time)
        if (hook := self._execution.hook(ended)) is not None:
            jobs.create_task(hook, name=f"hook of {job.queue} {job.key}")
