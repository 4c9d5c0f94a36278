"""The bell that wakes the scheduler; rings coalesce."""

import anyio


class Bell:
    """Rung by whoever has news, from the event loop; heard once however often it rang."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    @property
    def rung(self) -> bool:
        """Whether it rang since it was last heard."""
        return self._rung.is_set()

    def ring(self) -> None:
        """There is news."""
        self._rung.set()

    async def wait(self, timeout: float) -> bool:
        """Wait until it rings, or `timeout` seconds; whether it rang."""
        with anyio.move_on_after(timeout):
            await self._rung.wait()
        rang = self.rung
        self.hear()
        return rang

    def hear(self) -> None:
        """What rang until now is known."""
        if self._rung.is_set():
            self._rung = anyio.Event()
