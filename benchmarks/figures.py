"""A figure: the answer to one question, measured several times."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """What was asked, the median, and what the single rounds gave."""

    question: str
    median: str
    rounds: str


def rate(question: str, rates: Sequence[float]) -> Figure:
    """Jobs a second, one for each round."""
    return Figure(
        question,
        f"{statistics.median(rates):,.0f} jobs/s",
        ", ".join(f"{value:,.0f}" for value in rates),
    )


def ratio(question: str, ratios: Sequence[float]) -> Figure:
    """One ratio for each round."""
    return Figure(
        question,
        f"{statistics.median(ratios):.2f}",
        ", ".join(f"{value:.2f}" for value in ratios),
    )


def times(question: str, seconds: Sequence[float]) -> Figure:
    """A duration, one for each round."""
    return Figure(
        question,
        f"{statistics.median(seconds) * 1000:,.0f} ms",
        ", ".join(f"{value * 1000:,.0f}" for value in seconds),
    )


def latencies(question: str, seconds: Sequence[float]) -> Figure:
    """A duration measured many times: its median and its tail."""
    percentiles = statistics.quantiles(seconds, n=100)
    return Figure(
        question,
        f"{percentiles[49] * 1000:.2f} ms",
        f"99th percentile {percentiles[98] * 1000:.2f} ms, worst {max(seconds) * 1000:.2f} ms "
        f"of {len(seconds)}",
    )
