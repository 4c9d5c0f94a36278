"""How large the benchmarks are: $PGQUEUETOPIA_BENCH_SCALE (1 by default) multiplies jobs and durations."""

import os

SCALE = float(os.environ.get("PGQUEUETOPIA_BENCH_SCALE", "1"))


def count(full: int) -> int:
    """So many jobs or queues, at this scale; at least two, for a percentile."""
    return max(round(full * SCALE), 2)


def seconds(full: float) -> float:
    """So many seconds, at this scale."""
    return full * SCALE
