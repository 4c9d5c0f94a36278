import json
import logging
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import asyncpg
import pytest
import structlog
from typer.testing import CliRunner, Result

from pgqueuetopia import Job, logs
from pgqueuetopia.cli import show
from pgqueuetopia.cli.app import app as commands
from pgqueuetopia.cli.runtime import COLLECT_AFTER
from tests.support import Recorder, an_app, eventually

PROGRAM = [sys.executable, "-m", "pgqueuetopia"]
APP = """
import anyio
from pgqueuetopia import Performer, Queuetopia, Repo, Settings

class ShopPerformer(Performer):
    async def perform(self, job):
        await anyio.sleep(job.params.get("seconds", 0))

class ShopSettings(Settings):
    rate: int = 10

class Shop(Queuetopia):
    performer = ShopPerformer()
    settings = ShopSettings()

class Idle(Queuetopia):
    pass

class Fixed(Queuetopia):
    repo = Repo("postgresql://elsewhere/x")

instance = Shop(scope="Other")
number = 7
"""


class Command:
    """Runs one command in this process."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def __call__(self, *arguments: str) -> Result:
        run = partial(CliRunner().invoke, commands, list(arguments), env={"PGQUEUETOPIA_DSN": self.dsn})
        try:
            result: Result = await anyio.to_thread.run_sync(run)
        finally:
            plain_logging()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def json(self, *arguments: str) -> Any:
        result = await self(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    async def refusal(self, *arguments: str) -> str:
        """What it says on stderr as it exits with 1, and with nothing on stdout."""
        result = await self(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Traceback" not in result.stderr
        return result.stderr


def plain_logging() -> None:
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in [known for known in root.handlers if known.name == logs.HANDLER]:
        root.removeHandler(handler)


@pytest.fixture
def command(dsn: str) -> Iterator[Command]:
    level = logging.getLogger().level
    yield Command(dsn)
    logging.getLogger().setLevel(level)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the current directory."""
    name = f"shop_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return name


async def failed_job(dsn: str, queue: str = "q", **options: Any) -> Job:
    async with an_app(dsn, Recorder(lambda job: 1 / 0), retry_seconds=3_600, **options) as app, app.running():
        job = await app.create_job(queue, "send", {"to": "a@b.c"}, max_attempts=5)

        async def failed() -> bool:
            return bool((await app.get_job(job)).errors)

        await eventually(failed)
        return job


# Which scope


async def test_a_command_without_a_scope_names_those_that_there_are(command: Command) -> None:
    async with an_app(command.dsn, scope="Mails") as mails, an_app(command.dsn, scope="Media") as media:
        await mails.create_job("q", "a")
        await media.configs.set("rate", "1")
    assert "--scope NAME (on this database: Mails, Media)" in await command.refusal("status")


async def test_a_scope_is_given_by_name_or_by_the_program(command: Command, shop: str) -> None:
    assert (await command.json("status", "--scope", "Shop"))["scope"] == "Shop"
    assert (await command.json("status", "--app", f"{shop}:Shop"))["scope"] == "Shop"
    assert (await command.json("status", "--app", f"{shop}:instance"))["scope"] == "Other"
    assert "not both" in await command.refusal("status", "--scope", "Shop", "--app", f"{shop}:Shop")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}", "shop.mails:Mails"),
        ("{}:Missing", "has no 'Missing'"),
        ("{}:number", "is no Queuetopia, but int"),
        ("no_such_module:App", "no module 'no_such_module'"),
        ("{}.inner:App", "no module"),
    ],
)
async def test_a_program_that_is_not_found_is_told_in_a_sentence(
    command: Command, shop: str, path: str, message: str
) -> None:
    assert message in await command.refusal("status", "--app", path.format(shop))


async def test_a_fault_inside_the_users_module_keeps_its_traceback(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_program.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        await command("status", "--app", "broken_program:App")


async def test_a_dsn_is_taken_before_the_environment_and_never_silently_ignored(
    command: Command, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, command.dsn = command.dsn, "postgresql://elsewhere/x"
    assert (await command.json("status", "--scope", "Shop", "--dsn", dsn))["count"] == 0
    assert (await command.json("status", "--app", f"{shop}:Shop", "--dsn", dsn))["count"] == 0
    assert "leave --dsn out" in await command.refusal("status", "--app", f"{shop}:Fixed", "--dsn", dsn)


async def test_a_database_that_is_away_is_told_without_a_traceback(command: Command) -> None:
    command.dsn = "postgresql://nobody@/none?host=/nowhere"
    assert "cannot be reached" in await command.refusal("status", "--scope", "Shop")


async def test_an_unmigrated_database_says_what_to_run(command: Command, fresh_dsn: str) -> None:
    assert "migrate" in await command.refusal("status", "--scope", "Shop", "--dsn", fresh_dsn)


# Looking


async def test_status_counts_the_jobs_of_a_scope_or_a_queue(command: Command) -> None:
    async with an_app(command.dsn) as app:
        await app.create_job("now", "a")
        await app.create_job("later", "a", scheduled_at=timedelta(hours=1))
    found = await command.json("status", "--scope", "Test")
    assert (found["ready"], found["scheduled"], found["count"]) == (1, 1, 2)
    assert (await command.json("status", "later", "--scope", "Test"))["ready"] == 0
    assert "scheduled\t1" in (await command("status", "--scope", "Test")).stdout


async def test_blocked_shows_why(command: Command) -> None:
    job = await failed_job(command.dsn)
    [found] = await command.json("blocked", "--scope", "Test")
    assert (found["queue"], found["head"]) == ("q", job.id)
    assert "ZeroDivisionError" in found["why"]
    assert "ZeroDivisionError" in (await command("blocked", "--scope", "Test")).stdout


async def test_a_head_that_waits_for_an_operator_has_no_next_attempt(command: Command) -> None:
    async with (
        an_app(command.dsn, Recorder(lambda job: 1 / 0), on_exhausted="block") as app,
        app.running(),
    ):
        await app.create_job("q", "a", max_attempts=1)
        await eventually(app.blocked_queues)
    [found] = await command.json("blocked", "--scope", "Test")
    assert found["next_attempt_at"] is None


async def test_jobs_come_a_page_at_a_time_and_filtered(command: Command) -> None:
    async with an_app(command.dsn) as app:
        jobs = await app.create_jobs(
            [{"queue": f"q{n % 2}", "action": "a", "params": {"n": n}} for n in range(6)]
        )
    page = await command.json("jobs", "--scope", "Test", "--queue", "q0", "--limit", "2")
    assert [job["id"] for job in page["jobs"]] == [jobs[0].id, jobs[2].id]
    assert page["total"] == 3
    rest = await command.json("jobs", "--scope", "Test", "--queue", "q0", "--after", str(page["next"]))
    assert [job["id"] for job in rest["jobs"]] == [jobs[4].id]
    assert rest["next"] is None
    found = await command.json("jobs", "--scope", "Test", "--search", '"n": 5', "--state", "blocked")
    assert found["total"] == 0
    text = await command("jobs", "--scope", "Test", "--limit", "5", "--action", "a")
    assert len(text.stdout.splitlines()) == 6
    assert f"--after {jobs[4].id}" in text.stderr


async def test_one_job_is_shown_with_its_errors(command: Command) -> None:
    job = await failed_job(command.dsn)
    found = await command.json("jobs", "show", str(job.id), "--scope", "Test")
    assert found["params"] == {"to": "a@b.c"}
    assert found["timeout"] == 60
    assert "ZeroDivisionError" in found["errors"][0]["error"]
    text = (await command("jobs", "show", str(job.id), "--scope", "Test")).stdout
    assert "attempt 1" in text
    assert "Traceback" in text
    assert "has no job 999" in await command.refusal("jobs", "show", "999", "--scope", "Test")


# Acting


async def test_a_job_is_cancelled_or_abandoned_once(command: Command) -> None:
    async with an_app(command.dsn) as app:
        first, second = [await app.create_job("q", "a") for _ in range(2)]
        answer = await command.json("jobs", "cancel", str(first.id), "--scope", "Test")
        assert answer == {"job": first.id, "result": "OK"}
        assert (await command("jobs", "abandon", str(second.id), "--scope", "Test")).exit_code == 0
        assert [job.outcome for job in await app.list_jobs()] == ["cancelled", "abandoned"]
    assert "no pending job" in await command.refusal("jobs", "cancel", str(first.id), "--scope", "Test")
    again = await command("jobs", "cancel", str(first.id), "--scope", "Test", "--json")
    assert (again.exit_code, json.loads(again.stdout)["result"]) == (1, "NOT_FOUND")


async def test_a_running_job_is_not_cancelled(command: Command) -> None:
    async with an_app(command.dsn, Recorder(lambda _: anyio.sleep(60)), shutdown=0) as app, app.running():
        job = await app.create_job("q", "a")

        async def executing() -> bool:
            return (await app.status()).executing == 1

        await eventually(executing)
        assert "runs now" in await command.refusal("jobs", "abandon", str(job.id), "--scope", "Test")


async def test_one_job_or_all_that_wait_are_retried(command: Command) -> None:
    job = await failed_job(command.dsn)
    other = await failed_job(command.dsn, "other")
    assert await command.json("jobs", "retry", str(job.id), "--scope", "Test") == {"retried": 1}
    assert await command.json("jobs", "retry", "--all", "--queue", "none", "--scope", "Test") == {
        "retried": 0
    }
    assert await command.json("jobs", "retry", "--all", "--queue", "other", "--scope", "Test") == {
        "retried": 1
    }
    async with an_app(command.dsn) as app:
        assert (await app.get_job(other)).attempts == 0
    assert "--all" in await command.refusal("jobs", "retry", "--scope", "Test")
    assert "--all" in await command.refusal("jobs", "retry", "1", "--queue", "q", "--scope", "Test")


async def test_a_scope_or_one_queue_is_suspended_and_resumed(command: Command) -> None:
    async with an_app(command.dsn) as app:
        assert await command.json("suspend", "--wait", "--scope", "Test") == {
            "queue": None,
            "suspended": True,
        }
        assert (await app.status()).suspended
        assert (await command("resume", "--scope", "Test")).stdout == "resumed\n"
        assert (await command("suspend", "q", "--scope", "Test")).stdout == "suspended\n"
        assert (await app.status("q")).suspended
        assert not (await app.status()).suspended


async def test_what_was_suspended_everywhere_is_resumed_everywhere(command: Command) -> None:
    async with an_app(command.dsn) as app:
        assert (await command("suspend", "--everywhere")).exit_code == 0
        assert (await app.status()).suspended
        still = await command("resume", "--scope", "Test", "--json")
        assert json.loads(still.stdout)["suspended"] is True
        assert "still_suspended" in still.stderr
        assert (await command("resume", "--everywhere")).exit_code == 0
        assert not (await app.status()).suspended
    assert "not both" in await command.refusal("suspend", "--everywhere", "--scope", "Test")
    assert "one scope" in await command.refusal("suspend", "--everywhere", "--wait")


async def test_configs_are_set_read_and_deleted(command: Command, shop: str) -> None:
    scope = ("--scope", "Shop")
    assert (await command("config", "set", "rate", "20", *scope)).exit_code == 0
    assert (await command("config", "set", "color", "red", "--everywhere")).exit_code == 0
    assert (await command("config", "get", "rate", *scope)).stdout == "20\n"
    assert await command.json("config", "list", *scope) == {
        "color": "red",
        "rate": "20",
        "suspended": "false",
    }
    assert "rate" not in await command.json("config", "list", "--everywhere")
    assert "integer" in await command.refusal("config", "set", "rate", "x", "--app", f"{shop}:Shop")
    assert (await command("config", "delete", "rate", *scope)).exit_code == 0
    assert "no config 'rate'" in await command.refusal("config", "get", "rate", *scope)


# The database itself


@pytest.mark.slow
async def test_migrate_goes_up_and_down(command: Command, fresh_dsn: str) -> None:
    command.dsn = fresh_dsn
    assert (await command("migrate", "status")).exit_code == 1
    assert "applied 0001" in (await command("migrate")).stdout
    assert (await command("migrate", "status", "--dsn", fresh_dsn)).exit_code == 0
    assert "undone" in (await command("migrate", "down", "--to", "2")).stdout
    assert "create table" in (await command("migrate", "sql")).stdout


async def test_doctor_exits_with_1_where_there_is_a_problem(command: Command, fresh_dsn: str) -> None:
    assert (await command.json("doctor"))["level"] == "ok"
    assert (await command("doctor")).exit_code == 0
    sick = await command("doctor", "--dsn", fresh_dsn, "--json")
    assert sick.exit_code == 1
    assert json.loads(sick.stdout)["level"] == "problem"
    assert "pgqueuetopia migrate" in (await command("doctor", "--dsn", fresh_dsn)).stdout


async def test_doctor_counts_the_locks_of_the_nodes_to_come(command: Command, shop: str) -> None:
    result = await command("doctor", "--nodes", "1000", "--app", f"{shop}:Shop", "--json")
    findings = {one["check"]: one for one in json.loads(result.stdout)["findings"]}
    assert findings["locks"]["level"] == "problem"


# What is printed


def test_no_text_of_a_job_breaks_the_line_or_commands_the_terminal() -> None:
    assert show.in_one_line("a\nb\x1b[31mc\t") == r"a\nb\x1b[31mc\t"
    assert show.in_one_line({"k": "[red]ü"}) == '{"k": "[red]ü"}'
    assert show.in_one_line(("a", "b")) == "a, b"
    assert show.in_one_line(None) == show.in_one_line(()) == "-"
    assert show.in_one_line(datetime.max.replace(tzinfo=UTC)) == "never"


@pytest.mark.parametrize("log_level", ["loud", ""])
async def test_an_unknown_log_level_is_a_usage_error(command: Command, log_level: str) -> None:
    assert (await command("--log-level", log_level, "doctor")).exit_code == 2


# Processes


class Running:
    """A command that runs in a process of its own, and what it says."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.stdout = ""
        self.stderr = ""

    async def read(self) -> None:
        async def follow(name: str, stream: anyio.abc.ByteReceiveStream | None) -> None:
            assert stream
            async for chunk in stream:
                setattr(self, name, getattr(self, name) + chunk.decode())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, "stdout", self.process.stdout)
            tasks.start_soon(follow, "stderr", self.process.stderr)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.stderr.splitlines()]

    async def ended(self) -> int:
        with anyio.fail_after(20):
            return await self.process.wait()


@asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[Running]:
    async with (
        await anyio.open_process([*PROGRAM, *arguments], env=os.environ | environment) as opened,
        anyio.create_task_group() as tasks,
    ):
        running = Running(opened)
        tasks.start_soon(running.read)
        try:
            yield running
        finally:
            if opened.returncode is None:
                opened.kill()


def said(running: Running, event: str, times: int = 1) -> Callable[[], bool]:
    return lambda: running.stderr.count(f'"{event}"') >= times


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Shop", "instance"])
async def test_run_performs_jobs_until_sigterm_and_exits_with_0(dsn: str, shop: str, name: str) -> None:
    scope = "Shop" if name == "Shop" else "Other"
    async with (
        an_app(dsn, scope=scope) as app,
        process("run", f"{shop}:{name}", PGQUEUETOPIA_DSN=dsn) as node,
    ):
        await eventually(said(node, "node_started"))
        job = await app.create_job("q", "a", {"seconds": 0.3})

        async def executing() -> bool:
            return (await app.status()).executing == 1

        await eventually(executing)
        node.process.send_signal(signal.SIGTERM)
        assert await node.ended() == 0
        assert (await app.get_job(job)).outcome == "succeeded"
    assert node.events() == ["node_started", "signal_received", "node_left"]
    assert node.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(("own", "threshold"), [("", COLLECT_AFTER), ("gc.set_threshold(900)", 900)])
async def test_a_nodes_process_collects_rarely_unless_the_application_says_how_often(
    own: str, threshold: int
) -> None:
    program = f"""
import gc
from pgqueuetopia.cli import runtime

async def main():
    print(gc.get_threshold()[0], gc.get_freeze_count() > 0)

{own}
runtime.run(main)
"""
    ended = await anyio.run_process([sys.executable, "-c", program])
    assert ended.stdout.decode() == f"{threshold} True\n"


@pytest.mark.slow
async def test_a_second_signal_interrupts_the_jobs_at_once(dsn: str, shop: str) -> None:
    async with (
        an_app(dsn, scope="Shop") as app,
        process("run", f"{shop}:Shop", "--dsn", dsn) as node,
    ):
        await eventually(said(node, "node_started"))
        job = await app.create_job("q", "a", {"seconds": 60})

        async def executing() -> bool:
            return (await app.status()).executing == 1

        await eventually(executing)
        node.process.send_signal(signal.SIGINT)
        await eventually(said(node, "signal_received"))
        node.process.send_signal(signal.SIGTERM)
        assert await node.ended() == 0
        job = await app.get_job(job)
        assert (job.outcome, job.attempts) == (None, 0)
    assert "jobs_interrupted" in node.events()


@pytest.mark.slow
async def test_a_node_that_cannot_start_says_why_without_a_traceback(dsn: str, shop: str) -> None:
    async with process("run", f"{shop}:Idle", PGQUEUETOPIA_DSN=dsn) as node:
        assert await node.ended() == 1
    assert node.stderr == "Idle needs a performer to run jobs: performer = MyPerformer()\n"


@pytest.mark.slow
async def test_a_node_on_an_unmigrated_database_says_what_to_run(fresh_dsn: str, shop: str) -> None:
    async with process("run", f"{shop}:Shop", PGQUEUETOPIA_DSN=fresh_dsn) as node:
        assert await node.ended() == 1
    assert "Run: python -m pgqueuetopia.migrate" in node.stderr
    assert "Traceback" not in node.stderr


@pytest.fixture
def data() -> Iterator[str]:
    """Where a server may live. Not tmp_path: as root, its user could not enter the folders above."""
    with tempfile.TemporaryDirectory(prefix="pgq-dev-", dir="/tmp") as parent:
        Path(parent).chmod(0o755)
        yield f"{parent}/data"


@pytest.mark.slow
async def test_dev_serves_a_migrated_database_until_it_is_told_to_stop(data: str) -> None:
    async with process("dev", PGQUEUETOPIA_DATA=data) as server:
        await eventually(lambda: "export " in server.stdout and server.stdout.endswith("\n"))
        [export] = [line for line in server.stdout.splitlines() if line.startswith("export ")]
        name, _, dsn = shlex.split(export)[1].partition("=")
        assert name == "PGQUEUETOPIA_DSN"
        async with an_app(dsn) as app:
            await app.create_job("q", "a")
        server.process.send_signal(signal.SIGINT)
        assert await server.ended() == 0
        with pytest.raises(OSError, match="No such file"):
            await asyncpg.connect(dsn)
