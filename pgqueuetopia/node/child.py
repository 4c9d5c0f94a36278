"""One process that the node has started: what it comes to, and how its tree is ended."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.abc
import structlog

from pgqueuetopia.node.guardian import GRACE
from pgqueuetopia.node.guarding import guarding
from pgqueuetopia.outcome import Err

log = structlog.get_logger("pgqueuetopia")

Process: TypeAlias = asyncio.subprocess.Process | anyio.abc.Process
Pipe: TypeAlias = asyncio.StreamReader | anyio.abc.ByteReceiveStream
Read: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

# How many characters of stderr are kept.
LONGEST_TAIL = 4_000
# In bytes.
CHUNK = 65_536
# In seconds: how often a process is looked at that may have ended.
PAUSE = 1.0
# In seconds: how long is read on, once it has ended, from pipes that another holds open.
LINGER = 1.0
# In seconds: how long it is waited for at most until nothing of a tree is left.
END_TIMEOUT = 10.0


class Tail:
    """The end of a text."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, chunk: bytes) -> None:
        """A character has four bytes at most."""
        self._bytes += chunk
        del self._bytes[: -4 * LONGEST_TAIL]

    def __str__(self) -> str:
        return self._bytes.decode(errors="replace").strip()[-LONGEST_TAIL:]


async def outcome_of(process: Process) -> Err | None:
    """What a process has come to, once it has ended; its pipes are read all the while.

    What it leaves behind is ended, unless its exit code is 0. If this is cancelled it stays watched, until
    `end` is called, or the node dies.
    """
    guarding.watch(process)
    tail = Tail()
    await outlast(process, *_readers(process, tail.add))
    if process.returncode == 0:
        guarding.forget(process)
        return None
    await end(process)
    text = str(tail)
    return Err(f"{fate_of(process)}: {text}" if text else fate_of(process))


async def end(process: Process) -> None:
    """End it and all that has come from it: by SIGTERM, and after GRACE seconds by SIGKILL."""
    with anyio.move_on_after(END_TIMEOUT) as scope:
        if not await guarding.end(process):
            await _end_group(process)
        await outlast(process, *_readers(process, _ignore))
    if scope.cancelled_caught:
        log.warning("process_not_ended", pid=process.pid)


async def outlast(process: Process, *reads: Read) -> None:
    """Wait until a process has ended, and read from it meanwhile."""
    async with anyio.create_task_group() as tasks:
        for read in reads:
            tasks.start_soon(read, name="pipe of a process")
        await _exit_of(process)
        tasks.cancel_scope.deadline = anyio.current_time() + LINGER


def fate_of(process: Process) -> str:
    """How a process has ended, in words."""
    code = process.returncode
    if code is None:
        return "goes on"
    if code >= 0:
        return f"exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"killed by {known.get(-code, f'signal {-code}')}"


async def _exit_of(process: Process) -> None:
    """Not by wait() alone: that may wait for whoever has inherited the pipes as well."""
    async with anyio.create_task_group() as tasks:
        for way in (_told_exit, _seen_exit):
            tasks.start_soon(way, process, tasks.cancel_scope, name="exit of a process")


async def _told_exit(process: Process, scope: anyio.CancelScope) -> None:
    await process.wait()
    scope.cancel()


async def _seen_exit(process: Process, scope: anyio.CancelScope) -> None:
    while not scope.cancel_called:
        await anyio.sleep(PAUSE)
        if process.returncode is not None:
            scope.cancel()


def _readers(process: Process, keep: Callable[[bytes], object]) -> list[Read]:
    """Of stdout, which is not kept, and of stderr, where they are pipes."""
    pipes = [(process.stdout, _ignore), (process.stderr, keep)]
    return [partial(_read, pipe, use) for pipe, use in pipes if pipe is not None]


async def _read(pipe: Pipe, use: Callable[[bytes], object]) -> None:
    """To its end, so that nobody blocks who writes to it; a pipe that the user closes or reads is his."""
    try:
        while chunk := await _receive(pipe):
            use(chunk)
    except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
        return
    except RuntimeError:
        # How asyncio says that another task reads it.
        return


def _ignore(chunk: bytes) -> None:
    pass


async def _receive(pipe: Pipe) -> bytes:
    return await (pipe.read(CHUNK) if isinstance(pipe, asyncio.StreamReader) else pipe.receive(CHUNK))


async def _end_group(process: Process) -> None:
    """Without a guardian: the process, and its group if it leads one."""
    if process.returncode is not None:
        return
    with suppress(PermissionError, ProcessLookupError):
        leads = os.getpgid(process.pid) == process.pid
        send = partial(os.killpg, process.pid) if leads else process.send_signal
        send(signal.SIGTERM)
        with anyio.move_on_after(GRACE):
            await _exit_of(process)
        send(signal.SIGKILL)
