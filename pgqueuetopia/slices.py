"""How long a queue keeps its place on a node while others are due."""

from dataclasses import dataclass

# In seconds: how much a queue's jobs may take together, and how long it may be held, before others have its
# place. To change places costs about as much as a job that does nothing.
SLICE = 0.1
LONGEST_SLICE = 0.5


@dataclass(slots=True)
class Slice:
    """What a queue has had of its node: since when it is held, by the node's clock, what its jobs took."""

    since: float
    used: float = 0.0

    def is_over(self, now: float) -> bool:
        """Whether the queue is to give its place up, if others are due."""
        return self.used > SLICE or now - self.since > LONGEST_SLICE
