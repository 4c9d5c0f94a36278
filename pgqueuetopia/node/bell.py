"""The bell that wakes the scheduler; rings coalesce."""

import asyncio


class Bell:
    """Rung by whoever has news, from the event loop; heard once however often it rang.

    One task at a time waits for it, by a future and a timer: an event and a cancel scope take twice as long
    to call a node out of its sleep.
    """

    def __init__(self) -> None:
        self.rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """There is news."""
        self.rung = True
        _end(self._waiter)

    async def wait(self, timeout: float) -> bool:
        """Wait until it rings, or `timeout` seconds; whether it rang."""
        if not self.rung:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout, _end, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
        rang = self.rung
        self.hear()
        return rang

    def hear(self) -> None:
        """What rang until now is known."""
        self.rung = False


def _end(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
