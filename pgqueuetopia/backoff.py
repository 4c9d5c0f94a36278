"""How long a failed job waits before its next attempt."""

from datetime import timedelta

_LARGEST_EXPONENT = 40  # 2**40 s is 34,000 years: beyond any limit, and still a timedelta


def doubling(attempts_before: int, limit: timedelta) -> timedelta:
    """2**attempts_before + 1 seconds, at most `limit`: 2, 3, 5, 9, 17, 33 s (PgQueuetopia's default)."""
    seconds = 2 ** min(attempts_before, _LARGEST_EXPONENT) + 1
    return min(timedelta(seconds=seconds), limit)


def none(attempts: int) -> timedelta:
    """At once (JobQueue's no_backoff)."""
    return timedelta(0)


def linear(attempts: int) -> timedelta:
    """15, 30, 45 s and so on (JobQueue)."""
    return timedelta(seconds=15 * attempts)


def exponential(attempts: int) -> timedelta:
    """attempts**4 + 15 seconds: 16, 31, 96, 271, 640 s (JobQueue)."""
    return timedelta(seconds=min(attempts, 10_000) ** 4 + 15)
