"""What a session knows of the run queue, so that it need not read dead rows that nobody may remove."""

from collections.abc import Iterable
from itertools import islice

from pgqueuetopia.db.arrays import quoted

# How many queues it knows at most: to tell of a thousand costs a step a tenth of a millisecond.
MOST = 2_000
# Of how many it tells for each queue that steps take lately (about so many count): of those that were left
# the longest ago, for where there is always a backlog they are the next to be taken. Where queues run dry all
# the time a step takes many, and is told of all.
AHEAD = 50
LATELY = 16
# So many scans in a row must have taken long, for one may have waited for the processor.
IN_A_ROW = 3


class Known:
    """Of queues that were held, what was seen as they were taken: no row that was seen is there any longer.

    Who takes a queue removes the rows that it sees, and its own as it lets go: what is there later has come
    in since, whoever else has had the queue meanwhile. That is gathered, and told, only while it `matters`.
    """

    def __init__(self) -> None:
        # Quoted, as elements of arrays, and the one that was left the longest ago first.
        self.left: dict[str, str] = {}
        self._dragged = 0
        self._taken: dict[str, str] = {}
        self._taken_lately = 0.0

    @property
    def matters(self) -> bool:
        """Whether it is gathered."""
        return self._dragged >= IN_A_ROW

    def hear(self, drags: bool | None) -> None:
        """Whether a scan from the start took long: if not, all is forgotten. None: there was none."""
        if drags:
            self._dragged += 1
        elif drags is not None:
            self._dragged = 0
            self.left.clear()
            self._taken.clear()

    def learn(self, asked: Iterable[str], held: Iterable[str], snapshot: str) -> None:
        """A step was asked for some queues, and holds some now: which of them are new, and which are left."""
        asked, held = set(asked), set(held)
        taken = held - asked
        for queue in taken:
            self._taken[queue] = snapshot
            self.left.pop(quoted(queue), None)
        self._taken_lately += (len(taken) - self._taken_lately) / LATELY
        if len(self.left) > MOST:
            self.left.clear()
        self.left |= {
            quoted(queue): quoted(self._taken.pop(queue)) for queue in asked - held if queue in self._taken
        }

    def columns(self) -> tuple[str | None, str | None]:
        """Queues, and what was seen of each, as arrays are written: as many as may be needed, or None."""
        if not self.left:
            return None, None
        most = 1 + round(AHEAD * self._taken_lately)
        queues, seen = islice(self.left, most), islice(self.left.values(), most)
        return f"{{{','.join(queues)}}}", f"{{{','.join(seen)}}}"
