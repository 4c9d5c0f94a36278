"""Signals that tell a process to stop."""

import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import structlog

log = structlog.get_logger("pgqueuetopia")


@asynccontextmanager
async def until_told_to_stop(hurry: Callable[[], None]) -> AsyncIterator[anyio.Event]:
    """An event that SIGTERM or SIGINT sets; every further signal calls `hurry`."""
    told = anyio.Event()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        if threading.current_thread() is threading.main_thread():
            await tasks.start(_listen, told, hurry, name="signals")
        try:
            yield told
        except Exception as error:
            # Raised below: the task group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _listen(
    told: anyio.Event,
    hurry: Callable[[], None],
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for received in signals:
            log.info("signal_received", signal=received.name)
            if told.is_set():
                hurry()
            told.set()
