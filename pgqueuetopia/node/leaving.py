"""Signals that tell a process to stop."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import structlog

log = structlog.get_logger("pgqueuetopia")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Of the loop of the main thread. All of them, for a loop tells of a signal the one alone that asked last.
_heard_by: list[Callable[[], None]] = []


@contextmanager
def until_told_to_stop(hurry: Callable[[], None]) -> Iterator[None]:
    """Cancels what is done meanwhile at SIGTERM or SIGINT; every further signal calls `hurry`."""
    with anyio.CancelScope() as scope:

        def hear() -> None:
            if scope.cancel_called:
                hurry()
            scope.cancel()

        if threading.current_thread() is threading.main_thread():
            with _hearing(hear):
                yield
        else:
            yield


@contextmanager
def _hearing(hear: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    if not _heard_by:
        for number in SIGNALS:
            loop.add_signal_handler(number, _tell, number)
    _heard_by.append(hear)
    try:
        yield
    finally:
        _heard_by.remove(hear)
        if not _heard_by:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def _tell(number: signal.Signals) -> None:
    log.info("signal_received", signal=number.name)
    for hear in _heard_by:
        hear()
