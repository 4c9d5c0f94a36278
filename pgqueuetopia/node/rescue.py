"""When a node looks for the queues of nodes that have died, and ends those that are as good as dead."""

import time
from dataclasses import dataclass

import structlog

from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Stepped

log = structlog.get_logger("pgqueuetopia")

# How often it looks while others run, in seconds.
RESCUE = 0.25
# It scans everything, dead rows too: between two it pauses for so many times as long as one took.
PAUSES = 20


@dataclass(slots=True)
class Rescue:
    """A look is part of a step."""

    session: Session
    # Whether the next step looks, whenever the last one did.
    wanted: bool = False
    _pause: float = RESCUE
    _last: float = 0.0
    _last_end: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether the next step should look."""
        return self.wanted or now - self._last >= self._pause

    def learn(self, stepped: Stepped, began: float) -> None:
        """A step has looked; where it did not come to it, or there was no room for all, another does soon."""
        self._last = time.monotonic()
        soon = PAUSES * (self._last - began)
        self._pause = soon if stepped.more else max(RESCUE, soon)
        self.wanted = not stepped.scanned

    async def end_stalled(self) -> None:
        """Now and then, after such a look: end who is as good as dead."""
        if self._last - self._last_end >= self.session.deadlines.heartbeat:
            self._last_end = self._last
            if ended := await self.session.end_stalled():
                log.warning("stalled_sessions_ended", sessions=ended)
