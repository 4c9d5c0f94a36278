"""Which claimed jobs have not been started yet: a transaction that suspends waits for them."""

from collections.abc import Iterable

GATES = (0, 1)


class Starts:
    """The jobs between claim and start, by the gate behind which they were claimed.

    There are two, so that a step can claim behind one while the jobs of the step before are being started.
    """

    def __init__(self) -> None:
        self._jobs: tuple[set[int], ...] = tuple(set() for _ in GATES)

    def __bool__(self) -> bool:
        return any(self._jobs)

    @property
    def free(self) -> list[int]:
        """The gates behind which everything has been started."""
        return [gate for gate in GATES if not self._jobs[gate]]

    def expect(self, gate: int, jobs: Iterable[int]) -> None:
        """These were claimed behind a gate, and are being started."""
        self._jobs[gate].update(jobs)

    def begin(self, job: int) -> None:
        """It has been started, or never will be; may be called by any thread."""
        for jobs in self._jobs:
            jobs.discard(job)
