"""How many queues a node holds: its concurrency, or less while workers or the server's locks are scarce."""

from collections.abc import Callable

import structlog

log = structlog.get_logger("pgqueuetopia")

# How long a node makes do with less, in seconds, after the server's lock table was full.
CROWDED = 10.0


class Room:
    """The limit in force."""

    def __init__(self, concurrency: int, free: Callable[[], int | None] = lambda: None) -> None:
        self._free = free
        self._concurrency = concurrency
        self._most = concurrency
        self._crowded_until = 0.0
        self._told = False

    def left(self, held: int, now: float) -> int:
        """How many more may be held, besides those `held`; no more than workers are free."""
        left, free = max(self.most(now) - held, 0), self._free()
        return left if free is None else min(left, free)

    def most(self, now: float) -> int:
        """How many queues may be held now, by the locks."""
        return self._most if now < self._crowded_until else self._concurrency

    def learn(self, crowded: bool, held: int, now: float) -> None:
        """A step, after which `held` queues are held, was told that there is no room for more, or was not."""
        if crowded:
            self._shrink(held, now)
        elif now >= self._crowded_until:
            self._told = False

    def _shrink(self, held: int, now: float) -> None:
        """Make do with half of what was asked for besides those held, and with one queue at least."""
        self._most = max(1, held + (self.most(now) - held) // 2)
        self._crowded_until = now + CROWDED
        if not self._told:
            self._told = True
            log.warning(
                "lock_table_full",
                queues=held,
                concurrency=self._concurrency,
                hint="raise max_locks_per_transaction on the server, or lower concurrency",
            )
