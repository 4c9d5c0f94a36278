"""What stops a run: its time, by the one timer that all share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgqueuetopia.node.run import Run, Stop, Timeouts
from tests.support import eventually


@asynccontextmanager
async def runs(number: int) -> AsyncIterator[list[Run]]:
    """So many runs that go on until they are stopped."""
    made: list[Run] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        made.append(Run(task))
        await asyncio.sleep(60)

    tasks = [asyncio.create_task(run()) for _ in range(number)]
    await asyncio.sleep(0)
    yield made
    for run_, task in zip(made, tasks, strict=True):
        run_.end()
        task.cancel()
    await asyncio.wait(tasks)


async def test_each_is_stopped_in_its_own_time() -> None:
    timeouts = Timeouts()
    order: list[int] = []
    async with runs(4) as made:
        for run, seconds in zip(made, (60, 0.06, 0.02, 0), strict=True):
            timeouts.add(run, seconds)

        def stopped() -> bool:
            order.extend(n for n, run in enumerate(made) if run.stopped and n not in order)
            return len(order) == 2

        await eventually(stopped)
        assert order == [2, 1]
        assert [run.stopped for run in made] == [None, Stop.TIMED_OUT, Stop.TIMED_OUT, None]


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
