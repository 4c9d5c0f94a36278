"""Real processes of a test: started with a mark in their arguments, and found by it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pgqueuetopia.node.guardian import look, see
from pgqueuetopia.node.guarding import PROGRAM

# A child, a grandchild in a session of its own, and one that ignores SIGTERM, as its parent does.
TREE = "sleep {mark} & setsid sh -c 'sleep {mark} & wait' & (trap '' TERM; sleep {mark}; true) & wait"
SLEEPERS = 3


def arguments(pid: int) -> list[str]:
    """Of a process; none of a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def living(mark: str) -> list[int]:
    """All processes that bear the mark."""
    return [pid for pid in look() if any(mark in argument for argument in arguments(pid))]


def sleepers(mark: str) -> list[int]:
    """The leaves of a tree."""
    return [pid for pid in living(mark) if arguments(pid) == ["sleep", mark]]


def zombies(parent: int) -> list[int]:
    """The children that a process has not waited for."""
    return [one.pid for one in look().values() if one.is_zombie and one.parent == parent]


def guardians(node: int) -> list[int]:
    """Those of a node that live; there is one, or none."""
    children = [one.pid for one in look().values() if one.parent == node and not one.is_zombie]
    return [pid for pid in children if str(PROGRAM) in arguments(pid)]


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only its zombie."""
    seen = see(pid)
    return seen is None or seen.is_zombie


def kill(pids: Sequence[int]) -> None:
    """kill -9."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all(mark: str) -> None:
    """Until no process bears the mark."""
    while pids := living(mark):
        kill(pids)


@contextmanager
def launcher(how: str, *commands: str) -> Iterator[subprocess.Popen[str]]:
    """A program that launches shell commands; it is told by its stdin, and tells by its stdout."""
    arguments = [sys.executable, "-m", "tests.node.launcher", how, *commands]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
