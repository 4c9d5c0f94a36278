"""Which jobs were created: lists and assertions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pgqueuetopia.job import Job
from pgqueuetopia.queuetopia import Queuetopia

Params = Mapping[str, Any] | BaseModel | None

# More than a test has.
EVERY = 1_000_000
MOST_SHOWN = 10
LONGEST_SHOWN = 300


async def jobs_created(
    app: Queuetopia, *, queue: str | None = None, action: str | None = None, params: Params = None
) -> list[Job]:
    """The jobs of this scope in the database, pending or ended, that match; in the order of creation.

    None matches any. `params` matches as a subset: the job's may have more keys, in nested dicts, too; all
    else must be equal (unittest.mock.ANY is). A pydantic model stands for what create_job stores of it.
    """
    wanted = _Wanted(queue, action, params)
    return [job for job in await _all_jobs(app) if wanted.is_met_by(job)]


async def assert_job_created(
    app: Queuetopia,
    *,
    queue: str | None = None,
    action: str | None = None,
    params: Params = None,
    count: int | None = None,
) -> Job:
    """The first job that matches as for `jobs_created`; with `count` exactly so many (1 or more) must match.

    Raises AssertionError, which shows the jobs that are there, at most ten, the nearest first.
    """
    __tracebackhide__ = True
    wanted, jobs = _Wanted(queue, action, params), await _all_jobs(app)
    found = [job for job in jobs if wanted.is_met_by(job)]
    if not found or count not in (None, len(found)):
        expected = "a job" if count is None else f"{count} jobs"
        raise AssertionError(wanted.report(f"Expected {expected}, found {len(found)}", app.scope, jobs))
    return found[0]


async def refute_job_created(
    app: Queuetopia, *, queue: str | None = None, action: str | None = None, params: Params = None
) -> None:
    """No job matches as for `jobs_created`. Raises AssertionError, which shows the jobs that do first."""
    __tracebackhide__ = True
    wanted, jobs = _Wanted(queue, action, params), await _all_jobs(app)
    if found := sum(map(wanted.is_met_by, jobs)):
        raise AssertionError(wanted.report(f"Expected no job, found {found}", app.scope, jobs))


async def _all_jobs(app: Queuetopia) -> list[Job]:
    return await app.list_jobs(limit=EVERY)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a job must have; None stands for anything."""

    queue: str | None
    action: str | None
    params: Params

    def is_met_by(self, job: Job) -> bool:
        return all(share == 1 for share in self._shares(job))

    def nearness(self, job: Job) -> float:
        return sum(self._shares(job))

    def report(self, verdict: str, scope: str, jobs: list[Job]) -> str:
        """The verdict, what was asked for, and the jobs that come nearest to it."""
        nearest = sorted(jobs, key=self.nearness, reverse=True)[:MOST_SHOWN]
        first = f"; the nearest {len(nearest)} of them" if len(jobs) > MOST_SHOWN else ""
        return "\n  ".join(
            [
                f"{verdict}, with {self}.",
                f"Scope {scope!r} has {len(jobs)} jobs{first}{':' if jobs else '.'}",
                *map(_shown, nearest),
            ]
        )

    def __str__(self) -> str:
        asked = {"queue": self.queue, "action": self.action, "params": self.params}
        given = [f"{name}={value!r}" for name, value in asked.items() if value is not None]
        return ", ".join(given) or "any queue, action and params"

    def _shares(self, job: Job) -> list[float]:
        return [
            float(self.queue in (None, job.queue)),
            float(self.action in (None, job.action)),
            1.0 if self.params is None else _share(_plain(self.params), job.params),
        ]


def _plain(params: Mapping[str, Any] | BaseModel) -> Mapping[str, Any]:
    return params.model_dump(mode="json") if isinstance(params, BaseModel) else params


def _share(asked: object, stored: object) -> float:
    """How much of what is asked for is there, from 0 to 1."""
    match asked, stored:
        case Mapping(), dict():
            shares = [_share(value, stored[key]) if key in stored else 0.0 for key, value in asked.items()]
            return sum(shares) / len(shares) if shares else 1.0
        case tuple(), list():
            return float(list(asked) == stored)
        case _:
            return float(asked == stored)


def _shown(job: Job) -> str:
    params = repr(job.params)
    if len(params) > LONGEST_SHOWN:
        params = f"{params[:LONGEST_SHOWN]}…"
    return f"job {job.id} ({job.state}): queue={job.queue!r}, action={job.action!r}, params={params}"
