import math
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest
from structlog.testing import capture_logs

from pgqueuetopia import (
    DatabaseUnavailable,
    InvalidJob,
    Job,
    Misconfigured,
    NewJob,
    Performer,
    Queuetopia,
    Repo,
    Topic,
    Worker,
)
from tests.support import Recorder, an_app


class Counting(Worker):
    def perform(self, job: Job) -> None: ...


async def test_a_job_comes_back_as_it_was_stored(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job(
            "mails_1",
            "send_mail",
            {"to": "ä@b.c", "nested": {"list": [1, 2.5, None, True]}},
            timeout=1.5,
            max_backoff=timedelta(hours=1),
            max_attempts=3,
            priority=-2,
        )
        assert await app.get_job(job) == job
    assert (job.scope, job.queue, job.action, job.state) == ("Test", "mails_1", "send_mail", "ready")
    assert job.params == {"to": "ä@b.c", "nested": {"list": [1, 2.5, None, True]}}
    assert (job.timeout, job.max_backoff) == (timedelta(seconds=1.5), timedelta(hours=1))
    assert (job.max_attempts, job.priority, job.attempts, job.claim) == (3, -2, 0, 0)


async def test_a_pool_that_is_closed_while_somebody_connects_is_opened_again_for_them(dsn: str) -> None:
    found = []

    async def find() -> None:
        found.append(await app.get_job(job))

    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        for turns in range(10):
            await app.close()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(find)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                await app.close()
    assert found == [job] * 10


async def test_the_defaults_are_those_of_queuetopia(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
    assert (job.timeout, job.max_backoff, job.max_attempts, job.params) == (
        timedelta(seconds=60),
        timedelta(days=1),
        20,
        {},
    )


async def test_scheduled_at_is_a_time_or_a_delay(dsn: str) -> None:
    when = datetime.now(UTC) + timedelta(days=3)
    async with an_app(dsn) as app:
        at = await app.create_job("q", "a", scheduled_at=when)
        delayed = await app.create_job("q", "a", scheduled_at=timedelta(hours=1))
        assert delayed.state == (await app.get_job(delayed)).state == "scheduled"
        assert at.scheduled_at == when
        assert delayed.scheduled_at - delayed.inserted_at == timedelta(hours=1)
        assert (await app.get_job(at)).state == "scheduled"


async def test_a_job_in_a_transaction_that_is_rolled_back_never_existed(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app:
        transaction = connection.transaction()
        await transaction.start()
        await app.create_job("q", "a", conn=connection)
        await app.create_jobs([NewJob("q", "a")], conn=connection)
        await transaction.rollback()
        assert (await app.list_jobs()).total == 0


async def test_a_job_in_a_transaction_that_commits_is_there(dsn: str) -> None:
    async with (
        an_app(dsn) as app,
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
    ):
        async with connection.transaction():
            job = await app.create_job("q", "a", conn=connection)
            assert (await app.list_jobs()).total == 0
        assert [found.id for found in await app.list_jobs()] == [job.id]


async def test_a_connection_with_a_codec_of_its_own_works(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    import json

    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a", {"x": 1}, conn=connection)
        assert (await app.get_job(job)).params == {"x": 1}


async def test_many_jobs_are_stored_in_the_order_given(dsn: str) -> None:
    async with an_app(dsn) as app:
        jobs = await app.create_jobs(
            [{"queue": f"q{n % 3}", "action": "a", "params": {"n": n}} for n in range(2000)]
        )
        assert [job.params["n"] for job in jobs] == list(range(2000))
        assert [job.id for job in jobs] == sorted(job.id for job in jobs)
        assert (await app.list_jobs(limit=1)).total == 2000
        assert await app.create_jobs([]) == []


async def test_many_jobs_are_all_or_nothing_and_every_fault_is_named(dsn: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(InvalidJob) as raised:
            await app.create_jobs(
                [NewJob("q", "a"), NewJob("", "a"), {"queue": "q", "action": "a", "colour": 1}]
            )
        assert raised.value.faults == (
            "job 1: queue must not be empty",
            "job 2: got an unexpected keyword argument 'colour'",
        )
        assert (await app.list_jobs()).total == 0


async def test_what_the_database_refuses_is_an_error_of_ours(dsn: str) -> None:
    async with an_app("postgresql://nobody@127.0.0.1:1/none") as app:
        with pytest.raises(DatabaseUnavailable):
            await app.create_job("q", "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, "Unknown settings: colour"),
        ({"scope": ""}, "scope must not be empty"),
        ({"scope": "*"}, "stands for every scope"),
        ({"concurrency": 0}, "concurrency must be an integer of at least 1, not 0"),
        ({"prefetch": 0}, "prefetch must be an integer of at least 1, not 0"),
        ({"poll_interval": -1}, "poll_interval must be at least"),
        ({"on_exhausted": "explode"}, "on_exhausted must be one of abandon, block"),
        ({"shutdown": "soon"}, "shutdown must be seconds or a timedelta"),
        (
            {"cleanup_interval": None},
            "cleanup_interval must be seconds .* leave it out for what it is by default",
        ),
        ({"poll_interval": math.nan}, "poll_interval must be at least"),
        ({"poll_interval": 10**400}, "poll_interval must be at most 31,536,000,000 seconds"),
        ({"job_retention": timedelta.max}, "job_retention must be at most 31,536,000,000 seconds"),
        ({"session_timeout": timedelta(days=2)}, "session_timeout must be at most 86,400 seconds"),
        ({"performer": Recorder}, r"not a class: performer = Recorder\(\)"),
        ({"performer": Performer()}, r"Performer needs perform\(job\), or methods marked with @action"),
        ({"performer": print}, "must be a Performer or Workers, not builtin_function_or_method"),
        ({"performer": Counting()}, r"not one Worker: performer = Workers\(Counting\)"),
        ({"performer": Counting}, r"not one Worker: performer = Workers\(Counting\)"),
        ({"settings": {"colour": "red"}}, "settings must be a Settings of yours, not dict"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        Queuetopia(**{"repo": Repo("postgresql://nobody@127.0.0.1:1/none"), **options})


async def test_the_longest_session_timeout_can_be_set(dsn: str) -> None:
    async with an_app(dsn, Recorder(), session_timeout=timedelta(days=1)) as app, app.running():
        assert (await app.status()).nodes


def test_a_dsn_is_no_repo_and_is_not_told() -> None:
    with pytest.raises(Misconfigured, match=r"repo must be a Repo, as in repo = Repo\(dsn\)") as raised:
        Queuetopia(repo="postgresql://u:secret@h/d")
    assert "secret" not in str(raised.value)


def test_a_misspelt_setting_of_a_class_is_told() -> None:
    class Base(Queuetopia):
        poll_intervall = 5

    class Shop(Base):
        concurency = 5
        # All of these are its own.
        topic = "mails"
        topics = (Topic("mails"),)
        colour = "red"

        def repos(self) -> None: ...

    with capture_logs() as logs:
        Shop()
    assert [(line["name"], line["hint"]) for line in logs] == [
        ("concurency", "is concurrency meant?"),
        ("poll_intervall", "is poll_interval meant?"),
    ]


def test_the_scope_is_the_name_of_the_class() -> None:
    class MailQueuetopia(Queuetopia):
        poll_interval = 5

    assert MailQueuetopia().scope == "MailQueuetopia"
    assert MailQueuetopia(scope="Other", poll_interval=1).poll_interval == 1


async def test_running_needs_a_performer(dsn: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(Misconfigured, match="needs a performer"):
            async with app.running():
                pass


def test_a_repo_never_shows_its_password() -> None:
    assert "secret" not in repr(Repo("postgresql://u:secret@h/d"))
