"""What a job has launched: waiting until it has ended, and ending it."""

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine

import anyio.abc
import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.node.child import end, outcome_of
from pgqueuetopia.node.guarding import guarding
from pgqueuetopia.node.process_run import ProcessRun

log = structlog.get_logger("pgqueuetopia")

# In seconds: how long a cancelled task is waited for.
CANCEL_TIMEOUT = 5.0


def watch(handle: object) -> None:
    """From now on a process is ended should the node die, with all that has come from it."""
    if isinstance(handle, asyncio.subprocess.Process | anyio.abc.Process):
        guarding.watch(handle)


async def ended(handle: object) -> object:
    """Wait until a handle has ended; what it has come to.

    A process: None if its exit code is 0, else Err with the exit code, or the signal, and the end of stderr.
    Pipes of stdout and stderr are read, so that it never blocks; who wants what it writes reads that in a
    task, and launches the task. Of a process that failed nothing is left behind; what one that ended well has
    left goes on. Anything else: its value, or it raises what the handle raises.

    If this is cancelled, the process or the task goes on: `stop` is to be called then. Else the process
    is ended when the node dies.

    Raises:
        Misconfigured: It is not a handle.
    """
    match handle:
        case asyncio.subprocess.Process() | anyio.abc.Process():
            return await outcome_of(handle)
        case asyncio.Future():
            # Not awaited itself: it would be cancelled along with this task.
            await asyncio.wait([handle])
            return handle.result()
        case Awaitable():
            return await handle
        case _:
            raise Misconfigured(
                f"{handle!r} cannot be launched: a handle is a process of asyncio or anyio, or can be awaited"
            )


async def stop(handle: object) -> None:
    """End it now, and wait until it has ended, for some seconds at most; nothing if it has ended already.

    A process: all that has come from it, by SIGTERM, and half a second later by SIGKILL. A task or a future
    is cancelled. A coroutine that is awaited is cancelled with the task that awaits it.
    """
    match handle:
        case asyncio.subprocess.Process() | anyio.abc.Process():
            await end(handle)
        case ProcessRun():
            await handle.stop()
        case asyncio.Future():
            await _cancel(handle)
        case Coroutine() if inspect.getcoroutinestate(handle) == inspect.CORO_CREATED:
            handle.close()


async def _cancel(task: "asyncio.Future[object]") -> None:
    task.cancel()
    await asyncio.wait([task], timeout=CANCEL_TIMEOUT)
    if not task.done():
        log.warning("task_not_ended", task=repr(task))
    elif not task.cancelled():
        # Asked for, lest asyncio complain that nobody did.
        task.exception()
