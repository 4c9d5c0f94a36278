"""What a session knows of the run queue, so that it need not read dead rows that nobody may remove."""

from collections.abc import Iterable

# Of how many queues it tells at most: for each thousand a step takes a tenth of a millisecond.
MOST = 2_000


class Known:
    """Of queues that were held, what was seen as they were taken: no row that was seen is there any longer.

    Who takes a queue removes the rows that it sees, and its own as it lets go: what is there later has come
    in since, whoever else has had the queue meanwhile. That is gathered, and told, only while it `matters`.
    """

    def __init__(self) -> None:
        self.matters = False
        self.left: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def turn(self, matters: bool | None) -> None:
        """Begin to gather it, or forget it all; None: go on as before."""
        if matters is not None and matters != self.matters:
            self.matters = matters
            self.left.clear()
            self._taken.clear()

    def learn(self, asked: Iterable[str], held: Iterable[str], snapshot: str) -> None:
        """A step was asked for some queues, and holds some now: which of them are new, and which are left."""
        if self.matters:
            self._note(set(asked), set(held), snapshot)

    def _note(self, asked: set[str], held: set[str], snapshot: str) -> None:
        for queue in held - asked:
            self._taken[queue] = snapshot
            self.left.pop(queue, None)
        if len(self.left) > MOST:
            self.left.clear()
        self.left |= {queue: self._taken.pop(queue) for queue in asked - held if queue in self._taken}
