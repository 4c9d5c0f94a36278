"""The loop of a node: step, start what was claimed, wait for the bell or the time."""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import anyio.lowlevel
import structlog

from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Lines, Stepped, last_of_queues
from pgqueuetopia.job import Job
from pgqueuetopia.node.bell import Bell
from pgqueuetopia.node.hold import LONG, Hold
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.room import Room
from pgqueuetopia.node.sleep import Sleep
from pgqueuetopia.outcome import Settlement
from pgqueuetopia.slices import Slice

log = structlog.get_logger("pgqueuetopia")

# All in seconds. After work a node looks again every few milliseconds for a while, before it sleeps.
LINGER = 0.02
LINGER_LOOK = 0.004
# How often a node looks for the queues of dead nodes while others run.
RESCUE = 0.25
HELD_UP_LOOK = 0.02
# How long a node that has nothing else to do waits for claimed jobs to start, before it looks again.
START_PATIENCE = LONG
# Where more jobs have ended, a step settles those of half of the queues that are held, and at least as many.
SHARE = 100
# How many jobs a step claims at most of queues that go on with several at once, and as many of new ones
# (is_prefetched knows it).
MOST_IN_A_STEP = 1000
# A new queue gets as many jobs at once as those that went on lately: about so many of them count.
LATELY = 16
# How long a node stays careful after it met rows that somebody has locked.
CAREFUL = 5.0
START_LOOK = 0.0005
BUSY_LOOK = 0.1
FULL_LOOK = 1.0


@dataclass(slots=True)
class Scheduler:
    """What a node holds, and when it looks again. All its statements go over the session, one at a time."""

    session: Session
    plan: Plan
    room: Room
    bell: Bell
    start: Callable[[Job], None]
    on_saved: Callable[[Ended], None]
    before_step: Callable[[Session], Awaitable[None]]
    running: dict[str | int, Hold] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    # A set of ids for each step whose jobs have not all been started.
    starting: list[set[int]] = field(default_factory=list)
    leaving: bool = False
    sleep: Sleep = field(init=False)
    _served_at: dict[str, datetime] = field(default_factory=dict)
    _last_claim: float = 0.0
    _last_rescue: float = 0.0
    _last_end: float = 0.0
    _rescue_pause: float = RESCUE
    _rescues: bool = False
    _careful_until: float = 0.0
    # Whether something has ended since the last step.
    _has_news: bool = False
    # Whether the bell has called the node out of its sleep: what came in is new, nearly always.
    _called: bool = False
    # How many jobs a queue gets at once when it goes on, lately.
    _usual_size: float = 1.0

    def __post_init__(self) -> None:
        self.sleep = Sleep(self.session)

    async def run(self) -> None:
        """Until this node leaves and all that it ran is written."""
        stepped = await self._step()
        while self.running or self.ended or not self.leaving:
            await self._rest(stepped)
            stepped = await self._step()

    def join(self) -> None:
        """Another node has started: we are not alone any longer."""
        self.sleep.join()
        self.bell.ring()

    def begin(self, job: Job) -> bool:
        """A job that was claimed is being started; may be called by any thread.

        False in a process that was frozen since the job was claimed: its queue may run elsewhere. The last
        thing before the performer, for a process may be frozen between any two.
        """
        self._has_begun(job.id)
        return self.session.is_fresh

    def end(self, job: Job, settlement: Settlement, result: str | None) -> Job | None:
        """A job has ended: have it written, and the next of its queue run, or the queue looked at."""
        self._has_begun(job.id)
        now = time.monotonic()
        hold = self.running[_key(job)]
        self._has_news = True
        run_time = now - hold.since
        hold.slice.used += run_time
        succeeded = settlement.outcome == "succeeded"
        goes_on = hold.prefetched and succeeded and self._may_go_on(hold, now)
        size = hold.next_size(now) if succeeded and not goes_on else 1
        self.ended.append(
            Ended(
                queue=job.queue,
                job=job,
                settlement=settlement,
                result=result,
                slice=hold.slice,
                snapshot=hold.snapshot,
                run_time=run_time,
                slot=hold.slot,
                size=size,
                one_of_many=hold.size > 1,
            )
        )
        if goes_on:
            return hold.go_on(now)
        del self.running[_key(job)]
        self._usual_size += (size - self._usual_size) / LATELY
        self._give_back(hold)
        self.bell.ring()
        return None

    def _may_go_on(self, hold: Hold, now: float) -> bool:
        """Whether what was prefetched is to be started; not where the queue may run elsewhere by now."""
        stopped = self.leaving or self.plan.pause.holds(hold.job.queue)
        return not (stopped or hold.is_late(now)) and self.session.is_fresh

    def _give_back(self, hold: Hold) -> None:
        """What was prefetched is not started; if a job of the hold runs on, the next step tells that."""
        for row in hold.prefetched:
            self._has_begun(row["id"])
        hold.prefetched.clear()
        hold.noted = False

    def _give_back_late(self) -> None:
        now = time.monotonic()
        for hold in self.running.values():
            if hold.prefetched and not self._may_go_on(hold, now):
                self._give_back(hold)

    async def _end_stalled(self) -> None:
        """Now and then, among the looks for the queues of the dead: end who is as good as dead."""
        if not self.sleep.is_alone and self._last_rescue - self._last_end >= self.session.deadlines.heartbeat:
            self._last_end = self._last_rescue
            if ended := await self.session.end_stalled():
                log.warning("stalled_sessions_ended", sessions=ended)

    async def _step(self) -> Stepped:
        self.bell.hear()
        await self.before_step(self.session)
        self._give_back_late()
        ended = self._take()
        self._has_news = False
        try:
            stepped = await self._ask(ended)
        except BaseException:
            self.ended = ended + self.ended
            raise
        self._take_in(ended, stepped)
        await self._end_stalled()
        return stepped

    def _take(self) -> list[Ended]:
        """What the next step settles: where much has ended, half of what is held.

        The jobs that it claims run while the step after it settles the other half.
        """
        queues = dict.fromkeys(one.queue for one in self.ended)
        if len(self.ended) > SHARE and not self.plan.topics:
            half = (len(queues) + len(self.running) + 1) // 2
            queues = dict.fromkeys(islice(queues, max(half, SHARE * len(queues) // len(self.ended))))
        ended = [one for one in self.ended if one.queue in queues]
        self.ended = [one for one in self.ended if one.queue not in queues]
        if self.ended:
            self.bell.ring()
        return ended

    def _unsettled(self) -> dict[str, None]:
        """Held queues of which nothing runs, and whose outcomes this step does not settle."""
        return dict.fromkeys(one.queue for one in self.ended if one.queue not in self.running)

    async def _ask(self, ended: list[Ended]) -> Stepped:
        now = time.monotonic()
        is_due = self._rescues or now - self._last_rescue >= self._rescue_pause
        rescue = is_due and not self._called
        may_claim = not (self.leaving or self.plan.pause.all)
        unsettled = self._unsettled()
        room = self.room.left(len(self.running) + len(unsettled), now) if may_claim else 0
        # The queues of which nothing runs any longer.
        over = {queue: one.slice for queue, one in last_of_queues(ended, self.running).items()}
        most = self._most_of(len(over))
        for one in ended:
            one.size = min(one.size, most)
        begun = [(hold, hold.job) for hold in self.running.values() if not hold.noted]
        stepped = await self.session.step(
            ended,
            # Those whose slice is over, and those for which no worker is free.
            [
                queue
                for n, (queue, slice_) in enumerate(over.items())
                if n >= room or (slice_ and slice_.is_over(now))
            ],
            unsettled | {hold.job.queue: hold.claimed_at for hold in self.running.values() if not hold.slot},
            sorted(self.plan.pause.queues),
            room,
            rescue=rescue,
            # Who is about to sleep must see everything: a job may have come in late, or be due since long.
            everything=rescue or (self.sleep.is_on and not self._called),
            keep=self.plan.keeps_finished_jobs,
            queues_suspended=self.plan.per_queue_suspension,
            starting=self._count_starting(),
            size=min(round(self._usual_size), self._most_of(room)),
            begun={job.id: hold.last for hold, job in begun},
            careful=now < self._careful_until,
            lines=self._lines(ended, room) if self.plan.topics else None,
        )
        for hold, job in begun:
            hold.noted = hold.job is job
        self._rescues = is_due and not (rescue and stepped.scanned)
        if rescue:
            self._last_rescue = time.monotonic()
            # Where there was no room for all of the dead it goes on soon. It scans everything, dead rows too:
            # that may take a twentieth of the time.
            soon = 20 * (self._last_rescue - now)
            self._rescue_pause = soon if stepped.more else max(RESCUE, soon)
        return stepped

    def _most_of(self, queues: int) -> int:
        """How many jobs each of so many queues gets at once at most."""
        return min(self.plan.prefetch, max(1, MOST_IN_A_STEP // max(1, queues)))

    def _lines(self, ended: list[Ended], room: int) -> Lines:
        """What there is room for of each topic; a slot is held until its job's outcome is written."""
        held = [
            (hold.job.queue, hold.slot, hold.job.id, False) for hold in self.running.values() if hold.slot
        ]
        held += [(one.queue, one.slot, one.job.id, True) for one in ended if one.slot and one.job]
        run = Counter(topic for topic, _, _, has_ended in held if not has_ended)
        rooms = [
            (
                topic.name,
                topic.parallelism,
                room if topic.per_node is None else min(room, topic.per_node - run[topic.name]),
                self._served_at.get(topic.name),
            )
            for topic in self.plan.topics
            if not self.plan.pause.holds(topic.name)
        ]
        return Lines(rooms, held)

    def _take_in(self, ended: list[Ended], stepped: Stepped) -> None:
        """Start what was claimed; what could not be saved, or is to be looked at again, stays held."""
        now = time.monotonic()
        if len(stepped.saved) < len(ended):
            self._keep_unsaved(ended, stepped)
            self._look_again_at_lost(ended, stepped)
        # Nobody wants to know of most jobs, that they have succeeded.
        for one in ended if self.plan.success_mode else [one for one in ended if not one.is_plain]:
            if one.job and one.job.id in stepped.saved:
                self.on_saved(one)
        self.ended += [Ended(queue=queue) for queue in stepped.again]
        self._hold(stepped, {one.queue: one.slice for one in ended}, now)
        if self._is_pressed:
            # The server has the next question before the first of them runs.
            asyncio.get_running_loop().call_soon(self._start, stepped.claimed)
        else:
            self._start(stepped.claimed)
        if stepped.claimed:
            self._last_claim = now
        if stepped.careful:
            self._careful_until = now + CAREFUL
        self.room.learn(stepped.crowded, len(self.running) + len(self._unsettled()), now)

    def _hold(self, stepped: Stepped, slices: Mapping[str, Slice | None], now: float) -> None:
        """Hold the queues and slots of what was claimed; a queue that goes on keeps its slice."""
        starting = {job.id for job in stepped.claimed}
        starting.update(row["id"] for behind in stepped.prefetched.values() for row in behind)
        self.starting.append(starting)
        blocking = len(stepped.claimed) - len(stepped.slots)
        for job in stepped.claimed[:blocking]:
            slice_ = slices.get(job.queue)
            prefetched = deque(stepped.prefetched.get(job.queue, ()))
            self.running[job.queue] = Hold(
                job,
                now,
                now,
                slice_ if slice_ and not slice_.is_over(now) else Slice(now),
                stepped.snapshot,
                job.attempted_at,
                prefetched=prefetched,
                size=1 + len(prefetched),
            )
        for job, slot in zip(stepped.claimed[blocking:], stepped.slots, strict=True):
            self.running[job.id] = Hold(job, now, now, Slice(now), stepped.snapshot, job.attempted_at, slot)
            if job.attempted_at:
                self._served_at[job.queue] = job.attempted_at

    def _keep_unsaved(self, ended: list[Ended], stepped: Stepped) -> None:
        """For another step, ahead of what has ended since: which is the last of its queue depends on that."""
        unsaved = [(one, one.job) for one in ended if one.job and one.job.id not in stepped.saved]
        self.ended[:0] = [one for one, job in unsaved if job.id in stepped.busy]
        for one, job in unsaved:
            if job.id not in stepped.busy:
                log.warning("outcome_lost", job=job.id, queue=one.queue, claim=job.claim)

    def _look_again_at_lost(self, ended: list[Ended], stepped: Stepped) -> None:
        """Queues of which the last outcome could not be written, and so nobody has looked at them."""
        busy = {one.queue for one in ended if one.job and one.job.id in stepped.busy}
        for queue, one in last_of_queues(ended, self.running).items():
            is_told = one.job is None or one.job.id in stepped.saved
            if not (is_told or queue in busy):
                self.ended.append(Ended(queue=queue, slice=one.slice))

    def _start(self, jobs: Iterable[Job]) -> None:
        """Start them, or give them back: we may have been told to stop since the step began."""
        for job in jobs:
            if self.leaving or self.plan.pause.holds(job.queue):
                self.end(job, Settlement.interrupted(), None)
            else:
                self.start(job)

    def _has_begun(self, job_id: int) -> None:
        """May be called by any thread."""
        for ids in self.starting:
            ids.discard(job_id)

    def _count_starting(self) -> int:
        """Of how many steps some jobs have not been started yet."""
        self.starting = [ids for ids in self.starting if ids]
        return len(self.starting)

    @property
    def _is_pressed(self) -> bool:
        """Whether so much has ended during the last step that the next one follows at once."""
        return self.bell.rung and len(self.ended) >= SHARE and not self.sleep.is_on

    async def _rest(self, stepped: Stepped) -> None:
        """Wait for the first of the bell and the time of the next look, unless much has ended meanwhile."""
        if self._is_pressed:
            return
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(START_PATIENCE):
            # A thread that rang would hand the processor over before it has called the performer.
            while self._count_starting() and not self.bell.rung:  # noqa: ASYNC110
                await anyio.sleep(START_LOOK)
        called, self._called = self._called, False
        if stepped.claimed:
            # Here, for a busy node comes no further: creators notify as long as we count as asleep.
            await self.sleep.end()
        elif called:
            # It is older than it seemed: now everything is looked at.
            return
        if not (self._count_starting() or self.bell.rung or self._has_news):
            await self.session.started()
            rang = await self._wait(await self._pause(stepped))
            self._called = rang and self.sleep.is_on

    async def _wait(self, pause: float) -> bool:
        """Wait for the bell, and ask now and then whether the session is alive; whether it rang."""
        heartbeat = self.session.deadlines.heartbeat
        while pause > heartbeat:
            if await self.bell.wait(heartbeat):
                return True
            await self.session.ping()
            pause -= heartbeat
        return await self.bell.wait(pause)

    async def _pause(self, stepped: Stepped) -> float:
        """How long nothing needs to be looked at, in seconds."""
        if self.ended:
            return BUSY_LOOK
        if stepped.held_up or stepped.crowded:
            return HELD_UP_LOOK
        if self.leaving or not self.room.left(len(self.running), time.monotonic()):
            await self.sleep.end()
            return FULL_LOOK
        if stepped.more:
            return 0
        if time.monotonic() - self._last_claim < LINGER:
            await self.sleep.end()
            return LINGER_LOOK
        return await self._doze(stepped)

    async def _doze(self, stepped: Stepped) -> float:
        """Sleep, once everything that may commit without notifying has been looked at."""
        now = time.monotonic()
        if not self.sleep.knows_its_company(now):
            await self.sleep.end()
        if not self.sleep.is_on:
            await self.sleep.begin(now)
            # The last look for the queues of the dead, while we are alone: who left may have left some.
            self._rescues = self.sleep.is_alone
            return 0
        soon = stepped.next_ready_in if stepped.next_ready_in is not None else self.plan.poll_interval
        if (nap := self.sleep.nap(stepped.horizon)) is not None:
            return min(nap, soon)
        longest = self.plan.poll_interval if self.sleep.is_alone else RESCUE
        return min(soon, longest * random.uniform(1.0, 1.1))


def _key(job: Job) -> str | int:
    """Of what a job holds: its queue, or, as one of a topic, only itself."""
    return job.id if job.topic else job.queue
