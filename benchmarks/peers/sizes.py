"""How much is measured; $PGQUEUETOPIA_BENCH_SCALE makes it less, to try that all runs."""

import os

SCALE = float(os.environ.get("PGQUEUETOPIA_BENCH_SCALE", "1"))


def scaled(size: int) -> int:
    """At least two, as a percentile of one sample is none."""
    return max(round(size * SCALE), 2)
