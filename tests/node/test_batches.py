"""Much that ends at once is written in halves; what is left for the next step is still held."""

import anyio

from pgqueuetopia import Job, NewJob, Performer
from tests.support import an_app, eventually

QUEUES, ROUNDS = 40, 5


class Together(Performer):
    """Jobs that all wait for the same word, and end at once; counts the runs of each."""

    def __init__(self) -> None:
        self.runs: dict[int, int] = {}
        self.waiting = 0
        self.word = anyio.Event()

    async def perform(self, job: Job) -> None:
        self.runs[job.id] = self.runs.get(job.id, 0) + 1
        self.waiting += 1
        await self.word.wait()

    async def all_wait(self) -> bool:
        return self.waiting >= QUEUES

    def say(self) -> None:
        self.waiting = 0
        self.word.set()
        self.word = anyio.Event()


async def test_a_queue_whose_outcome_waits_for_the_next_step_is_not_acquired_again(dsn: str) -> None:
    """Each queue has a new row when its job ends, with all the others; a session may lock again what it has."""
    performer = Together()
    jobs = [NewJob(f"q{queue}", "a") for queue in range(QUEUES)]
    async with an_app(dsn, performer=performer, concurrency=QUEUES) as app:
        await app.create_jobs(jobs)
        async with app.running():
            for _ in range(ROUNDS):
                await app.create_jobs(jobs)
                await eventually(performer.all_wait)
                performer.say()
            await eventually(performer.all_wait)
            performer.say()
    assert set(performer.runs.values()) == {1}
    assert len(performer.runs) == QUEUES * (ROUNDS + 1)
