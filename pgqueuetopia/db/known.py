"""What a session knows of the run queue, so that it need not read dead rows that nobody may remove."""

from collections.abc import Iterable

# Of how many queues it tells at most: for each thousand a step takes a tenth of a millisecond.
MOST = 2_000
# So many scans in a row must have taken long, for one may have waited for the processor.
IN_A_ROW = 3


class Known:
    """Of queues that were held, what was seen as they were taken: no row that was seen is there any longer.

    Who takes a queue removes the rows that it sees, and its own as it lets go: what is there later has come
    in since, whoever else has had the queue meanwhile. That is gathered, and told, only while it `matters`.
    """

    def __init__(self) -> None:
        self.left: dict[str, str] = {}
        self._dragged = 0
        self._taken: dict[str, str] = {}

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
        for queue in held - asked:
            self._taken[queue] = snapshot
            self.left.pop(queue, None)
        if len(self.left) > MOST:
            self.left.clear()
        self.left |= {queue: self._taken.pop(queue) for queue in asked - held if queue in self._taken}
