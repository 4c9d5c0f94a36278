"""What happens, and what has happened, to the jobs of a scope (JobQueue)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import anyio
import structlog

from pgqueuetopia.db.events import Broadcast, Events
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job, Seconds
from pgqueuetopia.options import as_duration
from pgqueuetopia.status import Stats, Utilisation
from pgqueuetopia.topics import Topic

log = structlog.get_logger("pgqueuetopia")

MOST_UNREAD = 10_000
# How many jobs get_jobs reads at once.
PAGE = 1_000


class Reporting:
    """Events, utilisation, statistics, and what else JobQueue calls its utilities."""

    repo: Repo
    scope: str
    topics: Sequence[Topic]
    _broadcast: Broadcast

    @asynccontextmanager
    async def events(self, topic: str | None = None, *, most: int = MOST_UNREAD) -> AsyncIterator[Events]:
        """What happens from now on to the jobs of this scope, or of one topic or queue, on all nodes.

        `async with app.events() as events: async for event in events`. Each comes after its change was
        committed, and those of one job in that order. A subscriber who does not read keeps the newest
        `most` (10,000); `events.lost` counts the others, and no job waits for anybody. After a lost
        connection (`events.interruptions`) what happened meanwhile is missing: read the jobs. As long as
        somebody listens, nodes and creators notify. Raises DatabaseUnavailable.
        """
        events = await self._broadcast.subscribe(topic, most)
        try:
            yield events
        finally:
            with anyio.CancelScope(shield=True):
                await self._broadcast.unsubscribe(events)

    async def utilisation(self, topic: str) -> Utilisation:
        """How many jobs of a topic run and may run, by node. Raises Misconfigured for another queue."""
        declared = {one.name: one.parallelism for one in self.topics}
        if topic not in declared:
            raise Misconfigured(
                f"{topic!r} is none of the topics of {self.scope}: {', '.join(declared) or 'none'}."
            )
        configured, nodes = await self.repo.utilisation(self.scope, topic)
        return Utilisation(
            topic=topic,
            parallelism=declared[topic] if configured is None else configured,
            running=sum(running for _, running, _ in nodes),
            launched=sum(launched for _, _, launched in nodes),
            nodes=_by_node(nodes),
        )

    async def stats(self, since: datetime | Seconds = 86_400) -> list[Stats]:
        """What has ended since a time (or in the last so many seconds: a day), by queue and action.

        As far as jobs are kept (`job_retention`). Raises Misconfigured for a time without a zone.
        """
        if isinstance(since, datetime):
            if since.tzinfo is None:
                raise Misconfigured("since has no time zone; use datetime.now(UTC), or seconds")
            return await self.repo.stats(self.scope, since, None)
        return await self.repo.stats(self.scope, None, as_duration("since", since))

    async def get_jobs(self, topic: str) -> list[Job]:
        """All jobs of a topic or queue that are kept, in the order of creation; list_jobs has pages."""
        jobs: list[Job] = []
        while True:
            after = jobs[-1].id if jobs else 0
            page = await self.repo.list_jobs(self.scope, topic, None, None, None, after=after, limit=PAGE)
            jobs += page
            if len(page) < PAGE:
                return jobs

    async def count_jobs(self, topic: str | None = None) -> int:
        """How many jobs of a topic or queue, or of the scope, are kept."""
        return await self.repo.count_jobs(self.scope, topic, None, None, None)

    async def delete_outdated_jobs(self, age: Seconds = timedelta(0)) -> int:
        """Remove the jobs that ended longer ago than this (seconds or timedelta); returns how many.

        The cleaner does so by itself, after `job_retention`. Raises Misconfigured for an age below 0.
        """
        return await self.repo.delete_ended(self.scope, as_duration("age", age))

    async def rescue_orphaned_jobs(self, topic: str | None = None) -> int:
        """Nothing, and 0: a job runs as long as its node holds its lock, and a dead one holds none."""
        log.info("nothing_to_rescue", topic=topic, why="locks of the dead are free already")
        return 0


def _by_node(nodes: Sequence[tuple[str, int, int]]) -> Mapping[str, tuple[int, int]]:
    return {node: (running, launched) for node, running, launched in nodes}
