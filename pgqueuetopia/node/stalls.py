"""Tells when the event loop stood still: a job that never yields stops its whole node."""

import anyio
from structlog.typing import FilteringBoundLogger

LOOK_EVERY = 1.0
WORTH_TELLING = 1.0


async def report_stalls(log: FilteringBoundLogger) -> None:
    """For ever: log each stall of a second or more."""
    while True:
        expected = anyio.current_time() + LOOK_EVERY
        await anyio.sleep(LOOK_EVERY)
        late = anyio.current_time() - expected
        if late >= WORTH_TELLING:
            log.warning("event_loop_stalled", seconds=round(late, 1))
