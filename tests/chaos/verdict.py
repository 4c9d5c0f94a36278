"""What the history and the tables say about the promises."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import asyncpg

from tests.acceptance.history import (
    DONE,
    INTERRUPTED,
    History,
    Run,
    lost,
    overlaps,
    overtakings,
    starts_while_suspended,
)
from tests.chaos.faults import Fault

ORDER = """
select id, queue, claim, outcome from pgqueuetopia.jobs order by queue, scheduled_at, id
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The counts, the times to resume by kind of fault, and every fault that was found."""

    jobs: int
    runs: int
    rerun: int
    found: Mapping[str, Sequence[str]]
    resumed: Mapping[str, Sequence[float]]

    @property
    def is_good(self) -> bool:
        return not any(self.found.values())

    def lines(self, faults: Sequence[Fault]) -> Iterator[str]:
        for kind, times in sorted(Counter(fault.kind for fault in faults).items()):
            spans = self.resumed.get(kind, [])
            took = f"median {median(spans):.2f} s, worst {max(spans):.2f} s" if spans else "none"
            yield f"{kind:28} {times:4} times; {len(spans):5} queues ran again after: {took}"
        yield f"jobs {self.jobs}; runs {self.runs}, of which run again {self.rerun}"
        for faults_found in self.found.values():
            yield from list(faults_found)[:10]
        counts = ", ".join(f"{kind} {len(found)}" for kind, found in self.found.items())
        yield f"{'GOOD' if self.is_good else 'BAD'}: {counts}"


async def judge(
    dsn: str, runs: Sequence[Run], kills: Mapping[str, float], faults: Sequence[Fault]
) -> Verdict:
    """Compare what the nodes wrote down with the promises, and with what the tables say."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(ORDER)
    await connection.close()
    order: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        order[row["queue"]].append(row["id"])
    pauses = [(fault.since, fault.until) for fault in faults if fault.kind == "suspended"]
    history = History(as_they_were(runs, faults), kills, pauses)
    return Verdict(
        jobs=len(rows),
        runs=len(runs),
        rerun=len(runs) - len({run.job for run in runs}),
        found={
            "lost": [*lost(history, order), *unfinished(rows)],
            "overlaps": list(overlaps(history)),
            "overtaken": list(overtakings(history, order)),
            "started while suspended": list(starts_while_suspended(history)),
            "unfenced": list(unfenced(rows, runs)),
        },
        resumed=times_to_resume(runs, faults),
    )


def as_they_were(runs: Sequence[Run], faults: Sequence[Fault]) -> list[Run]:
    """A frozen process does nothing: what another node took over meanwhile had ended when it froze."""
    starts: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for run in runs:
        starts[run.queue].append((run.start, run.node))
    frozen = [fault for fault in faults if fault.kind == "frozen"]
    return [_as_it_was(run, starts[run.queue], frozen) for run in runs]


def _as_it_was(run: Run, starts: Sequence[tuple[float, str]], frozen: Sequence[Fault]) -> Run:
    end = run.end if run.end is not None else math.inf
    for fault in frozen:
        slept = fault.node == run.node and run.start <= fault.since and end >= fault.until
        if slept and any(node != run.node and fault.since < start < end for start, node in starts):
            return replace(run, end=fault.since, how=INTERRUPTED)
    return run


def unfinished(rows: Sequence[asyncpg.Record]) -> Iterator[str]:
    """Jobs that have not succeeded, as the tables say."""
    for row in rows:
        if row["outcome"] != "succeeded":
            yield f"lost: job {row['id']} ended as {row['outcome']}"


def unfenced(rows: Sequence[asyncpg.Record], runs: Sequence[Run]) -> Iterator[str]:
    """Jobs whose success was written by another run than that of their last claim."""
    done = {(run.job, run.claim) for run in runs if run.how == DONE}
    for row in rows:
        if row["outcome"] == "succeeded" and (row["id"], row["claim"]) not in done:
            yield f"unfenced: job {row['id']} succeeded, and its claim {row['claim']} did not"


def times_to_resume(runs: Sequence[Run], faults: Sequence[Fault]) -> dict[str, list[float]]:
    """For each fault, how long the queues waited that it had stopped."""
    queues: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        queues[run.queue].append(run)
    spans: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        if fault.kind == "suspended":
            continue
        for of_queue in queues.values():
            span = _wait(of_queue, fault)
            if span is not None:
                spans[fault.kind].append(span)
    return spans


def _wait(runs: Sequence[Run], fault: Fault) -> float | None:
    """The time until a job that a fault stopped ran again."""
    for run, after in pairwise(runs):
        ran = run.start < fault.since and (run.end is None or run.end >= fault.since)
        stopped = fault.node in (None, run.node) and ran and run.how in (None, INTERRUPTED)
        if stopped and after.job == run.job and after.start > fault.since:
            return max(after.start - fault.back, 0)
    return None
