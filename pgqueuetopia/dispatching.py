"""Dispatchers: which of the free workers takes the next job (Honeydew); pure data."""

from collections import OrderedDict
from typing import Protocol


class Dispatcher(Protocol):
    """The free workers of one node; every node has a copy of its own.

    A node claims at most `len(dispatcher)` jobs at a time, and calls check_out once for each.
    """

    def __len__(self) -> int:
        """How many workers are free."""

    def check_in(self, worker: object) -> None:
        """A worker has become free."""

    def check_out(self) -> object:
        """Take out the worker that takes the next job; called only while some are free."""

    def remove(self, worker: object) -> None:
        """A worker is gone: it may have been free or not."""


class LRU:
    """The worker that has been free longest takes the next job: all are used evenly (Honeydew's default)."""

    def __init__(self) -> None:
        self._free: OrderedDict[object, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._free)

    def check_in(self, worker: object) -> None:
        """A worker has become free."""
        self._free[worker] = None

    def check_out(self) -> object:
        """The one that has been free longest."""
        return self._free.popitem(last=False)[0]

    def remove(self, worker: object) -> None:
        """A worker is gone."""
        self._free.pop(worker, None)


class MRU(LRU):
    """The worker that became free last takes the next job: few are used, and their caches stay warm."""

    def check_out(self) -> object:
        """The one that became free last."""
        return self._free.popitem(last=True)[0]


class LRUNode(LRU):
    """Across nodes: of those that are free, the node that has gone longest without a job takes the next one.

    The nodes tell each other when they take jobs. Who wakes up waits 20 ms for each other node that has gone
    longer without, and takes one job at a time. Within a node as LRU. Near, not exact: who is slow to wake up
    is overtaken. It costs a notification for each job: for few and long jobs, not for thousands a second.
    """


def check(dispatcher: object) -> list[str]:
    """What is missing of a dispatcher."""
    if isinstance(dispatcher, type):
        return [f"dispatcher must be an instance, not a class: {dispatcher.__name__}()"]
    names = ("__len__", "check_in", "check_out", "remove")
    missing = [name for name in names if not callable(getattr(dispatcher, name, None))]
    return [f"dispatcher {type(dispatcher).__name__} has no {', '.join(missing)}"] if missing else []
