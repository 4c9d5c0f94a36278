import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from examples.config_listener import Api, Mails, an_api
from examples.demo import checks, mails
from pgqueuetopia import Repo
from pgqueuetopia.db import migrations
from tests.support import eventually

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "examples" / "quickstart.py"
MAILS = [f"mails_1: mail to {name}@example.com" for name in ("ada", "grace", "edsger")]

# One queue of two mails; the first one fails once.
GOOD_RUN = """
insert into pgqueuetopia.jobs (id, scope, queue, action, attempts, attempted_at, done_at, outcome)
values
  (1, 'Demo', 'mails_1', 'send_mail', 2, now(), now(), 'succeeded'),
  (2, 'Demo', 'mails_1', 'send_mail', 1, now(), now(), 'succeeded');
insert into demo.deliveries (job, queue, attempt, node, started, ended, delivered)
values
  (1, 'mails_1', 1, 'a', 1, 2, false),
  (1, 'mails_1', 2, 'b', 3, 4, true),
  (2, 'mails_1', 1, 'a', 7, 8, true);
insert into demo.pauses values (5, 6);
"""


@pytest.fixture
def own_server() -> Iterator[dict[str, str]]:
    """An environment that names no database, with a place for the embedded server's data."""
    # Not under pytest's own folder: a server run as another user could not enter it.
    folder = tempfile.mkdtemp(prefix="pgqueuetopia-test-", dir="/tmp")
    hidden = ("PGQUEUETOPIA_DSN", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    yield {**kept, "PGQUEUETOPIA_DATA": f"{folder}/server"}
    shutil.rmtree(folder, ignore_errors=True)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )


@pytest.mark.slow
def test_the_quickstart_runs_on_the_database_that_the_environment_names(dsn: str) -> None:
    ended = run(str(QUICKSTART), **{**os.environ, "PGQUEUETOPIA_DSN": dsn})
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if line in MAILS] == MAILS


@pytest.mark.slow
def test_the_quickstart_runs_with_nothing_set_and_again(own_server: dict[str, str]) -> None:
    for _ in range(2):
        ended = run(str(QUICKSTART), **own_server)
        assert ended.returncode == 0, ended.stderr
        assert [line for line in ended.stdout.splitlines() if line in MAILS] == MAILS


def test_the_quickstart_has_at_most_twenty_lines() -> None:
    assert len([line for line in QUICKSTART.read_text().splitlines() if line]) <= 20


def test_the_readme_shows_the_quickstart() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert block[1] == QUICKSTART.read_text()


@pytest.mark.slow
def test_the_demo_keeps_every_promise(own_server: dict[str, str]) -> None:
    ended = run("-m", "examples.demo", **own_server)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("✓") == len(checks.PROMISES)
    assert "PAUSED" in ended.stdout


@pytest.fixture
async def played(fresh_dsn: str) -> AsyncIterator[Connection]:
    """A database on which a small demo was played well."""
    await migrations.up(fresh_dsn)
    connection = await asyncpg.connect(fresh_dsn)
    await connection.execute(mails.TABLES)
    await connection.execute(GOOD_RUN)
    yield connection
    await connection.close()


async def test_the_demo_finds_no_fault_where_there_is_none(played: Connection) -> None:
    assert await broken_promises(played) == []


@pytest.mark.parametrize(
    ("promise", "fault"),
    [
        (
            "every mail is done",
            "update pgqueuetopia.jobs set done_at = null, outcome = null where id = 2",
        ),
        ("every mail was delivered once", "delete from demo.deliveries where job = 2"),
        (
            "every mail was delivered once",
            "insert into demo.deliveries values (2, 'mails_1', 2, 'a', 9, 10, true)",
        ),
        (
            "no queue delivered two at once",
            "update demo.deliveries set ended = 3.5 where job = 1 and attempt = 1",
        ),
        (
            "no mail overtook another of its queue",
            "update demo.deliveries set started = 2.2, ended = 2.8 where job = 2",
        ),
        ("no mail started before its time", "update pgqueuetopia.jobs set attempted_at = '2001-01-01'"),
        ("nothing started while paused", "update demo.deliveries set started = 5.5 where job = 2"),
    ],
)
async def test_the_demo_finds_a_promise_that_was_broken(played: Connection, promise: str, fault: str) -> None:
    await played.execute(fault)
    assert await broken_promises(played) == [promise]


async def broken_promises(connection: Connection) -> list[str]:
    return [promise for promise, culprits in (await checks.broken(connection)).items() if culprits]


async def test_the_config_listener_stops_every_instance_whoever_sets_the_config(
    dsn: str, connection: Connection
) -> None:
    one, two = [Mails(repo=Repo(dsn)) for _ in range(2)]
    async with an_api(one) as here, an_api(two) as there:
        assert await here.post_mails(["ada", "grace"]) == HTTPStatus.ACCEPTED
        await connection.execute(
            "insert into pgqueuetopia.job_configs (scope, key, value) values ('*', 'accept_mails', 'false')"
        )
        for api in (here, there):
            await eventually(partial(answers, api, HTTPStatus.SERVICE_UNAVAILABLE))
        queued = (await one.list_jobs()).total
        assert await there.post_mails(["ada"]) == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await one.list_jobs()).total == queued
        await one.configs.set("accept_mails", "true")
        await one.configs.set("mails_per_request", "1")
        for api in (here, there):
            await eventually(partial(answers, api, HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
    await one.close()
    await two.close()


async def answers(api: Api, status: HTTPStatus) -> bool:
    return await api.post_mails(["ada", "grace"]) == status
