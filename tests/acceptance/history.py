"""What nodes did, as they wrote it down, and every promise that it breaks."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

# In seconds: the last run of a node in a queue may have ended that long before the kill, and not be saved.
UNSAVED = 2.0

DONE = "done"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job, by the machine's monotonic clock; `end` and `how` are None where it was killed."""

    queue: str
    job: int
    attempt: int
    claim: int
    node: str
    start: float
    end: float | None = None
    how: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """The runs; when nodes were killed; and from when to when everything was suspended."""

    runs: Sequence[Run]
    kills: Mapping[str, float] = field(default_factory=dict)
    pauses: Sequence[tuple[float, float]] = ()

    @property
    def queues(self) -> dict[str, list[Run]]:
        """The runs of each queue, by their start."""
        queues: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.start):
            queues[run.queue].append(run)
        return queues


def faults(history: History, order: Mapping[str, Sequence[int]]) -> list[str]:
    """Every promise that is broken, given the jobs of each queue in their order."""
    return [
        *lost(history, order),
        *overlaps(history),
        *overtakings(history, order),
        *reruns(history),
        *starts_while_suspended(history),
    ]


def lost(history: History, order: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Jobs that never came to a good end."""
    done = {run.job for run in history.runs if run.how == DONE}
    for queue, jobs in order.items():
        for job in jobs:
            if job not in done:
                yield f"lost: job {job} of {queue} was never done"


def overlaps(history: History) -> Iterator[str]:
    """Runs of a queue that began before the one before them had ended."""
    for queue, runs in history.queues.items():
        last: Run | None = None
        for run in runs:
            if last is not None and run.start < _end(last, history.kills):
                yield f"overlap: in {queue} {_named(run)} began while {_named(last)} ran"
            if last is None or _end(run, history.kills) >= _end(last, history.kills):
                last = run


def overtakings(history: History, order: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Jobs that began before all jobs ahead of them in their queue were done."""
    for queue, runs in history.queues.items():
        places = {job: place for place, job in enumerate(order.get(queue, ()))}
        next_place = 0
        for run in runs:
            place = places.get(run.job)
            if place is None:
                yield f"unknown: {_named(run)} is no job of {queue}"
            elif place > next_place:
                yield f"overtaking: in {queue} {_named(run)} began before the jobs ahead of it were done"
            elif place == next_place and run.how == DONE:
                next_place += 1


def crowds(history: History, most: int) -> Iterator[str]:
    """Runs that began while so many others of their queue ran already."""
    for queue, runs in history.queues.items():
        running: list[Run] = []
        for run in runs:
            running = [one for one in running if _end(one, history.kills) > run.start]
            if len(running) >= most:
                yield f"crowd: in {queue} {_named(run)} began while {len(running)} ran"
            running.append(run)


def idle_spells(history: History, most: int, until: float, after_kill: float) -> list[float]:
    """How long fewer than so many ran, each time, in seconds; not in the first time after a kill."""
    changes = sorted(
        change for run in history.runs for change in ((run.start, 1), (_end(run, history.kills), -1))
    )
    spells, running, since = [], 0, None
    for when, change in changes:
        running += change
        if since is not None and running >= most:
            start = max([since, *(kill + after_kill for kill in history.kills.values() if kill <= when)])
            spells.append(min(when, until) - start)
        since = when if running < most and (since is None or running - change >= most) else since
        since = None if running >= most else since
    return [spell for spell in spells[1:] if spell > 0]


def reruns(history: History, at_once: int = 1) -> Iterator[str]:
    """Jobs that ran again, although no kill and no shutdown had interrupted them."""
    jobs: dict[int, list[Run]] = defaultdict(list)
    last: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(history.runs, key=lambda run: run.start):
        jobs[run.job].append(run)
        last[run.queue, run.node] = [*last[run.queue, run.node], run][-at_once:]
    for runs in jobs.values():
        for run, again in pairwise(runs):
            if again.claim <= run.claim:
                yield f"rerun: {_named(again)} bears a claim that is not newer than that of {_named(run)}"
            killed_at = history.kills.get(run.node) if run in last[run.queue, run.node] else None
            if not _may_run_again(run, killed_at):
                yield f"rerun: {_named(again)} although {_named(run)} was not interrupted"


def starts_while_suspended(history: History) -> Iterator[str]:
    """Runs that began after a suspension had committed and before it was lifted."""
    for since, until in history.pauses:
        for run in history.runs:
            if since < run.start < until:
                yield f"suspended: {_named(run)} began {run.start - since:.6f} s after the commit"


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs that performers wrote down, one line for a start and one for an end."""
    runs: dict[tuple[int, int], Run] = {}
    for path in paths:
        # A killed process may leave half a line.
        for line in path.read_bytes().split(b"\n")[:-1]:
            event = json.loads(line)
            key = event["job"], event["claim"]
            if "end" in event:
                runs[key] = replace(runs[key], end=event["end"], how=event["how"])
            elif key in runs:
                raise AssertionError(f"job {key[0]} was started twice under claim {key[1]}")
            else:
                runs[key] = Run(**event)
    return list(runs.values())


def _end(run: Run, kills: Mapping[str, float]) -> float:
    """A killed run ends with its node; one that nothing ended runs for ever."""
    return run.end if run.end is not None else kills.get(run.node, float("inf"))


def _may_run_again(run: Run, killed_at: float | None) -> bool:
    if run.how == INTERRUPTED:
        return True
    return killed_at is not None and (run.end is None or killed_at - run.end < UNSAVED)


def _named(run: Run) -> str:
    return f"job {run.job} (claim {run.claim}, node {run.node})"
