"""What Execution asks of whoever stores the jobs that it runs."""

from collections.abc import Mapping
from typing import Any, Protocol

from pgqueuetopia.job import Job


class Store(Protocol):
    """The Repo, for a Queuetopia's own jobs; a user's table, for those of a table queue."""

    async def write_progress(self, latest: Mapping[tuple[int, int], str]) -> None:
        """Write progress as JSON, by a job's id and claim."""

    async def get_job(self, scope: str, job_id: int) -> Job | None:
        """A job as it is now, if that is known."""

    async def params(self, job_id: int) -> dict[str, Any]:
        """The params of a job that were too large to come with its claim."""

    async def tell_launched(self, job_id: int, claim: int, event: str) -> None:
        """A run has launched something, or that has ended."""
