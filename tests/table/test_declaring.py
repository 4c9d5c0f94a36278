"""What a table queue may be, and what is refused before anything is sent."""

from typing import Any

import pytest

from pgqueuetopia import (
    InvalidJob,
    Misconfigured,
    Move,
    NewJob,
    Queuetopia,
    Repo,
    Retry,
    TableQueue,
    Topic,
)
from tests.support import Recorder, an_app


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"queue": ""}, "its name must not be empty"),
        ({"queue": "ä" * 21}, "its name has 42 bytes; at most 40"),
        ({"table": "x" * 64}, "table has 64 bytes; at most 63"),
        ({"table": "a\0b"}, "NUL"),
        ({"schema": 3}, "schema must be a string"),
        ({"key": ()}, "key must name at least one column"),
        ({"key": ("id", "id")}, "key names a column twice"),
        ({"key": 3}, "key must be a list or a tuple of columns"),
        ({"rerun_when": "name"}, "rerun_when must be a list"),
        ({"run_if": "  "}, "run_if must be SQL"),
        ({"run_if": 1}, "run_if must be SQL"),
        ({"task": "run"}, "task must be a function"),
        ({"poll_interval": 0}, "poll_interval must be seconds or a timedelta, at least 0.01"),
        ({"stale_timeout": "300"}, "stale_timeout must be seconds"),
        ({"max_job_time": float("inf")}, "max_job_time must be seconds"),
        ({"max_attempts": 0}, "max_attempts must be an integer of at least 1"),
        ({"concurrency": True}, "concurrency must be an integer"),
        ({"failure_mode": Retry}, "failure_mode must be an instance"),
        ({"failure_mode": Move("q")}, "moves its jobs to itself"),
        ({"database": "mysql"}, "database must be one of postgresql, cockroachdb"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault):
        TableQueue(**{"queue": "q", "table": "t", **given})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(Misconfigured, match=r"table must not be empty.*max_attempts.*must be one of"):
        TableQueue("q", table="", max_attempts=0, database="mysql")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"table_queues": TableQueue("q", table="t")}, "must be a list of TableQueue"),
        ({"table_queues": ["photos"]}, "must be a list of TableQueue"),
        ({"table_queues": [TableQueue("q", table="t"), TableQueue("q", table="u")]}, "the name 'q'"),
        ({"table_queues": [TableQueue("q", table="t")], "topics": [Topic("q")]}, "the name 'q'"),
        ({"table_queues": [TableQueue("q", table="t")], "failure_mode": Move("q")}, "only rows are jobs"),
        (
            {
                "table_queues": [TableQueue("q", table="t")],
                "failure_modes": {"x": Retry(2, finally_=Retry(1, finally_=Move("q")))},
            },
            r"failure_modes\['x'\] moves jobs to the table queue 'q'",
        ),
        (
            {
                "table_queues": [
                    TableQueue("q", table="t"),
                    TableQueue("r", table="t", failure_mode=Move("q")),
                ]
            },
            "the failure_mode of table queue 'r'",
        ),
    ],
)
def test_table_queues_that_do_not_go_together_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault):
        Queuetopia(repo=Repo(), **options)


async def test_no_job_can_be_created_for_a_table_queue_or_moved_there(dsn: str) -> None:
    async with an_app(dsn, table_queues=[TableQueue("q", table="t")]) as app:
        with pytest.raises(InvalidJob, match="insert a row into"):
            await app.create_job("q", "run")
        with pytest.raises(InvalidJob, match="insert a row into"):
            await app.create_job("other", "run", failure_mode=Retry(1, finally_=Move("q")))
        with pytest.raises(InvalidJob, match="job 1: 'q' is a table queue"):
            await app.create_jobs([NewJob("other", "run"), NewJob("q", "run")])
        job = await app.create_job("other", "run")
        with pytest.raises(InvalidJob, match="insert a row into"):
            await app.move(job, "q")
        assert (await app.status()).count == 1


def test_a_table_queue_is_asked_for_by_its_name_or_its_declaration() -> None:
    queue = TableQueue("q", table="t")
    app = Queuetopia(repo=Repo(), table_queues=[queue])
    assert app.table("q").queue is app.table(queue).queue is queue
    with pytest.raises(Misconfigured, match="no table queue 'other'; table_queues has: q"):
        app.table("other")


@pytest.mark.parametrize("key", [{"id": 1}, (1,), {"id": 1, "tenant": 2, "more": 3}, 1])
async def test_a_key_of_another_shape_is_refused(key: object) -> None:
    app = Queuetopia(repo=Repo(), table_queues=[TableQueue("q", table="t", key=("id", "tenant"))])
    with pytest.raises(Misconfigured, match="A key of 't' has id, tenant"):
        await app.table("q").cancel(key)


async def test_table_queues_need_a_performer(dsn: str) -> None:
    async with an_app(dsn, table_queues=[TableQueue("q", table="t")], topics=[Topic("x")]) as app:
        with pytest.raises(Misconfigured, match="needs a performer"):
            async with app.running():
                pass


async def test_a_name_that_must_be_quoted_is(dsn: str) -> None:
    queue = TableQueue('a "queue"; --', table="t", key=("from", 'to"'))
    async with an_app(dsn, Recorder(), table_queues=[queue]) as app:
        assert app.table(queue).queue.names.lock == '"pgqueuetopia_a ""queue""; --_lock"'
