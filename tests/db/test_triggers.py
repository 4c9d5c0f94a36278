"""Invariant 1 holds under any SQL that a person types."""

from pathlib import Path

import asyncpg
import pytest

Connection = asyncpg.Connection  # for the annotations below, as strings

STRANDED = Path(__file__).with_name("stranded.sql").read_text(encoding="utf-8")
HEAD_WAITS = """
update pgqueuetopia.jobs
set claim = 1, attempts = 1, attempted_at = now(), next_attempt_at = now() + interval '1 hour'
where id = (select min(id) from pgqueuetopia.jobs where queue = 'q');
delete from pgqueuetopia.run_queue;
insert into pgqueuetopia.run_queue (scope, queue, ready_at)
values ('S', 'q', now() + interval '1 hour')
"""
TWO_JOBS = "insert into pgqueuetopia.jobs (scope, queue, action) values ('S', 'q', 'a'), ('S', 'q', 'b')"


async def expect_nothing_stranded(connection: "Connection[asyncpg.Record]") -> None:
    """Every queue with a pending job has a row that is ready no later than its head is due."""
    assert await connection.fetch(STRANDED) == []


async def rows(connection: "Connection[asyncpg.Record]") -> int:
    return int(await connection.fetchval("select count(*) from pgqueuetopia.run_queue"))


async def test_an_insert_by_hand_is_enough(connection: "Connection[asyncpg.Record]") -> None:
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, params) values ('S', 'q', 'a', '{}')"
    )
    assert await rows(connection) == 1
    await expect_nothing_stranded(connection)


async def test_a_bulk_insert_makes_one_row_for_each_queue(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action)"
        " select 'S', 'q' || i % 7, 'a' from generate_series(1, 1000) i"
    )
    assert await rows(connection) == 7
    await expect_nothing_stranded(connection)


async def test_one_job_behind_many_in_the_same_transaction(connection: "Connection[asyncpg.Record]") -> None:
    async with connection.transaction():
        await connection.execute(
            "insert into pgqueuetopia.jobs (scope, queue, action)"
            " select 'S', 'q' || i % 7, 'a' from generate_series(1, 100) i"
        )
        await connection.execute(
            "insert into pgqueuetopia.jobs (scope, queue, action) values ('S', 'alone', 'a')"
        )
    assert await rows(connection) == 8
    await expect_nothing_stranded(connection)


async def test_two_jobs_that_the_server_counts_as_one(connection: "Connection[asyncpg.Record]") -> None:
    async with connection.transaction():
        # A row of the run queue without a job: so two jobs more look like one more.
        await connection.execute("select pgqueuetopia.look_at('S', 'q', now(), now())")
        await connection.execute(
            "insert into pgqueuetopia.jobs (scope, queue, action) values ('S', 'a', 'a'), ('S', 'b', 'a')"
        )
    assert await rows(connection) == 3
    await expect_nothing_stranded(connection)


async def test_copy_is_enough(connection: "Connection[asyncpg.Record]") -> None:
    await connection.copy_records_to_table(
        "jobs",
        schema_name="pgqueuetopia",
        columns=["scope", "queue", "action"],
        records=[("S", f"q{n % 5}", "a") for n in range(100)],
    )
    assert await rows(connection) == 5
    await expect_nothing_stranded(connection)


async def test_a_job_scheduled_earlier_is_looked_at(connection: "Connection[asyncpg.Record]") -> None:
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at)"
        " values ('S', 'q', 'a', now() + interval '1 day')"
    )
    await connection.execute("update pgqueuetopia.jobs set scheduled_at = now()")
    await expect_nothing_stranded(connection)


async def test_a_head_scheduled_later_lets_the_next_one_be_looked_at(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute(HEAD_WAITS)
    await connection.execute(
        "update pgqueuetopia.jobs set scheduled_at = now() + interval '1 day', next_attempt_at = null"
        " where action = 'a'"
    )
    await expect_nothing_stranded(connection)


async def test_a_job_moved_to_another_queue_has_both_looked_at(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute(HEAD_WAITS)
    await connection.execute("update pgqueuetopia.jobs set queue = 'other' where action = 'a'")
    queues = await connection.fetch("select distinct queue from pgqueuetopia.run_queue order by 1")
    assert [row["queue"] for row in queues] == ["other", "q"]
    await expect_nothing_stranded(connection)


@pytest.mark.parametrize("change", ["queue = 'plain'", "scope = 'T'", "topic = false"])
async def test_a_job_that_is_taken_out_of_a_topic_is_looked_at(
    connection: "Connection[asyncpg.Record]", change: str
) -> None:
    """By whoever knows its queue for a topic, or does not."""
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, topic) values ('S', 't', 'a', true)"
    )
    assert await rows(connection) == 0
    await connection.execute(f"update pgqueuetopia.jobs set {change}")
    assert await connection.fetchval("select topic from pgqueuetopia.jobs") is False
    assert await rows(connection) > 0
    await expect_nothing_stranded(connection)


async def test_a_job_of_a_topic_that_is_moved_when_it_has_ended_is_looked_at_once_it_is_brought_back(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(
        "insert into pgqueuetopia.jobs (scope, queue, action, topic) values ('S', 't', 'a', true)"
    )
    await connection.execute("update pgqueuetopia.jobs set done_at = now(), outcome = 'succeeded'")
    await connection.execute("update pgqueuetopia.jobs set queue = 'plain'")
    await connection.execute("delete from pgqueuetopia.run_queue")
    await connection.execute("update pgqueuetopia.jobs set done_at = null, outcome = null")
    assert await connection.fetchval("select topic from pgqueuetopia.jobs") is False
    await expect_nothing_stranded(connection)


async def test_a_deleted_head_lets_the_next_one_be_looked_at(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute(HEAD_WAITS)
    await connection.execute("delete from pgqueuetopia.jobs where action = 'a'")
    await expect_nothing_stranded(connection)


async def test_a_waiting_head_ended_by_hand_lets_the_next_one_be_looked_at(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute(HEAD_WAITS)
    await connection.execute(
        "update pgqueuetopia.jobs set done_at = now(), outcome = 'cancelled' where action = 'a'"
    )
    await expect_nothing_stranded(connection)


async def test_a_wait_cut_short_by_hand_is_looked_at(connection: "Connection[asyncpg.Record]") -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute(HEAD_WAITS)
    await connection.execute("update pgqueuetopia.jobs set next_attempt_at = now() where action = 'a'")
    await expect_nothing_stranded(connection)


async def test_a_finished_job_brought_back_is_looked_at(
    connection: "Connection[asyncpg.Record]",
) -> None:
    await connection.execute(TWO_JOBS)
    await connection.execute("update pgqueuetopia.jobs set done_at = now(), outcome = 'succeeded'")
    await connection.execute("delete from pgqueuetopia.run_queue")
    await connection.execute("update pgqueuetopia.jobs set done_at = null, outcome = null")
    await expect_nothing_stranded(connection)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("params", "'[]'"),
        ("timeout", "'-1 s'"),
        ("timeout", "'3000000 years'"),
        ("max_backoff", "'-1 s'"),
        ("max_backoff", "'3000000 years'"),
        ("max_attempts", "0"),
        ("scheduled_at", "'infinity'"),
        ("scheduled_at", "'0044-03-15 12:00:00Z BC'"),
        ("scheduled_at", "'12000-01-01 00:00:00Z'"),
        ("outcome", "'lost'"),
        ("done_at", "now()"),
    ],
)
async def test_the_database_has_the_same_rules(
    connection: "Connection[asyncpg.Record]", columns: str, values: str
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            f"insert into pgqueuetopia.jobs (scope, queue, action, {columns})"
            f" values ('S', 'q', 'a', {values})"
        )


@pytest.mark.parametrize("name", ["scope", "queue", "action"])
@pytest.mark.parametrize("value", ["", "x" * 256])
async def test_the_database_refuses_bad_names(
    connection: "Connection[asyncpg.Record]", name: str, value: str
) -> None:
    names = {"scope": "S", "queue": "q", "action": "a"} | {name: value}
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            "insert into pgqueuetopia.jobs (scope, queue, action) values ($1, $2, $3)", *names.values()
        )


async def test_no_trigger_has_each_update_lock_its_row_first(
    connection: "Connection[asyncpg.Record]",
) -> None:
    """As one before an update does, whatever its condition."""
    before_each_update = 1 | 2 | 16
    found = await connection.fetch(
        "select tgname from pg_trigger where tgrelid = any ($1::regclass[]) and tgtype & $2 = $2",
        ["pgqueuetopia.jobs", "pgqueuetopia.run_queue"],
        before_each_update,
    )
    assert found == []
