"""What a node holds: queues and slots whose jobs run, and outcomes that are not written yet."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import structlog

from pgqueuetopia.db.step import Ended, Stepped, last_of_queues
from pgqueuetopia.job import Job
from pgqueuetopia.node.hold import Hold
from pgqueuetopia.outcome import Settlement
from pgqueuetopia.slices import Slice

log = structlog.get_logger("pgqueuetopia")

# Where more jobs have ended, a step settles those of half of the queues that are held, and at least as many.
SHARE = 100
# A new queue gets as many jobs at once as those that went on lately: about so many of them count.
LATELY = 16


@dataclass(slots=True)
class Held:
    """Told by steps what was claimed, and by runs (it is their Listener) what has become of it.

    `is_fresh`: whether the queues are still ours, for all we know. `may_start`: whether the next job of a
    queue may be started here. `ring` is called when something has ended.
    """

    is_fresh: Callable[[], bool]
    may_start: Callable[[str], bool]
    ring: Callable[[], None]
    running: dict[str | int, Hold] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    # Whether something has ended since the last step.
    has_news: bool = False
    # How many jobs a queue gets at once when it goes on, lately.
    usual_size: float = 1.0
    # A set of ids for each step whose jobs have not all been started.
    _starting: list[set[int]] = field(default_factory=list)

    def begin(self, job: Job) -> bool:
        """A job that was claimed is being started; may be called by any thread.

        False in a process that was frozen since the job was claimed: its queue may run elsewhere. The last
        thing before the performer, for a process may be frozen between any two.
        """
        self._has_begun(job.id)
        return self.is_fresh()

    def end(self, job: Job, settlement: Settlement, result: str | None) -> Job | None:
        """A job has ended: have it written, and the next of its queue run, or the queue looked at."""
        self._has_begun(job.id)
        now = time.monotonic()
        hold = self.running[_key(job)]
        self.has_news = True
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
        self.usual_size += (size - self.usual_size) / LATELY
        self._give_back(hold)
        self.ring()
        return None

    def _may_go_on(self, hold: Hold, now: float) -> bool:
        """Whether what was prefetched is to be started; not where the queue may run elsewhere by now."""
        return self.may_start(hold.job.queue) and not hold.is_late(now) and self.is_fresh()

    def _give_back(self, hold: Hold) -> None:
        """What was prefetched is not started; if a job of the hold runs on, the next step tells that."""
        for row in hold.prefetched:
            self._has_begun(row["id"])
        hold.prefetched.clear()
        hold.noted = False

    def give_back_late(self) -> None:
        """What was prefetched and should have been started by now."""
        now = time.monotonic()
        for hold in self.running.values():
            if hold.prefetched and not self._may_go_on(hold, now):
                self._give_back(hold)

    def take(self, *, halves: bool) -> list[Ended]:
        """What the next step settles: where much has ended, and if that may be, half of what is held.

        The jobs that it claims run while the step after it settles the other half.
        """
        queues = dict.fromkeys(one.queue for one in self.ended)
        if halves and len(self.ended) > SHARE:
            half = (len(queues) + len(self.running) + 1) // 2
            queues = dict.fromkeys(islice(queues, max(half, SHARE * len(queues) // len(self.ended))))
        taken = [one for one in self.ended if one.queue in queues]
        self.ended = [one for one in self.ended if one.queue not in queues]
        self.has_news = False
        if self.ended:
            self.ring()
        return taken

    def put_back(self, taken: list[Ended]) -> None:
        """They could not be settled."""
        self.ended = taken + self.ended

    def unsettled(self) -> dict[str, None]:
        """Held queues of which nothing runs, and whose outcomes the next step does not settle."""
        return dict.fromkeys(one.queue for one in self.ended if one.queue not in self.running)

    def claimed(self) -> dict[str, datetime | None]:
        """Queues of which a job runs, and when it was claimed."""
        return {hold.job.queue: hold.claimed_at for hold in self.running.values() if not hold.slot}

    def begun(self) -> list[tuple[Hold, Job]]:
        """Of several jobs that were claimed at once those of which the server does not know that they run."""
        return [(hold, hold.job) for hold in self.running.values() if not hold.noted]

    def count(self) -> int:
        """How many queues and slots are held."""
        return len(self.running) + len(self.unsettled())

    def slots(self, taken: list[Ended]) -> list[tuple[str, int, int, bool]]:
        """Those of topics, as Lines tell them; one is held until its job's outcome is written."""
        running = [
            (hold.job.queue, hold.slot, hold.job.id, False) for hold in self.running.values() if hold.slot
        ]
        return running + [(one.queue, one.slot, one.job.id, True) for one in taken if one.slot and one.job]

    def learn(self, taken: list[Ended], stepped: Stepped) -> None:
        """Hold what was claimed; what could not be saved, or is to be looked at again, stays held."""
        if len(stepped.saved) < len(taken):
            self._keep_unsaved(taken, stepped)
            self._look_again_at_lost(taken, stepped)
        self.ended += [Ended(queue=queue) for queue in stepped.again]
        self._hold(stepped, {one.queue: one.slice for one in taken})

    def _hold(self, stepped: Stepped, slices: Mapping[str, Slice | None]) -> None:
        """Hold the queues and slots of what was claimed; a queue that goes on keeps its slice."""
        now = time.monotonic()
        starting = {job.id for job in stepped.claimed}
        starting.update(row["id"] for behind in stepped.prefetched.values() for row in behind)
        self._starting.append(starting)
        for job in stepped.of_queues():
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
        for job, slot in zip(stepped.of_topics(), stepped.slots, strict=True):
            self.running[job.id] = Hold(job, now, now, Slice(now), stepped.snapshot, job.attempted_at, slot)

    def _keep_unsaved(self, taken: list[Ended], stepped: Stepped) -> None:
        """For another step, ahead of what has ended since: which is the last of its queue depends on that."""
        unsaved = [(one, one.job) for one in taken if one.job and one.job.id not in stepped.saved]
        self.ended[:0] = [one for one, job in unsaved if job.id in stepped.busy]
        for one, job in unsaved:
            if job.id not in stepped.busy:
                log.warning("outcome_lost", job=job.id, queue=one.queue, claim=job.claim)

    def _look_again_at_lost(self, taken: list[Ended], stepped: Stepped) -> None:
        """Queues of which the last outcome could not be written, and so nobody has looked at them."""
        busy = {one.queue for one in taken if one.job and one.job.id in stepped.busy}
        for queue, one in last_of_queues(taken, self.running).items():
            is_told = one.job is None or one.job.id in stepped.saved
            if not (is_told or queue in busy):
                self.ended.append(Ended(queue=queue, slice=one.slice))

    def _has_begun(self, job_id: int) -> None:
        """May be called by any thread."""
        for ids in self._starting:
            ids.discard(job_id)

    def count_starting(self) -> int:
        """Of how many steps some jobs have not been started yet."""
        self._starting = [ids for ids in self._starting if ids]
        return len(self._starting)


def _key(job: Job) -> str | int:
    """Of what a job holds: its queue, or, as one of a topic, only itself."""
    return job.id if job.topic else job.queue
