"""Launched handles: what they come to, and how they are ended."""

import asyncio
import os
import subprocess
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import structlog

from pgqueuetopia import Err
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.node import guarding, processes
from pgqueuetopia.node.child import LONGEST_TAIL, Process
from pgqueuetopia.node.processes import ended, stop
from tests.node.living import SLEEPERS, TREE, kill, kill_all, living, sleepers, zombies
from tests.support import eventually

Open = Callable[[str], Awaitable[Process]]

LOUD = "import sys; sys.stdout.write('o' * 10**7); sys.stderr.write('e' * 10**7 + 'end'); sys.exit(1)"


async def open_by_asyncio(command: str) -> Process:
    return await asyncio.create_subprocess_exec("sh", "-c", command, stdout=PIPE, stderr=PIPE)


async def open_by_anyio(command: str) -> Process:
    return await anyio.open_process(["sh", "-c", command])


@pytest.fixture(params=[open_by_asyncio, open_by_anyio], ids=["asyncio", "anyio"])
def open_shell(request: pytest.FixtureRequest) -> Open:
    found: Open = request.param
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """A time to sleep that no other process sleeps; none is left that does."""
    mark = f"300.{uuid.uuid4().int}"
    yield mark
    kill_all(mark)


async def a_tree(mark: str) -> Process:
    """A process that ends by no signal but SIGKILL, with children of many kinds."""
    process = await open_by_anyio(f"trap '' TERM; {TREE.format(mark=mark)}")
    await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
    return process


@asynccontextmanager
async def waiting(handle: object) -> AsyncIterator["asyncio.Task[object]"]:
    """A task, as that of a job is, that waits until a handle has ended; cancelled in the end."""
    task = asyncio.create_task(ended(handle))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_process_that_exits_with_0_comes_to_none(open_shell: Open) -> None:
    assert await ended(await open_shell("true")) is None


async def test_a_process_that_fails_comes_to_its_exit_code_and_what_it_said(open_shell: Open) -> None:
    process = await open_shell("echo no; echo 'disk is full' >&2; exit 3")
    assert await ended(process) == Err("exit code 3: disk is full")


async def test_a_silent_failure_is_its_exit_code(open_shell: Open) -> None:
    assert await ended(await open_shell("exit 3")) == Err("exit code 3")


@pytest.mark.parametrize(("signal", "name"), [("KILL", "SIGKILL"), ("SEGV", "SIGSEGV"), (40, "signal 40")])
async def test_a_signal_is_named(open_shell: Open, signal: str | int, name: str) -> None:
    assert await ended(await open_shell(f"ulimit -c 0; kill -{signal} $$")) == Err(f"killed by {name}")


@pytest.mark.slow
async def test_a_process_that_says_much_never_blocks_and_the_end_is_kept(open_shell: Open) -> None:
    process = await open_shell(f'exec {sys.executable} -c "{LOUD}"')
    outcome = await ended(process)
    assert isinstance(outcome, Err)
    prefix, _, tail = str(outcome.message).partition(": ")
    assert (prefix, len(tail), tail[-4:]) == ("exit code 1", LONGEST_TAIL, "eend")


async def test_what_is_no_text_is_kept_as_far_as_it_can_be_read(open_shell: Open) -> None:
    process = await open_shell(r"printf 'a\377b' >&2; exit 1")
    assert await ended(process) == Err("exit code 1: a\ufffdb")


async def test_a_process_that_has_ended_answers_at_once(open_shell: Open) -> None:
    process = await open_shell("echo why >&2; exit 3")
    await process.wait()
    assert await ended(process) == Err("exit code 3: why")
    assert await ended(process) == Err("exit code 3"), "what was read is gone"


async def test_pipes_that_the_user_reads_are_his() -> None:
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "read line; echo one >&2; exit 3", stdin=PIPE, stderr=PIPE
    )
    assert process.stderr is not None
    assert process.stdin is not None
    async with waiting(process.stderr.read()) as mine, waiting(process) as task:
        await asyncio.sleep(0)
        process.stdin.write(b"go on\n")
        assert await task == Err("exit code 3")
        assert await mine == b"one\n"


async def test_a_stream_that_the_user_has_closed_is_left_alone() -> None:
    process = await anyio.open_process(["sh", "-c", "exit 3"])
    assert process.stderr is not None
    await process.stderr.aclose()
    assert await ended(process) == Err("exit code 3")


async def test_a_process_without_pipes_has_no_words() -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    assert await ended(process) == Err("exit code 3")


@pytest.mark.slow
async def test_a_process_that_ends_well_may_leave_another_that_holds_its_pipes(
    open_shell: Open, mark: str
) -> None:
    process = await open_shell(f"setsid sleep {mark} & exit 0")
    assert await ended(process) is None
    assert len(sleepers(mark)) == 1
    kill(living(mark))
    await stop(process)


@pytest.mark.slow
async def test_a_process_that_fails_leaves_nothing_behind(open_shell: Open, mark: str) -> None:
    process = await open_shell(f"sleep {mark} & setsid sleep {mark} & wait")
    async with waiting(process) as task:
        await eventually(lambda: len(sleepers(mark)) == 2)
        await look_has_been_taken()
        kill([process.pid])
        assert await task == Err("killed by SIGKILL")
    assert not living(mark)


async def look_has_been_taken() -> None:
    """The guardian has looked at all processes since: else it could not know that another has ended."""
    process = await open_by_anyio("read line")
    async with waiting(process):
        await stop(process)


@pytest.mark.slow
async def test_stop_ends_the_whole_tree(mark: str) -> None:
    process = await a_tree(mark)
    async with waiting(process) as task:
        await stop(process)
        assert not living(mark)
        assert not zombies(os.getpid())
        assert await task == Err("killed by SIGKILL")


@pytest.mark.slow
async def test_stop_ends_what_is_left_of_a_process_that_hears_sigterm_and_ends_well(mark: str) -> None:
    command = f"trap 'exit 0' TERM; (trap '' TERM; sleep {mark}; true) & wait"
    process = await open_by_anyio(command)
    async with waiting(process) as task:
        await eventually(lambda: sleepers(mark))
        await stop(process)
        assert not living(mark)
        assert await task is None


@pytest.mark.slow
async def test_stop_ends_a_tree_that_forks_all_the_while(mark: str) -> None:
    loop = f"(while true; do sleep {mark} & sleep 0.001; done)"
    process = await open_by_anyio(f"{loop} & {loop} & wait")
    await eventually(lambda: len(sleepers(mark)) > 10)
    await stop(process)
    assert not living(mark)


@pytest.mark.slow
async def test_stop_ends_a_tree_that_nobody_waits_for(mark: str) -> None:
    process = await a_tree(mark)
    await stop(process)
    assert (living(mark), zombies(os.getpid())) == ([], [])
    assert process.returncode is not None


async def test_stop_is_quick_where_sigterm_is_heard(open_shell: Open, mark: str) -> None:
    process = await open_shell(f"sleep {mark} & wait")
    await eventually(lambda: sleepers(mark))
    await stop(process)
    assert await ended(process) == Err("killed by SIGTERM")


async def test_stop_of_what_has_ended_does_nothing(open_shell: Open) -> None:
    process = await open_shell("exit 3")
    await process.wait()
    await stop(process)
    await stop(process)


@pytest.mark.slow
async def test_stop_finds_a_grandchild_whose_parent_has_died_if_it_was_seen_before(mark: str) -> None:
    process = await open_by_anyio(f"setsid sh -c 'setsid sleep {mark} & wait' & wait")
    async with waiting(process):
        await eventually(lambda: sleepers(mark))
        await look_has_been_taken()
        kill([pid for pid in living(mark) if pid not in (process.pid, *sleepers(mark))])
        await eventually(lambda: living(mark) == sleepers(mark))
        await stop(process)
    assert not living(mark)


@pytest.mark.slow
async def test_stop_works_while_the_task_is_cancelled(mark: str) -> None:
    process = await a_tree(mark)

    async def job() -> None:
        try:
            await ended(process)
        finally:
            with anyio.CancelScope(shield=True):
                await stop(process)

    task = asyncio.create_task(job())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (living(mark), zombies(os.getpid())) == ([], [])


@pytest.mark.slow
async def test_many_are_stopped_at_once(mark: str) -> None:
    opened = [await open_by_anyio(TREE.format(mark=mark)) for _ in range(10)]
    await eventually(lambda: len(sleepers(mark)) == 10 * SLEEPERS)
    async with anyio.create_task_group() as tasks:
        for process in opened:
            tasks.start_soon(stop, process)
    assert (living(mark), zombies(os.getpid())) == ([], [])


@pytest.mark.slow
async def test_without_a_guardian_the_group_of_a_process_is_ended(
    mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "see", lambda pid: None)
    command = ["sh", "-c", f"trap '' TERM; sleep {mark} & wait; wait"]
    process = await anyio.open_process(command, start_new_session=True)
    await eventually(lambda: sleepers(mark))
    await stop(process)
    assert await ended(process) == Err("killed by SIGKILL")
    await eventually(lambda: not living(mark))


async def test_a_task_comes_to_its_value() -> None:
    assert await ended(asyncio.create_task(asyncio.sleep(0, "value"))) == "value"


async def test_a_task_that_raises_raises() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await ended(asyncio.create_task(fail()))


async def test_a_task_goes_on_when_the_wait_is_cancelled_until_it_is_stopped() -> None:
    handle = asyncio.create_task(asyncio.sleep(300))
    async with waiting(handle):
        await asyncio.sleep(0)
    assert not handle.done()
    await stop(handle)
    assert handle.cancelled()


async def test_a_task_that_fails_while_it_is_stopped_is_no_complaint() -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(300)
        finally:
            raise ValueError("no")

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    handle = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await stop(handle)
    del handle
    assert not complaints


async def test_a_task_that_cannot_be_cancelled_is_told_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "CANCEL_TIMEOUT", 0.01)
    let_go = anyio.Event()

    async def swallow() -> None:
        with anyio.CancelScope(shield=True):
            while not let_go.is_set():
                try:
                    await asyncio.sleep(300)
                except asyncio.CancelledError:
                    await let_go.wait()

    handle = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as logs:
        await stop(handle)
    assert [log["event"] for log in logs] == ["task_not_ended"]
    let_go.set()
    await handle


async def test_a_future_comes_to_its_value() -> None:
    handle: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with waiting(handle) as task:
        handle.set_result("value")
        assert await task == "value"


class Promise:
    """Something that can be awaited."""

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(0).__await__()
        return "value"


@pytest.mark.parametrize("make", [Promise, partial(asyncio.sleep, 0, "value")], ids=["object", "coroutine"])
async def test_whatever_can_be_awaited_comes_to_its_value(make: Callable[[], object]) -> None:
    assert await ended(make()) == "value"


async def test_a_coroutine_is_cancelled_with_its_task() -> None:
    cancelled = anyio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    handle = work()
    async with waiting(handle):
        await asyncio.sleep(0)
    await stop(handle)
    assert cancelled.is_set()


async def test_a_coroutine_that_never_began_is_closed() -> None:
    handle = asyncio.sleep(300)
    await stop(handle)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await handle


@pytest.mark.parametrize(
    "handle", [None, 4711, subprocess.Popen, ended], ids=["nothing", "pid", "class", "function"]
)
async def test_anything_else_is_not_a_handle(handle: object) -> None:
    with pytest.raises(Misconfigured, match="cannot be launched"):
        await ended(handle)
    await stop(handle)
