"""docs/from-notify-queue.md: every block of it is run, and does what its section says."""

import ast
import inspect
import logging
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import anyio
import asyncpg
import pytest

from pgqueuetopia import Cancelled, Err, Ok, Queuetopia, Retrying
from tests.support import Recorder, eventually
from tests.test_cli import Command

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Test = TypeVar("Test", bound=Callable[..., Any])

PAGE = Path(__file__).parent.parent / "docs" / "from-notify-queue.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^    pgqueuetopia ([^#\n]*)", re.MULTILINE)
THE_QUEUE = "The queue"


class Block(NamedTuple):
    language: str
    code: str


def sections() -> dict[str, str]:
    """The text of each section, by its heading."""
    _, *parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


SECTIONS = sections()
BLOCKS = {title: [Block(*found) for found in FENCED.findall(text)] for title, text in SECTIONS.items()}
# The sections that a test stands for, by its name; the fixture sees to it that it runs all of their blocks.
proved: dict[str, str] = {}


def proves(title: str) -> Callable[[Test], Test]:
    """The test runs the blocks of this section."""

    def noted(test: Test) -> Test:
        proved[test.__name__] = title
        return test

    return noted


class Page:
    """The page's program, run block by block."""

    def __init__(self, dsn: str, connection: Connection) -> None:
        self.names: dict[str, Any] = {"__name__": "page", "dsn": dsn, "connection": connection}
        self.rows: list[asyncpg.Record] = []
        self._connection = connection
        self._left: dict[str, list[Block]] = {title: list(blocks) for title, blocks in BLOCKS.items()}

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    @property
    def process(self) -> Queuetopia:
        found: Queuetopia = self.names["process"]
        return found

    async def run(self, title: str, count: int | None = None) -> None:
        """Run the next blocks of a section, all that are left unless it is said how many."""
        blocks = self._left[title][:count]
        assert blocks, f"no block is left in {title}"
        for block in blocks:
            await self._run(block)
        del self._left[title][: len(blocks)]

    async def again(self, title: str) -> None:
        """Run all of a section's blocks once more."""
        for block in BLOCKS[title]:
            await self._run(block)

    async def _run(self, block: Block) -> None:
        match block.language:
            case "python":
                code = compile(block.code, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, self.names)
                if inspect.iscoroutine(result):
                    with anyio.fail_after(30):
                        await result
            case "sql" if block.code.startswith("select"):
                self.rows = await self._connection.fetch(block.code)
            case "sql":
                await self._connection.execute(block.code)
            case other:
                raise AssertionError(f"nobody runs {other}")

    def not_run(self, title: str) -> list[Block]:
        return self._left[title]


@pytest.fixture
async def page(dsn: str, connection: Connection, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """The page, its classes defined; at the end every block of the test's section must have been run."""
    page = Page(dsn, connection)
    await page.run(THE_QUEUE)
    page.process.retry_seconds = 0.01
    yield page
    await page.process.close()
    assert page.not_run(proved.get(request.node.name, THE_QUEUE)) == []


def test_every_block_of_the_page_belongs_to_a_section_with_a_test() -> None:
    fenced = PAGE.read_text(encoding="utf-8").count("\n```") // 2
    assert sum(map(len, BLOCKS.values())) == fenced
    assert {title for title, blocks in BLOCKS.items() if blocks} == {THE_QUEUE, *proved.values()}
    assert {block.language for blocks in BLOCKS.values() for block in blocks} == {"python", "sql"}


def test_every_link_of_the_page_leads_somewhere() -> None:
    anchors = {title.lower().replace(",", "").replace(" ", "-") for title in SECTIONS}
    links = set(re.findall(r"\]\(([^)]*)\)", PAGE.read_text(encoding="utf-8")))
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert all((PAGE.parent / link).exists() for link in links if not link.startswith("#"))


@pytest.mark.slow
async def test_every_command_of_the_page_is_understood(dsn: str, connection: Connection) -> None:
    level = logging.getLogger().level
    commands = [shlex.split(line) for text in SECTIONS.values() for line in SHELL.findall(text)]
    assert len(commands) == 9
    for arguments in commands:
        if arguments[0] == "run":
            arguments = ["run", "--help"]
        result = await Command(dsn)(*arguments)
        assert result.exit_code == 0, result.output
    logging.getLogger().setLevel(level)
    values = await connection.fetch("select distinct value from pgqueuetopia.job_configs")
    assert [row["value"] for row in values] == ["false"], "what was suspended is resumed"


@proves("Tables")
async def test_the_view_tells_a_jobs_state(page: Page) -> None:
    job = await page.process.create_job("process", "resize", {"args": ["a.png", 1]})
    await page.run("Tables")
    assert [(row["id"], row["queue"], row["state"]) for row in page.rows] == [(job.id, "process", "ready")]


@proves("Enqueue")
async def test_jobs_are_enqueued_at_once_later_in_a_transaction_and_by_sql(
    page: Page, connection: Connection
) -> None:
    await page.run("Enqueue", 2)
    jobs = await page.process.list_jobs()
    assert [job.params["args"][0] for job in jobs] == ["a.png", "b.png", "c.png", "d.png"]
    assert [job.state for job in jobs] == ["ready", "scheduled", "ready", "ready"]
    assert {job.timeout for job in jobs} == {timedelta(0)}
    assert page["later"].scheduled_at - page["job"].scheduled_at > timedelta(seconds=29)
    await page.run("Enqueue")
    assert page["told"] == Ok("resize e.png")


@proves("Notifications")
async def test_a_listener_hears_of_configs_and_of_jobs_that_wake_a_node(page: Page) -> None:
    await page.run("Notifications")

    async def a_job_is_heard_of() -> bool:
        await page.process.create_job("process", "resize", {"args": ["a.png", 1]})
        # Time for the node to fall asleep: who is awake is not told of the next.
        await anyio.sleep(0.1)
        return ("pgqueuetopia_jobs", "Process") in page["heard"]

    async with page.process.running():
        await page.process.configs.set("colour", "blue")
        await eventually(lambda: ("pgqueuetopia_configs", '["Process", "colour"]') in page["heard"])
        await eventually(a_job_is_heard_of)


@proves("Reserve, ack and nack")
async def test_a_job_is_retried_three_times_and_its_run_is_seen(page: Page) -> None:
    await page.run("Reserve, ack and nack", 1)
    assert page["replies"] == [Retrying("too wide")] * 3 + [Err("too wide")]
    wide = await page.process.get_job(page["wide"])
    assert (wide.outcome, wide.attempts) == ("abandoned", 4)
    async with busy(page) as running:
        await page.run("Reserve, ack and nack")
        assert [row["id"] for row in page.rows] == [running]


@asynccontextmanager
async def busy(page: Page) -> AsyncIterator[int]:
    """A node that runs a job as long as this is open; gives the job's id."""
    release = anyio.Event()
    page.process.performer = Recorder(lambda job: release.wait())
    async with page.process.running():
        job = await page.process.create_job("process", "resize", {"args": ["a.png", 1]}, timeout=0)
        await eventually(partial(is_in, page, job.id, "executing"))
        try:
            yield job.id
        finally:
            release.set()


async def is_in(page: Page, job: int, state: str) -> bool:
    return (await page.process.get_job(job)).state == state


@proves("Looking")
async def test_status_counts_and_filter_finds(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    small, wide, other = await page.process.create_jobs(
        [
            {"queue": "process", "action": "resize", "params": {"args": ["a.png", 10]}},
            {"queue": "process", "action": "resize", "params": {"args": ["b.png", 500]}},
            {"queue": "process", "action": "rotate", "params": {"args": ["c.png", 500]}},
        ]
    )
    given_up = await page.process.create_job("process", "resize", {"args": ["d.png", 1]})
    await page.process.abandon(given_up)
    await page.run("Looking")
    assert capsys.readouterr().out == "3 0 False\n"
    assert [job.id for job in page["small"]] == [small.id]
    assert [job.id for job in page["named"]] == [small.id, wide.id]
    assert [job.id for job in page["given_up"]] == [given_up.id]
    assert other.id not in {job.id for job in page["named"]}


@proves("Cancelling")
async def test_a_waiting_job_is_cancelled_and_a_running_one_only_where_that_is_wanted(page: Page) -> None:
    async with busy(page) as running:
        page.names["job"] = running
        await page.run("Cancelling")
        assert (page["answer"], page["answer_to_kill"]) == (Cancelled.IN_PROGRESS, Cancelled.OK)
    page.names["job"] = await page.process.create_job("process", "resize", {"args": ["a.png", 1]})
    await page.again("Cancelling")
    assert (page["answer"], page["answer_to_kill"]) == (Cancelled.OK, Cancelled.NOT_FOUND)
    assert (await page.process.get_job(page["job"])).outcome == "cancelled"


@proves("Suspending")
async def test_all_or_one_queue_is_suspended_by_python_and_by_sql(page: Page, connection: Connection) -> None:
    process = page.process
    process.performer = performer = Recorder()
    async with process.running():
        await page.run("Suspending", 1)
        job = await process.create_job("process", "resize", {"args": ["a.png", 1]})
        for resume in (process.resume, partial(process.resume, "process")):
            assert (await process.status("process")).suspended
            await resume()
        assert not (await process.status("process")).suspended
        await process.configs.set("colour", "blue")
        await anyio.wait_all_tasks_blocked()
        assert performer.performed == [], "a local suspension is undone neither by resume nor by a config"
        await process.resume("process", local=True)
        await eventually(lambda: performer.ids == [job.id])

        await page.run("Suspending")
        held = await process.create_job("process", "resize", {"args": ["b.png", 1]})
        await connection.execute("update pgqueuetopia.job_configs set value = 'false' where scope = '*'")
        other = await process.create_job("other", "resize", {"args": ["c.png", 1]})
        await eventually(lambda: performer.ids == [job.id, other.id])
        await process.resume("process")
        await eventually(lambda: performer.ids == [job.id, other.id, held.id])


async def test_without_per_queue_suspension_a_queues_own_config_is_ignored(page: Page) -> None:
    assert page.process.per_queue_suspension
    page.process.per_queue_suspension = False
    page.process.performer = performer = Recorder()
    await page.process.configs.set("process_suspended", "true")
    async with page.process.running():
        await page.process.create_job("process", "resize", {"args": ["a.png", 1]})
        await eventually(lambda: performer.performed)


@proves("Configs")
async def test_configs_are_set_read_and_deleted_and_created_once(page: Page) -> None:
    await page.run("Configs")
    assert page["colour"] == "blue"
    assert page["every"] == {"colour": "blue", "suspended": "false"}
    assert [config.key for config in await page.process.configs.list()] == ["owner", "suspended"]
    with pytest.raises(asyncpg.UniqueViolationError):
        await page.again("Configs")


@proves("Following configs")
async def test_changes_are_followed_whoever_makes_them_and_settings_kept_in_step(
    page: Page, connection: Connection
) -> None:
    await page.run("Following configs", 1)
    in_force = page["in_force"]
    try:
        await eventually(lambda: in_force == {"suspended": "false"})
        await connection.execute("update pgqueuetopia.job_configs set value = 'true'")
        await eventually(lambda: in_force == {"suspended": "true"})
        await page.process.configs.set("colour", "blue")
        await eventually(lambda: in_force.get("colour") == "blue")
        await page.process.configs.delete("colour")
        await eventually(lambda: in_force == {"suspended": "true", "colour": None})
        await page.run("Following configs")
        assert page["uploads"].settings.accept_uploads is False
        await page["uploads"].close()
    finally:
        page["following"].cancel()
        await eventually(page["following"].done)


# Their tables, as their migration makes them; within a second the order is that of the ids.
THEIRS = """
create table public.jobs (
  id uuid primary key,
  queue varchar(255),
  function varchar(255),
  arguments jsonb,
  failure_state jsonb,
  reserved_at timestamp,
  nacked_until timestamp,
  acked_at timestamp,
  abandoned_at timestamp,
  inserted_at timestamp(0) not null,
  updated_at timestamp(0) not null
);
create table public.job_configs (
  id uuid primary key,
  key varchar(255) not null unique,
  value varchar(255) not null,
  inserted_at timestamp(0) not null,
  updated_at timestamp(0) not null
);
insert into public.job_configs values
  (gen_random_uuid(), 'suspended', 'false', now(), now()),
  (gen_random_uuid(), 'paused_suspended', 'true', now(), now()),
  (gen_random_uuid(), 'colour', 'blue', now(), now());
"""
INSERT = """
insert into public.jobs (id, queue, function, arguments, failure_state, reserved_at, nacked_until, acked_at,
  abandoned_at, inserted_at, updated_at)
select
  lpad(n::text, 32, '0')::uuid, queue, 'resize', jsonb_build_object('args', jsonb_build_array(name, 100)),
  jsonb_build_object('state', retried), reserved, nacked, acked, abandoned, t.at + age, t.at + age
from (values (now() at time zone 'UTC')) t (at), lateral (values
  (9, 'process', 'first', null, null, null, null, null, '-5 hours'::interval),
  (2, 'process', 'third', 2, null, t.at + interval '1 hour', null, null, '-3 hours'),
  (1, 'process', 'second', null, t.at, null, null, null, '-3 hours'),
  (3, 'process', 'acked', null, null, null, t.at, null, '-4 hours'),
  (4, 'process', 'abandoned', 3, null, null, t.at, t.at, '-4 hours'),
  (5, 'waiting', 'nacked', 1, null, t.at + interval '1 hour', null, null, '-2 hours'),
  (6, 'waiting', 'behind', null, null, null, null, null, '-1 hours'),
  (7, 'paused', 'paused', null, null, null, null, null, '-6 hours')
) j (n, queue, name, retried, reserved, nacked, acked, abandoned, age);
"""


@pytest.fixture
async def theirs(connection: Connection) -> AsyncIterator[None]:
    """The other system's tables, in use, in a session that is far from UTC."""
    await connection.execute("set timezone to 'Pacific/Auckland'")
    await connection.execute(THEIRS + INSERT)
    yield
    await connection.execute("drop table public.jobs, public.job_configs")


@proves("Moving the data over")
@pytest.mark.usefixtures("theirs")
async def test_unfinished_jobs_move_in_order_and_once(page: Page, connection: Connection) -> None:
    process = page.process
    await page.run("Moving the data over")
    await page.again("Moving the data over")
    assert {queue: await names_of(process.list_jobs(queue=queue)) for queue in QUEUES} == QUEUES
    nacked, behind = await process.list_jobs(queue="waiting")
    assert (nacked.state, nacked.attempts, behind.state) == ("retrying", 1, "blocked")
    assert nacked.next_attempt_at is not None
    now = await connection.fetchval("select now()")
    assert abs(nacked.scheduled_at + timedelta(hours=2) - now) < timedelta(minutes=10)
    assert abs(nacked.next_attempt_at - timedelta(hours=1) - now) < timedelta(minutes=10)
    assert {job.timeout for job in await process.list_jobs()} == {timedelta(0)}
    assert {config.key: config.value for config in await process.configs.list()} == {
        "suspended": "false", "paused_suspended": "true", "colour": "blue",
    }  # fmt: skip


QUEUES = {
    "process": ["first", "second", "third"],
    "waiting": ["nacked", "behind"],
    "paused": ["paused"],
}


async def names_of(jobs: Awaitable[Any]) -> list[str]:
    return [job.params["args"][0] for job in await jobs]


@pytest.mark.usefixtures("theirs")
async def test_moved_jobs_are_performed_in_order_and_their_retries_counted_on(page: Page) -> None:
    process = page.process
    process.performer = performer = Recorder(lambda job: Err("no") if is_third(job) else None)
    await page.run("Moving the data over")
    async with process.running():
        await eventually(lambda: len(performer.performed) == 4)
        await process.retry_all("waiting")
        await eventually(lambda: len(performer.performed) == 6)
        by_queue: dict[str, list[tuple[str, int]]] = {}
        for job in performer.performed:
            by_queue.setdefault(job.queue, []).append((job.params["args"][0], job.attempts))
        await process.suspend()
    # Two of three retries were made before the third job was moved; the last is made here.
    assert by_queue == {
        "process": [("first", 1), ("second", 1), ("third", 3), ("third", 4)],
        "waiting": [("nacked", 1), ("behind", 1)],
    }


def is_third(job: Any) -> bool:
    return bool(job.params["args"][0] == "third")
