"""What a session knows of the run queue, so that it need not read dead rows that nobody may remove."""

from collections.abc import Iterable
from itertools import islice

from pgqueuetopia.db.arrays import array, quoted

# How many queues it knows at most: to tell of a thousand costs a step a tenth of a millisecond.
MOST = 2_000
# Of how many it tells: of those that were left the longest ago, for where there is always a backlog these are
# the next to be taken. Of twice as many after a step that took one which it knew and was not told of, else of
# a little fewer each time: of an eighth of a thousand in that case, and of all where any may be the next.
GROWTH = 2.0
SHRINKAGE = 0.99
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
        self._most = 1.0

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
        taken = {quoted(queue) for queue in held - asked}
        was_missing = (taken & self.left.keys()) - set(self._told())
        self._most = min(self._most * GROWTH, MOST) if was_missing else max(self._most * SHRINKAGE, 1)
        for queue in taken:
            self._taken[queue] = quoted(snapshot)
            self.left.pop(queue, None)
        if len(self.left) > MOST:
            self.left.clear()
        for queue in map(quoted, asked - held):
            if queue in self._taken:
                self.left[queue] = self._taken.pop(queue)

    def columns(self) -> tuple[str | None, str | None]:
        """Queues, and what was seen of each, as arrays are written; None where nothing is known."""
        told = list(self._told())
        return array(told), array(map(self.left.__getitem__, told))

    def _told(self) -> Iterable[str]:
        """Of which queues the next step is told, or the last one was: `learn` follows it."""
        return islice(self.left, round(self._most))
