"""run_process: one call, one process of its own."""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import pgqueuetopia
from pgqueuetopia.errors import Misconfigured, WorkerFailed
from pgqueuetopia.node.process_run import run_process
from pgqueuetopia.node.processes import ended, stop
from tests.node.living import SLEEPERS, TREE, kill_all, living, sleepers, zombies
from tests.support import eventually

ROOT = Path(pgqueuetopia.__file__).parents[1]

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from dataclasses import dataclass

import anyio

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.node.process_run import run_process

@dataclass
class Point:
    x: int

def double(point):
    return Point(2 * point.x)

async def start():
    print("started", flush=True)
    try:
        value = await run_process(double, Point(21))
        print(value, type(value) is Point)
    except Misconfigured as error:
        print("misconfigured" if "__main__" in str(error) else error)
"""
GUARDED = f"{PROGRAM}\nif __name__ == '__main__':\n    anyio.run(start)\n"
UNGUARDED = f"{PROGRAM}\nanyio.run(start)\n"


@dataclass(frozen=True)
class Point:
    x: int


class Picky(Exception):
    """It can be pickled, but not taken out again."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def double(point: Point) -> Point:
    return Point(2 * point.x)


def fail(text: str) -> None:
    raise ValueError(text)


def fail_pickily() -> None:
    raise Picky(3, reason="so")


def speak() -> str:
    print("a line for stdout")  # noqa: T201
    return sys.stdin.read()


def backwards(text: bytes) -> bytes:
    return text[::-1]


def viewed() -> memoryview:
    return memoryview(b"")


def crash() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def launch_tree(mark: str) -> None:
    subprocess.run(["sh", "-c", TREE.format(mark=mark)], check=True)


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"300.{uuid.uuid4().int}"
    yield mark
    kill_all(mark)


async def test_it_gives_what_the_function_returns() -> None:
    run = run_process(double, Point(21))
    assert await run == Point(42)
    assert await run == Point(42), "and again"
    assert await ended(run) == Point(42)
    assert not zombies(os.getpid())


async def test_large_arguments_and_results_go_through() -> None:
    large = os.urandom(5_000_000)
    assert await run_process(backwards, large) == large[::-1]


async def test_what_the_function_raises_is_raised_with_the_traceback_of_the_worker() -> None:
    with pytest.raises(ValueError, match="no such thing") as caught:
        await run_process(fail, "no such thing")
    assert "in fail\n    raise ValueError(text)" in caught.value.__notes__[0]


async def test_an_exception_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(WorkerFailed, match="Picky: 3: so") as caught:
        await run_process(fail_pickily)
    assert "in fail_pickily" in caught.value.__notes__[0]


async def test_a_result_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(WorkerFailed, match="result cannot be sent"):
        await run_process(viewed)


async def test_what_is_printed_does_no_harm_and_stdin_is_empty(capfd: pytest.CaptureFixture[str]) -> None:
    assert await run_process(speak) == ""
    assert capfd.readouterr() == ("", "a line for stdout\n")


@pytest.mark.parametrize(
    ("function", "args", "fate"),
    [
        (sys.exit, (3,), "exit code 3"),
        (os._exit, (0,), "exit code 0"),
        (signal.raise_signal, (signal.SIGKILL,), "killed by SIGKILL"),
        (crash, (), "killed by SIGSEGV"),
    ],
    ids=["exit", "quiet exit", "kill", "crash"],
)
async def test_a_worker_that_dies_is_told(
    function: Callable[..., object], args: tuple[Any, ...], fate: str
) -> None:
    with pytest.raises(WorkerFailed, match=fate):
        await run_process(function, *args)


@pytest.mark.parametrize("argument", [lambda: None, sys.stdout], ids=["lambda", "file"])
async def test_what_cannot_be_sent_is_refused_when_it_is_called(argument: object) -> None:
    with pytest.raises(Misconfigured, match="id cannot be called in another process"):
        run_process(id, argument)


async def test_an_inner_function_is_refused() -> None:
    def inner() -> None: ...

    with pytest.raises(Misconfigured, match="inner"):
        run_process(inner)


async def test_it_may_be_made_by_a_thread() -> None:
    run = await anyio.to_thread.run_sync(run_process, double, Point(1))
    assert await ended(run) == Point(2)


async def test_stop_kills_its_tree(mark: str) -> None:
    run = run_process(launch_tree, mark)
    waiting = asyncio.create_task(ended(run))
    await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
    await stop(run)
    with pytest.raises(WorkerFailed, match="killed by SIGTERM"):
        await waiting
    assert (living(mark), zombies(os.getpid())) == ([], [])


async def test_it_is_killed_with_its_tree_when_the_wait_is_cancelled(mark: str) -> None:
    waiting = asyncio.create_task(ended(run_process(launch_tree, mark)))
    await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert (living(mark), zombies(os.getpid())) == ([], [])


async def test_a_run_that_is_stopped_before_it_begins_never_does() -> None:
    run = run_process(double, Point(1))
    await stop(run)
    with pytest.raises(WorkerFailed, match="stopped before it began"):
        await run


async def run_program(*arguments: str, folder: Path) -> str:
    completed = await anyio.run_process(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    return completed.stdout.decode()


@pytest.mark.parametrize("arguments", [["program.py"], ["-m", "program"]], ids=["file", "module"])
async def test_a_function_of_the_program_itself_is_called(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(GUARDED)
    assert await run_program(*arguments, folder=tmp_path) == "started\nPoint(x=42) True\n"


async def test_a_program_that_would_start_again_is_refused(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UNGUARDED)
    assert await run_program("program.py", folder=tmp_path) == "started\nmisconfigured\n"


async def test_a_function_of_another_module_needs_no_guard(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text("def double(number):\n    return 2 * number\n")
    (tmp_path / "program.py").write_text(
        "import anyio, functions\nfrom pgqueuetopia.node.process_run import run_process\n"
        "async def start():\n    print(await run_process(functions.double, 21))\n"
        "anyio.run(start)\n"
    )
    assert await run_program("program.py", folder=tmp_path) == "42\n"
