"""python -m benchmarks [NAME ...]: run the benchmarks and print a table of medians."""

import argparse
import logging
import sys
from collections.abc import Awaitable, Callable

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks import (
    creating,
    endurance,
    events,
    failover,
    flatness,
    flood,
    floor,
    idle,
    latency,
    peers,
    table,
    throughput,
    topics,
    waking,
)
from benchmarks.figures import Figure
from benchmarks.server import Server, a_server
from pgqueuetopia.cli import runtime

Benchmark = Callable[[Server, Callable[[str], None]], Awaitable[list[Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "waking": waking.measure,
    "failover": failover.measure,
    "topics": topics.measure,
    "flood": flood.measure,
    "events": events.measure,
    "flatness": flatness.measure,
    "table": table.measure,
    "floor": floor.measure,
    "creating": creating.measure,
    "idle": idle.measure,
    "peers": peers.measure,
    "endurance": endurance.measure,
}


def main() -> int:
    """Run what is asked for; no figure makes it fail."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; else all")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console()
    runtime.run(_run, names, console)
    return 0


async def _run(names: list[str], console: Console) -> None:
    table = Table("benchmark", "question", "median", "rounds")
    with a_server() as server:
        console.print(await server.described(), highlight=False)
        for name in names:
            for figure in await BENCHMARKS[name](server, _teller(console, name)):
                table.add_row(name, figure.question, figure.median, figure.rounds)
    console.print(table)


def _teller(console: Console, name: str) -> Callable[[str], None]:
    """Says how far a benchmark has come."""
    return lambda text: console.print(f"[dim]{name}: {text}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
