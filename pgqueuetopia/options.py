"""The settings of a Queuetopia, checked when one is made."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, get_args

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.failure import OnExhausted
from pgqueuetopia.job import Seconds, as_timedelta, name_faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a Queuetopia works; each is a class attribute or an argument of the constructor.

    poll_interval: how often a node that hears nothing looks all the same, in seconds.
    concurrency: how many jobs a node runs at once.
    on_exhausted: what follows the last failed attempt: "abandon" the job, or "block" its queue until an
        operator retries or abandons it.
    job_retention: how long a job is kept after it has ended; 0 removes it as it ends.
    cleanup_interval: how often old jobs are removed.
    shutdown: how long a node that leaves lets its jobs run, before it cancels them.
    session_timeout: how long, at most, a node that was cut off from the database keeps its queues. It has
        stopped its jobs by then; a killed process lets go at once. A node whose event loop stalls for longer
        loses its queues, too.
    disabled: start no node at all (for consoles and tests).
    """

    poll_interval: Seconds = 60
    concurrency: int = 100
    on_exhausted: OnExhausted = "abandon"
    job_retention: Seconds = timedelta(days=7)
    cleanup_interval: Seconds = 600
    shutdown: Seconds = 30
    session_timeout: Seconds = 15
    disabled: bool = False


NAMES = frozenset(field.name for field in fields(Options))


def check(name: str, scope: str, options: Options) -> None:
    """Raise Misconfigured with all that is wrong with a Queuetopia's settings."""
    faults = [*name_faults("scope", scope), *_faults(options)]
    if scope == "*":
        faults.append("scope '*' stands for every scope; choose a name")
    if faults:
        raise Misconfigured(f"{name}: {'; '.join(faults)}")


def _faults(options: Options) -> Iterator[str]:
    yield from _duration_faults("poll_interval", options.poll_interval, least=0.001)
    yield from _duration_faults("cleanup_interval", options.cleanup_interval, least=0.001)
    yield from _duration_faults("job_retention", options.job_retention, least=0)
    yield from _duration_faults("shutdown", options.shutdown, least=0)
    yield from _duration_faults("session_timeout", options.session_timeout, least=1)
    if isinstance(options.concurrency, bool) or not isinstance(options.concurrency, int):
        yield "concurrency must be an integer"
    elif options.concurrency < 1:
        yield f"concurrency must be at least 1, not {options.concurrency}"
    if options.on_exhausted not in get_args(OnExhausted):
        yield f"on_exhausted must be one of {', '.join(get_args(OnExhausted))}"


def _duration_faults(name: str, value: Any, *, least: float) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        yield f"{name} must be seconds or a timedelta, not {type(value).__name__}"
    elif not isinstance(value, timedelta) and not math.isfinite(value):
        yield f"{name} must be finite"
    elif as_timedelta(value) < timedelta(seconds=least):
        yield f"{name} must be at least {least:g} seconds"
