"""Topics: queues that run several jobs at once, in the whole cluster (JobQueue)."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from pgqueuetopia.backoff import exponential, linear, none
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import LARGEST_INTEGER, Job, Seconds, as_delay, integer_faults, name_faults

Backoff = Callable[[Job], Seconds]

STRATEGIES: Mapping[str, Backoff] = MappingProxyType(
    {
        "none": lambda job: none(job.attempts),
        "linear": lambda job: linear(job.attempts),
        "exponential": lambda job: exponential(job.attempts),
    }
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A queue of which `parallelism` jobs run at once, on all nodes together, and `per_node` on each.

    With a parallelism of 1 it is a topic all the same, and no blocking queue. Its jobs run by priority (the
    highest first), then the one due longest; one that fails leaves the line until it is due again. `priority`
    is that of its jobs where they have none of their own, and that of the topic among other queues;
    `max_attempts` (20) that of its jobs. `backoff` is "none", "linear" (15 s for each attempt),
    "exponential" (attempt**4 + 15 s) or a function of the job that returns seconds or a timedelta; the job's
    `attempts` is 1 after the first failure. A job's max_backoff limits it, and `jitter` (0 to 1) shortens it
    by up to that part, at random. The configs `<topic>_parallelism`, `<topic>_priority` and
    `<topic>_suspended` win over what is said here, at once and on all nodes. Raises Misconfigured for what
    cannot be.
    """

    name: str
    parallelism: int = 1
    priority: int = 0
    backoff: str | Backoff = "exponential"
    max_attempts: int = 20
    per_node: int | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise Misconfigured(f"Topic {self.name!r}: {'; '.join(faults)}")
        _DECLARED.add(self.name)

    def _faults(self) -> Iterator[str]:
        yield from name_faults("its name", self.name)
        yield from integer_faults("parallelism", self.parallelism, least=1)
        yield from integer_faults("max_attempts", self.max_attempts, least=1)
        yield from integer_faults("priority", self.priority, least=-LARGEST_INTEGER)
        if self.per_node is not None:
            yield from integer_faults("per_node", self.per_node, least=1)
        if not callable(self.backoff) and self.backoff not in list(STRATEGIES):
            known = ", ".join(STRATEGIES)
            yield f"backoff must be one of {known} or a function of the job, not {self.backoff!r}"
        jitter: object = self.jitter
        if not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
            yield f"jitter must be between 0 and 1, not {self.jitter!r}"

    def delay(self, job: Job) -> timedelta:
        """How long a job waits after its failed attempt number `job.attempts`."""
        strategy = STRATEGIES[self.backoff] if isinstance(self.backoff, str) else self.backoff
        whole = min(as_delay(strategy(job)), job.max_backoff)
        return whole * (1 - self.jitter * random.random()) if self.jitter else whole


# The names of the topics of this process: a TopicWorker for another one is a mistake.
_DECLARED: set[str] = set()


def is_declared(name: str) -> bool:
    """Whether this process has a Topic of this name."""
    return name in _DECLARED
