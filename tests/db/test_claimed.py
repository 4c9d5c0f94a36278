"""What a node is told of the jobs that it runs is what is stored."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from pgqueuetopia import Job, Retry, Topic
from pgqueuetopia.db.rows import claimed_job_of
from pgqueuetopia.db.step import Ended
from pgqueuetopia.outcome import SUCCEEDED, Failure, Settlement
from tests.db.steps import look, rescued, sessions
from tests.db.test_slots import Slots
from tests.support import an_app

UNUSUAL = {
    "params": {"x": [1, None]},
    "priority": -1,
    "timeout": 0,
    "max_backoff": timedelta(days=2),
    "max_attempts": 1,
    "scheduled_at": timedelta(hours=-1),
    "failure_mode": Retry(3),
    "reply": True,
}


# So few go out whole, so many as columns (in_columns).
FEW, MANY = 1, 12


@pytest.mark.parametrize("jobs", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize(
    "given",
    [{}, UNUSUAL, *[{name: value} for name, value in UNUSUAL.items()]],
    ids=["usual", "unusual", *UNUSUAL],
)
async def test_the_first_of_a_queue_and_what_is_prefetched_behind_it(
    dsn: str, given: Mapping[str, Any], jobs: int
) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        queues = ["q", *(f"q{n}" for n in range(1, jobs))]
        for queue in queues:
            await app.create_jobs([{"queue": queue, "action": "a", **given}] * 3)
        await app.create_jobs([{"queue": "q", "action": "a", **given}] * (jobs - 1))
        firsts = (await look(a, room=jobs)).claimed
        assert sorted(job.queue for job in firsts) == sorted(queues)
        for first in firsts:
            assert first == await app.get_job(first)
        stepped = await look(a, *[Ended(one.queue, one, SUCCEEDED, size=16) for one in firsts], room=jobs)
        assert len(stepped.claimed) == jobs
        for second in stepped.claimed:
            assert second == await app.get_job(second)
        assert len(stepped.prefetched["q"]) == jobs
        for row in stepped.prefetched["q"]:
            stored = await app.get_job(row["id"])
            assert claimed_job_of(row, "Test", "a") == as_if_run(stored)


NOT_ASKED_FOR = """
select a.attname
from pg_attribute a
where a.attrelid = 'pgqueuetopia.claimed_job'::regclass
  and (select p.prosrc from pg_proc p where p.oid = 'pgqueuetopia.in_columns'::regproc)
    !~ ('j\\.' || a.attname || '\\M')
"""


async def test_no_column_of_a_job_is_left_behind(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Either it has an array of its own, or it makes the job go out whole."""
    assert await connection.fetch(NOT_ASKED_FOR) == []


def as_if_run(job: Job) -> Job:
    return replace(job, attempts=job.attempts + 1, attempted_by="a", state="executing")


@pytest.mark.parametrize("given", [{}, UNUSUAL], ids=["usual", "unusual"])
async def test_one_of_a_topic(dsn: str, given: Mapping[str, Any]) -> None:
    async with an_app(dsn, topics=[Topic("t", parallelism=4)]) as app, sessions(dsn, "a") as [a]:
        await app.create_job("t", "a", **given)
        [claimed] = (await Slots(a).look()).claimed
        assert claimed == await app.get_job(claimed)


async def test_one_that_has_failed_and_one_that_was_interrupted(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        for queue, settlement in {
            "failed": Settlement.retried(Failure("no"), timedelta(0)),
            "interrupted": Settlement.interrupted(),
        }.items():
            await app.create_job(queue, "a")
            [claimed] = (await look(a)).claimed
            [again] = (await look(a, Ended(queue, claimed, settlement))).claimed
            assert again == await app.get_job(again)
            await look(a, Ended(queue, again, SUCCEEDED))


async def test_one_that_an_operator_has_moved_and_one_that_he_has_retried(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.move(await app.create_job("from", "a"), "q")
        [claimed] = (await look(a)).claimed
        assert claimed == await app.get_job(claimed)
        await look(a, Ended("q", claimed, Settlement.abandoned(Failure("no"))))
        await app.retry(claimed)
        [again] = (await rescued(a)).claimed
        assert again == await app.get_job(again)
        assert again.errors
