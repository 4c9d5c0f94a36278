"""How fast do jobs run while ten subscribers are told of each, one of whom is asleep?"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import IO

from benchmarks.figures import Figure, ratio
from benchmarks.listeners import LISTENERS
from benchmarks.server import Server
from benchmarks.throughput import SCOPE, Workload, jobs_per_second

ROUNDS = 15
WORKLOAD = Workload(20_000, 1_000)


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The share of their speed that the jobs have, and what the subscribers were told in a second."""
    shares, deliveries, memory = [], [], []
    for round_ in range(1, ROUNDS + 1):
        async with server.database() as dsn:
            alone = await jobs_per_second(dsn, WORKLOAD)
        async with server.database() as dsn:
            with listeners(dsn) as finish:
                rate = await jobs_per_second(dsn, WORKLOAD)
                told = json.loads(finish())
        shares.append(rate / alone)
        deliveries.append((sum(told["read"]) + told["lost"]) / (WORKLOAD.jobs / rate))
        memory.append(told["memory"] / 2**20)
        tell(f"round {round_} of {ROUNDS}: {rate:,.0f} of {alone:,.0f} jobs/s, {told}")
    return [
        ratio(f"jobs beside {LISTENERS} subscribers, of their speed without", shares),
        Figure("events handed to subscribers a second", f"{median(deliveries):,.0f}", ""),
        Figure("memory of the process of the subscribers", f"{median(memory):.0f} MB", ""),
    ]


@contextmanager
def listeners(dsn: str) -> Iterator[Callable[[], str]]:
    """The process of the subscribers; the function ends their input, and returns what they print."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.listeners", dsn, SCOPE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        output = _of(process.stdout)
        output.readline()

        def finish() -> str:
            _of(process.stdin).close()
            return output.readline()

        yield finish
    finally:
        process.kill()
        process.wait()


def _of(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
