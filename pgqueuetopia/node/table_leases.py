"""The rows that a node has of a table queue: kept while they run, and given up before others have them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from structlog.typing import FilteringBoundLogger

from pgqueuetopia.db.table import MICROSECONDS, Table
from pgqueuetopia.db.table_rows import Row
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.job import Job, as_timedelta

# What a stopped run has to come to its end, and to be written, in seconds.
GRACE = 5.0


@dataclass(slots=True, eq=False)
class Held:
    """A row that runs here: until when it is ours for all we know, by our clock, and whether it was lost."""

    row: Row
    job: Job
    since: float
    ours_until: float
    lost: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether nobody else can have it yet."""
        # Not the loop's time: this process may have been frozen since.
        return time.monotonic() < self.ours_until


class Leases:
    """What runs, by the id of its job. Times in seconds."""

    def __init__(self, table: Table, stop: Callable[[int], None], log: FilteringBoundLogger) -> None:
        """`stop` ends the run of a job, if that can be."""
        self.running: dict[int, Held] = {}
        self._table = table
        self._stop = stop
        self._log = log
        self._lease = as_timedelta(table.queue.stale_timeout).total_seconds()
        # From its claim on, a row is kept no longer.
        self._longest = as_timedelta(table.queue.max_job_time).total_seconds() + GRACE
        self.first = min(self._lease, self._longest)

    def held(self, row: Row, job: Job, asked_at: float) -> Held:
        """A row that was claimed by what was asked then."""
        return Held(row, job, asked_at, asked_at + self.first)

    async def keep_for_ever(self) -> None:
        """Renew what runs; stop what can be kept no longer, before others run it."""
        while True:
            pause = self._lease / 3
            try:
                await self._renew(list(self.running.values()), {})
            except (QueuetopiaError, TimeoutError) as error:
                self._log.warning("table_locks_not_renewed", rows=len(self.running), error=str(error))
                pause = self._lease / 20
            for held in list(self.running.values()):
                if time.monotonic() > held.ours_until - min(GRACE, self._lease / 3):
                    self._lose(held)
            await anyio.sleep(pause)

    async def write_progress(self, latest: Mapping[tuple[int, int], str]) -> None:
        """Write progress (JSON, by a job's id and claim) of what still runs, and renew its locks."""
        held = [one for one in self.running.values() if (one.job.id, one.job.claim) in latest]
        await self._renew(held, latest)

    async def get_job(self, scope: str, job_id: int) -> Job | None:
        """None: once it has been written, what is known of a row's run is known here alone."""
        return None

    async def params(self, job_id: int) -> dict[str, Any]:
        """Never asked for: a row's job has its params from the start."""
        return {}

    async def tell_launched(self, job_id: int, claim: int, event: str) -> None:
        """A row has no place for it."""

    async def _renew(self, held: list[Held], told: Mapping[tuple[int, int], str]) -> None:
        asked_at = time.monotonic()
        until = [(one.row.at or 0) + round(self._longest * MICROSECONDS) for one in held]
        texts = [told.get((one.job.id, one.job.claim)) for one in held]
        kept = await self._table.renew([one.row for one in held], until, texts, self._lease)
        for n in kept:
            held[n].ours_until = min(asked_at + self._lease, held[n].since + self._longest)
        rest = [one for n, one in enumerate(held) if n not in kept]
        ours = await self._table.still_held([one.row for one in rest])
        for n, one in enumerate(rest):
            if n not in ours:
                self._lose(one)

    def _lose(self, held: Held) -> None:
        """A row is not ours any longer, or may be another's soon: stop its run, if that can be."""
        if not held.lost and self.running.get(held.job.id) is held:
            held.lost = True
            self._log.warning("table_row_lost", key=held.job.key, claim=held.job.claim)
            self._stop(held.job.id)
