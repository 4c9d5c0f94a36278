"""The examples of the documentation are run."""

import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from pgqueuetopia import Moved, Ok, Repo, Retrying
from tests.support import eventually

DOCS = Path(__file__).parent.parent / "docs"


def program(page: str) -> dict[str, Any]:
    """What the examples of a page define, one after the other."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    return names


async def test_what_the_page_on_jobs_says_is_so(dsn: str) -> None:
    names = program("jobs.md")
    images = names["Images"](repo=Repo(dsn))
    async with images.running():
        assert await names["a_broken_image"](images) == [Retrying("broken")] * 3 + [Moved("dead")]
        await images.suspend()
        await names["by_hand"](images)
    await images.close()


async def test_what_the_page_on_workers_says_is_so(dsn: str) -> None:
    names = program("workers.md")
    images = names["Images"](repo=Repo(dsn))
    async with images.running():
        job = await images.create_job("q", "resize", reply=True)
        assert await images.reply(job) == Ok("a connection to images.example")
        assert await names["who_runs_what"](images) == ["free"] * 10
    assert (await images.get_job(job)).last_progress == "3/3"
    await images.close()


async def test_what_the_page_on_table_queues_says_is_so(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", capsys: pytest.CaptureFixture[str]
) -> None:
    names = program("table-queues.md")
    queue = names["photos"]
    await connection.execute("create table photos (id serial primary key)")
    await connection.execute(queue.up_sql(concurrently=False))
    media = names["Media"](repo=Repo(dsn))
    async with media.running():
        await connection.execute("insert into photos default values")
        await eventually(lambda: "photo 1 of queue classify_photos, attempt 1" in capsys.readouterr().out)
        await names["by_hand"](media)
    await media.close()
    await connection.execute(queue.down_sql() + "drop table photos")
