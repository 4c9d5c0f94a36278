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
    """An app whose pools nobody closes: each ends with its loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield Queuetopia(repo=Repo(dsn), performer=performer, scope="Test")
        gc.collect()


async def create(app: Queuetopia) -> int:
    return (await app.create_job("q", "a")).id


def test_jobs_are_created_and_run_in_one_loop_after_another(app: Queuetopia, performer: Recorder) -> None:
    async def run() -> None:
        async with app.running():
            await eventually(lambda: performer.ids == created)

    created = [asyncio.run(create(app)) for _ in range(2)]
    asyncio.run(run())
    created.append(asyncio.run(create(app)))
    asyncio.run(run())


def test_jobs_are_created_in_the_loop_of_another_thread(app: Queuetopia, performer: Recorder) -> None:
    async def create_everywhere() -> None:
        created = [await create(app), await asyncio.to_thread(lambda: asyncio.run(create(app)))]
        created.append(await create(app))
        async with app.running():
            await eventually(lambda: performer.ids == created)
        await app.close()

    asyncio.run(create_everywhere())
