"""Workers with a state of their own, such as a connection (Honeydew): the contract, and how many."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from pgqueuetopia.dispatching import LRU, Dispatcher, check
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job, Seconds, count_faults, is_duration
from pgqueuetopia.performer import Action, BasePerformer, can_perform


class Worker(BasePerformer):
    """A performer of which a node has several, each with a state, and each with one job at a time.

    Subclass it and implement `perform(job, state)`, or `perform(job)` where there is no state, or `@action`
    methods, with a parameter `state` where they want it. A job that fails, or is stopped, costs its worker: a
    new one takes its place, with `init` called again. One that succeeds or snoozes keeps it.
    """

    state: Any = None
    _has_state: ClassVar[bool] = True
    _performs_with_state: ClassVar[bool] = True
    reinitialize: Callable[[], None]
    """Have `init` called again now, after it has failed: in failed_init, or later."""

    async def init(self, *args: Any) -> Any:
        """What `perform` gets as state, and must not change; `args` are those given to Workers.

        An async context manager is entered, its value is the state, and it is left when this worker goes.
        A worker whose init raises takes no job: init is called again after `init_retry` seconds, or, if
        there is a method `failed_init`, that is called instead, and then nothing until `reinitialize()`.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._performs_with_state = len(inspect.signature(cls.perform).parameters) > 2

    def bound(self, job: Job) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The method for a job, and its arguments, of perform the state last."""
        if job.action in self.actions or not self._performs_with_state:
            return super().bound(job)
        return self.perform, (job, self.state)

    def _argument(self, use: str, action: Action, job: Job) -> Any:
        return self.state if use == "state" else super()._argument(use, action, job)


@dataclass(frozen=True)
class Workers:
    """Several workers on each node, as a Queuetopia's performer; `args` go to each worker's init.

    `num` (10) jobs run at once on a node, and no more than its `concurrency`. A worker whose init has failed
    tries again after `init_retry` seconds (5). A node that leaves waits for `shutdown` seconds (10) for its
    workers, in place of the Queuetopia's own. `dispatcher`: which free worker comes next (LRU). Raises
    Misconfigured for bad arguments.
    """

    worker: type[Worker]
    args: Sequence[Any] = ()
    num: int = 10
    init_retry: Seconds = 5
    shutdown: Seconds = 10
    dispatcher: Dispatcher = field(default_factory=LRU)

    def faults(self, name: str, params: object) -> list[str]:
        """Why these workers would not take a job with this action and these params."""
        return self.template.faults(name, params)

    @cached_property
    def template(self) -> Worker:
        """A worker that performs nothing, and is asked for all that does not depend on a state."""
        return self.worker()

    def __post_init__(self) -> None:
        if faults := [*_worker_faults(self.worker), *self._faults(), *check(self.dispatcher)]:
            raise Misconfigured(f"Workers: {'; '.join(faults)}")

    def _faults(self) -> Iterator[str]:
        args: object = self.args
        if not isinstance(args, list | tuple):
            yield "args must be a list or a tuple of init's arguments"
        yield from count_faults("num", self.num)
        for name in ("init_retry", "shutdown"):
            if not is_duration(getattr(self, name)):
                yield f"{name} must be seconds or a timedelta, and not negative"


def _worker_faults(worker: object) -> Iterator[str]:
    if not inspect.isclass(worker) or not issubclass(worker, Worker):
        yield f"the first argument must be a subclass of Worker, not {worker!r}"
    elif not can_perform(worker):
        yield f"{worker.__name__} needs perform(job, state), or methods marked with @action"


def performer_faults(performer: object) -> Iterator[str]:
    """Why nothing could be performed by what was given as a performer; None is nobody, and no fault."""
    name = performer.__name__ if inspect.isclass(performer) else type(performer).__name__
    if isinstance(performer, Worker) or (inspect.isclass(performer) and issubclass(performer, Worker)):
        yield f"performer must be Workers, and not one Worker: performer = Workers({name})"
    elif inspect.isclass(performer):
        yield f"performer must be an instance, not a class: performer = {name}()"
    elif isinstance(performer, BasePerformer):
        if not can_perform(performer):
            yield f"performer {name} needs perform(job), or methods marked with @action"
    elif not isinstance(performer, Workers | None):
        yield f"performer must be a Performer or Workers, not {name}"
