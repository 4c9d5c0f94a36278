"""One run of a job, as long as it lasts: what may stop it, and why it was stopped."""

import asyncio
import math
from contextvars import Context, copy_context
from enum import Enum, auto

# In seconds: how long what is stopped may take to clean up before it is stopped again.
AGAIN = 5.0


class Stop(Enum):
    """Why a run was cancelled."""

    TIMED_OUT = auto()
    INTERRUPTED = auto()
    KILLED = auto()


class Run:
    """The task of one run, to be stopped by its timeout (see Timeouts) or by the node.

    It is cancelled once, as asyncio does it: what the performer awaits while it cleans up is not. (A cancel
    scope of anyio would interrupt that again and again, and costs five times as much.) What goes on for AGAIN
    seconds after that is cancelled again: anyio's processes are killed only then.
    """

    __slots__ = ("_again", "_cancels", "_context", "_task", "in_thread", "stopped")

    def __init__(self, task: "asyncio.Task[object]") -> None:
        self._task = task
        self._again: asyncio.TimerHandle | None = None
        self._cancels = 0
        self._context: Context | None = None
        self.stopped: Stop | None = None
        self.in_thread = False

    def begin(self) -> None:
        """The performer is called."""
        self._context = copy_context()

    @property
    def leaves_no_trace(self) -> bool:
        """Whether its task is as it was: not cancelled by anybody, and with the same context variables."""
        if self._cancels or self._task.cancelling():
            return False
        try:
            return self._context in (None, copy_context())
        except Exception:
            # There are values that cannot be compared.
            return False

    def stop(self, why: Stop) -> None:
        """Cancel the task; the first reason counts."""
        if self.stopped is None:
            self.stopped = why
            self._cancel()

    def _cancel(self) -> None:
        self._task.cancel()
        self._cancels += 1
        self._again = self._task.get_loop().call_later(AGAIN, self._cancel)

    def end(self) -> None:
        """It has ended: nothing stops it any longer."""
        if self._again is not None:
            self._again.cancel()
        for _ in range(self._cancels):
            self._task.uncancel()


class Timeouts:
    """Stops the runs that last too long. They share one timer, for most runs end long before theirs."""

    def __init__(self) -> None:
        self._due: dict[Run, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def add(self, run: Run, seconds: float) -> None:
        """Stop it if it has not ended by then, counted from the first time; 0: never."""
        if seconds:
            due = self._due.setdefault(run, asyncio.get_running_loop().time() + seconds)
            if due < self._rings_at:
                self._ring_at(due)

    def discard(self, run: Run) -> None:
        """It has ended."""
        self._due.pop(run, None)

    def _ring_at(self, time: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = time
        self._timer = asyncio.get_running_loop().call_at(time, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        now = asyncio.get_running_loop().time()
        for run in [run for run, due in self._due.items() if due <= now]:
            del self._due[run]
            run.stop(Stop.TIMED_OUT)
        if self._due:
            self._ring_at(min(self._due.values()))
