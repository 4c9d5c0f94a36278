"""One app in several event loops: one after another, or of another thread."""

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest

from pgqueuetopia import Queuetopia, Repo
from tests.support import Recorder, eventually


@pytest.fixture
def performer() -> Recorder:
    return Recorder()


@pytest.fixture
def app(dsn: str, performer: Recorder) -> Iterator[Queuetopia]:
    """An app whose pools nobody closes."""
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope="Test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield app
        # In a loop of its own: those of loops that were closed are let go.
        asyncio.run(app.close())
        gc.collect()


async def create(app: Queuetopia) -> int:
    return (await app.create_job("q", "a")).id


async def run(app: Queuetopia, performer: Recorder, *expected: int) -> None:
    """A node, until these jobs have been performed."""
    async with app.running():
        await eventually(lambda: performer.ids == [*expected])


def test_jobs_are_created_and_run_in_one_loop_after_another(app: Queuetopia, performer: Recorder) -> None:
    created = [asyncio.run(create(app)) for _ in range(2)]
    asyncio.run(run(app, performer, *created))
    created.append(asyncio.run(create(app)))
    asyncio.run(run(app, performer, *created))


def test_jobs_are_created_in_the_loop_of_another_thread(app: Queuetopia, performer: Recorder) -> None:
    async def create_everywhere() -> None:
        created = [await create(app), await asyncio.to_thread(lambda: asyncio.run(create(app)))]
        created.append(await create(app))
        await run(app, performer, *created)

    asyncio.run(create_everywhere())
