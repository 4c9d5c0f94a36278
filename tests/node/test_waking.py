"""No wake-up is lost: what commits late, while a node falls asleep, is started all the same."""

import random

import anyio
import asyncpg
import pytest

from pgqueuetopia import Queuetopia
from pgqueuetopia.node import scheduler
from tests.support import Recorder, an_app, eventually

CREATORS, JOBS = 3, 25


@pytest.mark.slow
async def test_what_commits_late_while_the_node_falls_asleep_is_started_long_before_the_next_poll(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node sleeps as often as it can; a lost wake-up would cost the poll_interval of a minute."""
    monkeypatch.setattr(scheduler, "LINGER", 0.0)
    performer = Recorder()
    async with an_app(dsn, performer, poll_interval=60) as app, app.running():
        async with anyio.create_task_group() as tasks:
            for number in range(CREATORS):
                tasks.start_soon(create, app, dsn, number)
        await eventually(lambda: len(performer.performed) == CREATORS * JOBS, within=10)


async def create(app: Queuetopia, dsn: str, number: int) -> None:
    connection = await asyncpg.connect(dsn)
    for job in range(JOBS):
        async with connection.transaction():
            await app.create_job(f"q{number}_{job % 5}", "a", conn=connection)
            await anyio.sleep(random.uniform(0, 0.05))
        await anyio.sleep(random.uniform(0, 0.02))
    await connection.close()
