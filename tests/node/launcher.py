"""A program that launches commands, until it reads a line: python -m tests.node.launcher HOW COMMAND …"""

import ctypes
import os
import signal
import sys

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup

from pgqueuetopia.node.process_run import run_process
from pgqueuetopia.node.processes import ended, stop
from tests.node.living import zombies

LIBC = ctypes.PyDLL(None)
# Of prctl: who orphans become the children of, as those of process 1 do.
SET_CHILD_SUBREAPER = 36


async def launch(tasks: TaskGroup) -> None:
    """Shell commands, which go on when this leaves."""
    for command in sys.argv[2:]:
        tasks.start_soon(ended, await anyio.open_process(["sh", "-c", command]))


async def work(tasks: TaskGroup) -> None:
    """Shell commands, each by a worker process."""
    for command in sys.argv[2:]:
        tasks.start_soon(ended, run_process(os.system, command))


async def fork(tasks: TaskGroup) -> None:
    """A fork of this goes on as well, of which Python knows."""
    await launch(tasks)
    await anyio.lowlevel.checkpoint()
    if os.fork() == 0:
        signal.pause()


async def fork_secretly(tasks: TaskGroup) -> None:
    """A fork of this goes on as well, of which Python does not know: it holds all that this holds."""
    await launch(tasks)
    await anyio.lowlevel.checkpoint()
    if LIBC.fork() == 0:
        signal.pause()


async def reap(tasks: TaskGroup) -> None:
    """Stops what it has launched, and tells which zombies there are then."""
    LIBC.prctl(SET_CHILD_SUBREAPER, 1)
    [command] = sys.argv[2:]
    process = await anyio.open_process(["sh", "-c", command])
    say("launched")
    await anyio.to_thread.run_sync(sys.stdin.readline)
    await stop(process)
    say(f"zombies: {zombies(os.getpid())}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    hows = {how.__name__: how for how in (launch, work, fork, fork_secretly, reap)}
    async with anyio.create_task_group() as tasks:
        await hows[sys.argv[1]](tasks)
        await anyio.lowlevel.checkpoint()
        say("watched")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
