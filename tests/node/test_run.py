"""What stops a run: its time, by the one timer that all share."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgqueuetopia.node.run import Run, Stop, Timeouts
from tests.support import eventually


@asynccontextmanager
async def runs(number: int, ends: dict[int, float] | None = None) -> AsyncIterator[list[Run]]:
    """So many runs that go on until they are stopped; notes when that was."""
    made: list[Run] = []

    async def run(place: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        made.append(Run(task))
        try:
            await asyncio.sleep(60)
        finally:
            if ends is not None:
                ends[place] = time.monotonic()

    tasks = [asyncio.create_task(run(place)) for place in range(number)]
    await asyncio.sleep(0)
    yield made
    for run_, task in zip(made, tasks, strict=True):
        run_.end()
        task.cancel()
    await asyncio.wait(tasks)


async def test_each_is_stopped_in_its_own_time() -> None:
    timeouts = Timeouts()
    limits = (60, 0.06, 0.02, 0)
    ends: dict[int, float] = {}
    began = time.monotonic()
    async with runs(4, ends) as made:
        for run, seconds in zip(made, limits, strict=True):
            timeouts.add(run, seconds)
        await eventually(lambda: len(ends) == 2)
        assert [run.stopped for run in made] == [None, Stop.TIMED_OUT, Stop.TIMED_OUT, None]
        assert all(end - began >= limits[place] for place, end in ends.items())


async def test_one_that_has_ended_is_left_alone() -> None:
    timeouts = Timeouts()
    async with runs(2) as [ended, other]:
        timeouts.add(ended, 0.01)
        timeouts.add(other, 0.02)
        timeouts.discard(ended)
        await eventually(lambda: other.stopped)
        assert ended.stopped is None


async def test_its_time_counts_from_when_it_was_first_limited() -> None:
    timeouts = Timeouts()
    async with runs(1) as [run]:
        timeouts.add(run, 0.02)
        timeouts.add(run, 60)
        await eventually(lambda: run.stopped)
