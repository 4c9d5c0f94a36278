"""What jobs tell of their progress, written at most twice a second for each."""

from typing import Any

import anyio
import structlog

from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.job import Job, json_text
from pgqueuetopia.node.store import Store

log = structlog.get_logger("pgqueuetopia")

# In seconds: between two looks, and what the last one of a node that leaves may take.
PAUSE = 0.5
LAST = 5.0
# How many characters a progress has at most, as JSON.
LONGEST = 10_000


class Progress:
    """The latest of each job, until it is written."""

    def __init__(self, repo: Store) -> None:
        self._repo = repo
        self._latest: dict[tuple[int, int], str] = {}

    def tell(self, job: Job, value: Any) -> None:
        """A job has come so far; may be called by any thread."""
        text, faults = json_text("progress", value, LONGEST)
        if faults:
            log.warning("progress_not_stored", job=job.id, queue=job.queue, faults=faults[:3])
        else:
            self._latest[job.id, job.claim] = text

    async def write_for_ever(self) -> None:
        """Write what is new, and once more when cancelled."""
        try:
            while True:
                await self._write()
                await anyio.sleep(PAUSE)
        finally:
            with anyio.move_on_after(LAST, shield=True):
                await self._write()

    async def _write(self) -> None:
        """What cannot be written now is tried again with the next, unless there is something newer."""
        if not self._latest:
            return
        latest, self._latest = self._latest, {}
        is_written = False
        try:
            await self._repo.write_progress(latest)
            is_written = True
        except (QueuetopiaError, TimeoutError) as error:
            log.warning("progress_unsaved", jobs=len(latest), error=str(error))
        finally:
            if not is_written:
                self._latest = latest | self._latest
