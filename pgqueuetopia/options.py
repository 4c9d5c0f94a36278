"""The settings of a Queuetopia, checked when one is made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, get_args

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.failure import OnExhausted
from pgqueuetopia.job import LONGEST_DELAY, Seconds, as_timedelta, count_faults, is_duration, name_faults
from pgqueuetopia.modes import FailureMode, SuccessMode, callable_faults, failure_mode_faults
from pgqueuetopia.table import together
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.topics import Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a Queuetopia works; each is a class attribute or an argument of the constructor.

    poll_interval: how often a node that hears nothing looks all the same, in seconds.
    concurrency: how many jobs a node runs at once.
    prefetch: how many jobs of one queue a node claims at once, where the last ones took a few milliseconds;
        they run one after the other all the same. With more than 1 queues of short jobs go up to twice as
        fast, one hot queue many times, and after a kill as many of its jobs as had just ended may run again.
        Not for Workers and topics, and not while somebody listens to events.
    on_exhausted: what follows the last failed attempt: "abandon" the job, or "block" its queue until an
        operator retries or abandons it.
    job_retention: how long a job is kept after it has ended; 0 removes it as it ends, timedelta(days=365_000)
        never.
    cleanup_interval: how often old jobs are removed.
    shutdown: how long a node that leaves lets its jobs run, before it cancels them; Workers have their own.
    session_timeout: how long, at most, a node that was cut off from the database keeps its queues. It has
        stopped its jobs by then; a killed process lets go at once. A node whose event loop stalls for longer
        loses its queues, too.
    disabled: start no node at all (for consoles and tests).
    suspended: start suspended, this instance alone, until `resume(local=True)` (Honeydew). To start all nodes
        suspended, `suspend()` first: that is kept in the database.
    per_queue_suspension: whether configs `<queue>_suspended` suspend single queues, beside `suspended`, which
        suspends all (notify queue).
    failure_mode: what follows each failure, in place of backoff, max_attempts and on_exhausted (Honeydew):
        Abandon, Move, Retry, ExponentialRetry, or a function of the job and its Failure that returns a
        Settlement.
    failure_modes: the same for single queues, by their name; a job's own goes before both.
    success_mode: called with a Success after each that was committed, such as Log(); what it raises is
        logged.
    max_job_time: how long any run may last, whatever the job's timeout says; 0: no limit (notify queue).
    retry_seconds: how long a failed job waits at least (notify queue).
    topics: the queues of which several jobs run at once (JobQueue); any other queue is a blocking one.
    table_queues: tables of which every row is a job (Honeydew's Ecto Poll Queue).
    """

    poll_interval: Seconds = 60
    concurrency: int = 100
    prefetch: int = 1
    on_exhausted: OnExhausted = "abandon"
    job_retention: Seconds = timedelta(days=7)
    cleanup_interval: Seconds = 600
    shutdown: Seconds = 30
    session_timeout: Seconds = 15
    disabled: bool = False
    suspended: bool = False
    per_queue_suspension: bool = True
    failure_mode: FailureMode | None = None
    failure_modes: Mapping[str, FailureMode] = field(default_factory=dict)
    success_mode: SuccessMode | None = None
    max_job_time: Seconds = 0
    retry_seconds: Seconds = 0
    topics: Sequence[Topic] = ()
    table_queues: Sequence[TableQueue] = ()


# The kernel counts a third of it, the pause between signs of life, in 15 bits.
LONGEST_SESSION = timedelta(days=1)

NAMES = frozenset(one.name for one in fields(Options))


def check(name: str, scope: str, options: Options, others: Iterable[str]) -> None:
    """Raise Misconfigured with all that is wrong with a Queuetopia's settings, the other faults included."""
    faults = [*name_faults("scope", scope), *others, *_faults(options)]
    if scope == "*":
        faults.append("scope '*' stands for every scope; choose a name")
    if faults:
        raise Misconfigured(f"{name}: {'; '.join(faults)}")


def refuse(faults: Iterable[str]) -> None:
    """Raise Misconfigured with these, if there are any."""
    if found := list(faults):
        raise Misconfigured("; ".join(found))


def as_duration(name: str, value: Seconds) -> timedelta:
    """A time that can be waited for. Raises Misconfigured for any other value."""
    if not is_duration(value):
        raise Misconfigured(f"{name} must be seconds or a timedelta, and not negative, not {value!r}")
    return as_timedelta(value)


def check_queue(queue: object) -> None:
    """Raise Misconfigured for what can be no queue's name; None stands for all."""
    if queue is not None:
        refuse(name_faults("queue", queue))


def _faults(options: Options) -> Iterator[str]:
    yield from _duration_faults("poll_interval", options.poll_interval, least=0.001)
    yield from _duration_faults("cleanup_interval", options.cleanup_interval, least=0.001)
    yield from _duration_faults("job_retention", options.job_retention, least=0)
    yield from _duration_faults("shutdown", options.shutdown, least=0)
    yield from _duration_faults("session_timeout", options.session_timeout, least=1, most=LONGEST_SESSION)
    yield from _duration_faults("max_job_time", options.max_job_time, least=0)
    yield from _duration_faults("retry_seconds", options.retry_seconds, least=0)
    yield from _mode_faults(options)
    yield from _topics_faults(options.topics)
    yield from _table_faults(options)
    yield from count_faults("concurrency", options.concurrency)
    yield from count_faults("prefetch", options.prefetch)
    if options.on_exhausted not in get_args(OnExhausted):
        yield f"on_exhausted must be one of {', '.join(get_args(OnExhausted))}"


def _mode_faults(options: Options) -> Iterator[str]:
    if options.failure_mode is not None:
        yield from failure_mode_faults("failure_mode", options.failure_mode)
    if options.success_mode is not None:
        yield from callable_faults("success_mode", options.success_mode)
    for queue, mode in options.failure_modes.items():
        yield from name_faults("a queue of failure_modes", queue)
        yield from failure_mode_faults(f"failure_modes[{queue!r}]", mode)


def _names_of(topics: object) -> list[str]:
    given = topics if isinstance(topics, list | tuple) else []
    return [topic.name for topic in given if isinstance(topic, Topic)]


def _topics_faults(topics: object) -> Iterator[str]:
    if not isinstance(topics, list | tuple) or not all(isinstance(topic, Topic) for topic in topics):
        yield "topics must be a list of Topic(...)"
        return
    for name, times in Counter(topic.name for topic in topics).items():
        if times > 1:
            yield f"topics has {name!r} {times} times"


def _table_faults(options: Options) -> Iterator[str]:
    topics = _names_of(options.topics)
    yield from together.faults(options.table_queues, topics, options.failure_mode, options.failure_modes)


def _duration_faults(
    name: str, value: Any, *, least: float, most: timedelta = LONGEST_DELAY
) -> Iterator[str]:
    if value is None:
        yield f"{name} must be seconds or a timedelta, not None; leave it out for what it is by default"
    elif isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        yield f"{name} must be seconds or a timedelta, not {type(value).__name__}"
    elif not least <= (seconds := value.total_seconds() if isinstance(value, timedelta) else value):
        yield f"{name} must be at least {least:g} seconds"
    elif seconds > most.total_seconds():
        yield f"{name} must be at most {most.total_seconds():,.0f} seconds"
