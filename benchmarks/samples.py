"""What a long run was like from time to time, as CSV and as PNG."""

import csv
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

FOLDER = "PGQUEUETOPIA_BENCH_PLOTS"
NO_MATPLOTLIB = "no plot, for matplotlib is missing: make bench installs it"


@dataclass(frozen=True, slots=True)
class Sample:
    """One window: when it ended and how long it was, in seconds; its jobs, and the dead rows at its end."""

    second: float
    length: float
    jobs: int
    backlog: int
    dead_jobs: int
    dead_run_queue: int
    pinned: bool

    @property
    def rate(self) -> float:
        return self.jobs / self.length

    def __str__(self) -> str:
        dead = f"{self.dead_jobs:,} dead rows of jobs, {self.dead_run_queue:,} of run_queue"
        return f"{self.second:g} s: {self.rate:,.0f} jobs/s, {dead}{', xmin pinned' if self.pinned else ''}"


def write(name: str, title: str, samples: Sequence[Sample], tell: Callable[[str], None]) -> None:
    """Into $PGQUEUETOPIA_BENCH_PLOTS, by default build/benchmarks."""
    folder = Path(os.environ.get(FOLDER) or "build/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    with table.open("w", newline="") as file:
        rows = csv.DictWriter(file, list(asdict(samples[0])))
        rows.writeheader()
        rows.writerows(map(asdict, samples))
    tell(f"written: {table}")
    try:
        _plot(folder / f"{name}.png", title, samples)
    except ModuleNotFoundError:
        tell(NO_MATPLOTLIB)
    else:
        tell(f"written: {folder / name}.png")


def _plot(path: Path, title: str, samples: Sequence[Sample]) -> None:
    """Speed above, dead rows below; grey where xmin was pinned."""
    # By its name: it is installed for the benchmarks alone, so the type checker may know it or not.
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    figure, (speed, dead) = importlib.import_module("matplotlib.pyplot").subplots(
        2, sharex=True, figsize=(10, 6), layout="constrained"
    )
    seconds = [sample.second for sample in samples]
    speed.plot(seconds, [sample.rate for sample in samples])
    speed.set(title=title, ylabel="jobs/s", ylim=(0, None))
    dead.plot(seconds, [sample.dead_jobs for sample in samples], label="jobs")
    dead.plot(seconds, [sample.dead_run_queue for sample in samples], label="run_queue")
    dead.set(xlabel="seconds", ylabel="dead rows", ylim=(0, None))
    dead.legend()
    for begin, end in _pinned(samples):
        speed.axvspan(begin, end, color="lightgrey")
        dead.axvspan(begin, end, color="lightgrey")
    figure.savefig(path)


def _pinned(samples: Sequence[Sample]) -> Iterator[tuple[float, float]]:
    """From when to when xmin was pinned."""
    for pinned, group in groupby(samples, key=lambda sample: sample.pinned):
        found = list(group)
        if pinned:
            yield found[0].second - found[0].length, found[-1].second
