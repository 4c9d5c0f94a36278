"""The loop of a node: step, start what was claimed, wait for the bell or the time."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import anyio.lowlevel

from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Lines, Question, Stepped, last_of_queues
from pgqueuetopia.job import Job
from pgqueuetopia.node import rescue
from pgqueuetopia.node.bell import Bell
from pgqueuetopia.node.held import SHARE, Held
from pgqueuetopia.node.hold import LONG, Hold
from pgqueuetopia.node.plan import Plan
from pgqueuetopia.node.rescue import Rescue
from pgqueuetopia.node.room import Room
from pgqueuetopia.node.sleep import Sleep
from pgqueuetopia.outcome import Settlement

# All in seconds. After work a node looks again every few milliseconds for a while, before it sleeps.
LINGER = 0.02
LINGER_LOOK = 0.004
HELD_UP_LOOK = 0.02
# How long a node that has nothing else to do waits for claimed jobs to start, before it looks again.
START_PATIENCE = LONG
# How many jobs a step claims at most of queues that go on with several at once, and as many of new ones
# (is_prefetched knows it).
MOST_IN_A_STEP = 1000
# How long a node stays careful after it met rows that somebody has locked.
CAREFUL = 5.0
START_LOOK = 0.0005
BUSY_LOOK = 0.1
FULL_LOOK = 1.0


@dataclass(slots=True)
class Scheduler:
    """What a node asks for, and when. All its statements go over the session, one at a time."""

    session: Session
    plan: Plan
    room: Room
    bell: Bell
    start: Callable[[Job], None]
    on_saved: Callable[[Ended], None]
    before_step: Callable[[Session], Awaitable[None]]
    leaving: bool = False
    held: Held = field(init=False)
    sleep: Sleep = field(init=False)
    rescue: Rescue = field(init=False)
    _served_at: dict[str, datetime] = field(default_factory=dict)
    _last_claim: float = 0.0
    _careful_until: float = 0.0
    # Whether the bell has called the node out of its sleep: what came in is new, nearly always.
    _called: bool = False

    def __post_init__(self) -> None:
        self.held = Held(lambda: self.session.is_fresh, self._may_start, self.bell.ring)
        self.sleep = Sleep(self.session)
        self.rescue = Rescue(self.session)

    async def run(self) -> None:
        """Until this node leaves and all that it ran is written."""
        stepped = await self._step()
        while self.held.running or self.held.ended or not self.leaving:
            await self._rest(stepped)
            stepped = await self._step()

    def join(self) -> None:
        """Another node has started: we are not alone any longer."""
        self.sleep.join()
        self.bell.ring()

    def _may_start(self, queue: str) -> bool:
        return not (self.leaving or self.plan.pause.holds(queue))

    async def _step(self) -> Stepped:
        self.bell.hear()
        await self.before_step(self.session)
        self.held.give_back_late()
        ended = self.held.take(halves=not self.plan.topics)
        try:
            stepped = await self._ask(ended)
        except BaseException:
            self.held.put_back(ended)
            raise
        self._take_in(ended, stepped)
        if not self.sleep.is_alone:
            await self.rescue.end_stalled()
        return stepped

    async def _ask(self, ended: list[Ended]) -> Stepped:
        now = time.monotonic()
        is_due = self.rescue.is_due(now)
        looks = is_due and not self._called
        begun = self.held.begun()
        stepped = await self.session.step(self._question(ended, begun, now, looks=looks))
        for hold, job in begun:
            # Where somebody has locked some row, once more: it may be this one's.
            hold.noted = hold.job is job and not stepped.careful
        if looks:
            self.rescue.learn(stepped, now)
        else:
            self.rescue.wanted = is_due
        return stepped

    def _question(
        self, ended: list[Ended], begun: list[tuple[Hold, Job]], now: float, *, looks: bool
    ) -> Question:
        unsettled = self.held.unsettled()
        may_claim = not (self.leaving or self.plan.pause.all)
        room = self.room.left(len(self.held.running) + len(unsettled), now) if may_claim else 0
        # The queues of which nothing runs any longer.
        over = last_of_queues(ended, self.held.running)
        most = self._most_of(len(over))
        for one in ended:
            one.size = min(one.size, most)
        return Question(
            ended,
            _yielding(over, room, now),
            unsettled | self.held.claimed(),
            sorted(self.plan.pause.queues),
            room,
            rescue=looks,
            # Who is about to sleep must see everything: a job may have come in late, or be due since long.
            everything=looks or (self.sleep.is_on and not self._called),
            keep=self.plan.keeps_finished_jobs,
            queues_suspended=self.plan.per_queue_suspension,
            starting=self.held.count_starting(),
            size=min(round(self.held.usual_size), self._most_of(room)),
            begun={job.id: hold.last for hold, job in begun},
            careful=now < self._careful_until,
            lines=self._lines(ended, room) if self.plan.topics else None,
        )

    def _most_of(self, queues: int) -> int:
        """How many jobs each of so many queues gets at once at most."""
        return min(self.plan.prefetch, max(1, MOST_IN_A_STEP // max(1, queues)))

    def _lines(self, ended: list[Ended], room: int) -> Lines:
        """What there is room for of each topic; a slot is held until its job's outcome is written."""
        held = self.held.slots(ended)
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
        self.held.learn(ended, stepped)
        # Nobody wants to know of most jobs, that they have succeeded.
        for one in ended if self.plan.success_mode else [one for one in ended if not one.is_plain]:
            if one.job and one.job.id in stepped.saved:
                self.on_saved(one)
        self._served_at.update(
            {job.queue: job.attempted_at for job in stepped.of_topics() if job.attempted_at}
        )
        if self._is_pressed:
            # The server has the next question before the first of them runs.
            asyncio.get_running_loop().call_soon(self._start, stepped.claimed)
        else:
            self._start(stepped.claimed)
        if stepped.claimed:
            self._last_claim = now
        if stepped.careful:
            self._careful_until = now + CAREFUL
        self.room.learn(stepped.crowded, self.held.count(), now)

    def _start(self, jobs: Iterable[Job]) -> None:
        """Start them, or give them back: we may have been told to stop since the step began."""
        for job in jobs:
            if self._may_start(job.queue):
                self.start(job)
            else:
                self.held.end(job, Settlement.interrupted(), None)

    @property
    def _is_pressed(self) -> bool:
        """Whether so much has ended during the last step that the next one follows at once."""
        return self.bell.rung and len(self.held.ended) >= SHARE and not self.sleep.is_on

    async def _rest(self, stepped: Stepped) -> None:
        """Wait for the first of the bell and the time of the next look, unless much has ended meanwhile."""
        if self._is_pressed:
            return
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(START_PATIENCE):
            # A thread that rang would hand the processor over before it has called the performer.
            while self.held.count_starting() and not self.bell.rung:  # noqa: ASYNC110
                await anyio.sleep(START_LOOK)
        called, self._called = self._called, False
        if stepped.claimed:
            # Here, for a busy node comes no further: creators notify as long as we count as asleep.
            await self.sleep.end()
        elif called:
            # It is older than it seemed: now everything is looked at.
            return
        if not (self.held.count_starting() or self.bell.rung or self.held.has_news):
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
        if self.held.ended:
            return BUSY_LOOK
        if stepped.held_up or stepped.crowded:
            return HELD_UP_LOOK
        if self.leaving or not self.room.left(len(self.held.running), time.monotonic()):
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
            self.rescue.wanted = self.sleep.is_alone
            return 0
        soon = stepped.next_ready_in if stepped.next_ready_in is not None else self.plan.poll_interval
        if (nap := self.sleep.nap(stepped.horizon)) is not None:
            return min(nap, soon)
        longest = self.plan.poll_interval if self.sleep.is_alone else rescue.RESCUE
        return min(soon, longest * random.uniform(1.0, 1.1))


def _yielding(over: Mapping[str, Ended], room: int, now: float) -> list[str]:
    """Of queues of which nothing runs any longer those whose slice is over, or that no worker is free for."""
    return [
        queue
        for n, (queue, one) in enumerate(over.items())
        if n >= room or (one.slice and one.slice.is_over(now))
    ]
