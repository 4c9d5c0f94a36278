"""The workers of one node: each with a state of its own, replaced when its job fails."""

import asyncio
import copy
import inspect
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio
import structlog

from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import as_timedelta
from pgqueuetopia.workers import Worker, Workers

log = structlog.get_logger("pgqueuetopia")

# In seconds: how long a state that is an async context manager may take to be left.
LEAVE_TIMEOUT = 10.0


class Post:
    """The place of one worker; `worker` is who fills it now, None while nobody can."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.spent = anyio.Event()

    def replace(self) -> None:
        """Its worker has failed."""
        self.worker = None
        self.spent.set()


class Crew:
    """Fills its posts, and says who takes the next job; `wake` is called when a worker has become ready."""

    def __init__(self, workers: Workers, wake: Callable[[], None]) -> None:
        self._workers = workers
        self._wake = wake
        self._free = copy.deepcopy(workers.dispatcher)
        self._init_retry = as_timedelta(workers.init_retry).total_seconds()
        self._posts = [Post(number) for number in range(1, workers.num + 1)]

    def count_free(self) -> int:
        """How many workers are ready and have no job."""
        return len(self._free)

    def assign(self) -> Post | None:
        """The post that takes the next job; None where none is free. Raises what the dispatcher raises."""
        found = self._free.check_out() if len(self._free) else None
        if not isinstance(found, Post | None):
            raise Misconfigured(f"check_out() of {type(self._free).__name__} returned no worker: {found!r}")
        return found

    def release(self, post: Post, *, keep: bool) -> None:
        """Its job has ended; a worker that is not to be kept is replaced."""
        if keep:
            self._free.check_in(post)
        else:
            self._free.remove(post)
            post.replace()

    async def run(self) -> None:
        """Keep the posts filled until cancelled; the states are left in order."""
        async with anyio.create_task_group() as tasks:
            for post in self._posts:
                tasks.start_soon(self._fill_for_ever, post, name=f"worker {post.number}")

    async def _fill_for_ever(self, post: Post) -> None:
        while True:
            post.spent = anyio.Event()
            try:
                worker = self._workers.worker()
            except Exception as error:
                _tell("worker_init_failed", self._workers.worker, error)
                await anyio.sleep(self._init_retry)
            else:
                await self._fill(post, worker)

    async def _fill(self, post: Post, worker: Worker) -> None:
        """Have a worker at its post until a job of its has failed."""
        async with _kept(worker) as states:
            if await self._initialized(worker, states):
                post.worker = worker
                self._free.check_in(post)
                self._wake()
                await post.spent.wait()

    async def _initialized(self, worker: Worker, states: AsyncExitStack) -> bool:
        """Call init; what it raises keeps this worker out alone. False when it is to be tried again."""
        again = anyio.Event()
        worker.reinitialize = again.set
        try:
            made: object = worker.init(*self._workers.args)
            worker.state = await made if inspect.iscoroutine(made) else made
            if isinstance(worker.state, AbstractAsyncContextManager):
                worker.state = await states.enter_async_context(worker.state)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # Or init has awaited what somebody else has cancelled: its post would be empty for good.
            _tell("worker_init_failed", type(worker), error)
            await self._after_failed_init(worker, again)
            return False
        return True

    async def _after_failed_init(self, worker: Worker, again: anyio.Event) -> None:
        failed_init = getattr(worker, "failed_init", None) or getattr(worker, "init_failed", None)
        if failed_init is None:
            await anyio.sleep(self._init_retry)
            return
        try:
            told = failed_init()
            if inspect.isawaitable(told):
                await told
        except Exception as error:
            _tell("failed_init_raised", type(worker), error)
        await again.wait()


@asynccontextmanager
async def _kept(worker: Worker) -> AsyncIterator[AsyncExitStack]:
    """What a worker's state has opened is left in the end, even when its task is cancelled."""
    states = AsyncExitStack()
    try:
        yield states
    finally:
        try:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await states.aclose()
        except Exception as error:
            _tell("worker_state_not_left", type(worker), error)


def _tell(event: str, worker: type[Worker], error: BaseException) -> None:
    """Not by exc_info: with it structlog's console shows local values, and so the password of a DSN."""
    log.warning(event, worker=worker.__name__, exception="".join(traceback.format_exception(error)))
