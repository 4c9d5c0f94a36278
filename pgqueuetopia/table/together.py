"""What is wrong with the table queues of a Queuetopia beside each other, and beside all else."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.modes import FailureMode
from pgqueuetopia.table.queue import TableQueue, moves_of


def faults(
    queues: object,
    topics: Iterable[str],
    mode: FailureMode | None,
    modes: Mapping[str, FailureMode],
) -> Iterator[str]:
    """Everything that is wrong with them; `mode` and `modes` are the Queuetopia's failure modes."""
    if not isinstance(queues, list | tuple) or not all(isinstance(one, TableQueue) for one in queues):
        yield "table_queues must be a list of TableQueue(...)"
        return
    names = [one.queue for one in queues]
    for name, times in Counter([*names, *topics]).items():
        if name in names and times > 1:
            yield f"two table queues, or one and a topic, have the name {name!r}"
    if len({one.database for one in queues}) > 1:
        yield "table_queues must all be on one database"
    yield from _move_faults(queues, mode, modes)


def _move_faults(
    queues: Sequence[TableQueue], mode: FailureMode | None, modes: Mapping[str, FailureMode]
) -> Iterator[str]:
    """Only a row can be a table queue's job, so nothing can be moved there."""
    by_whom = {
        "failure_mode": mode,
        **{f"failure_modes[{name!r}]": one for name, one in modes.items()},
        **{f"the failure_mode of table queue {one.queue!r}": one.failure_mode for one in queues},
    }
    names = {one.queue for one in queues}
    for who, one in by_whom.items():
        for target in moves_of(one):
            if target in names:
                yield f"{who} moves jobs to the table queue {target!r}, where only rows are jobs"


def job_faults(queues: Iterable[TableQueue], queue: object, mode: object = None) -> Iterator[str]:
    """Why a job cannot be made for a queue, or moved there by its own mode: only rows are its jobs."""
    by_name = {one.queue: one for one in queues}
    for name in [queue, *moves_of(mode)]:
        if isinstance(name, str) and name in by_name:
            yield f"{name!r} is a table queue: insert a row into {by_name[name].names.relation} instead"


def named(queues: Iterable[TableQueue], queue: TableQueue | str) -> TableQueue:
    """One of them by its name. Raises Misconfigured for another."""
    name = queue.queue if isinstance(queue, TableQueue) else queue
    known = {one.queue: one for one in queues}
    if name not in known:
        raise Misconfigured(
            f"There is no table queue {name!r}; table_queues has: {', '.join(known) or 'none'}"
        )
    return known[name]
