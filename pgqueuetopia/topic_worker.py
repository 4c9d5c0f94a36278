"""Workers of topics: one class for each kind of work (JobQueue)."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from pgqueuetopia.job import Job
from pgqueuetopia.outcome import Failure
from pgqueuetopia.performer import BasePerformer
from pgqueuetopia.topics import is_declared


class Creator(Protocol):
    """Whoever creates jobs: a Queuetopia."""

    @property
    def create_job(self) -> Callable[..., Awaitable[Job]]:
        """Stores a job."""


@dataclass(frozen=True, slots=True)
class TopicJob:
    """A job of a TopicWorker that is not stored yet."""

    topic: str
    action: str
    args: Mapping[str, Any] | BaseModel
    options: Mapping[str, Any]

    async def insert(self, app: Creator, **options: Any) -> Job:
        """Store it, as create_job does, with all its options. Raises what create_job raises."""
        return await app.create_job(self.topic, self.action, self.args, **{**self.options, **options})


class TopicWorker(BasePerformer):
    """Performs the jobs of a topic that were made by its `new`; their action is the class's name.

    `class Transcode(TopicWorker, topic="transcode", max_attempts=20, priority=0)`: `topic` names a Topic
    that was declared before; the others are what its jobs have, unless `new` says otherwise. Raises
    TypeError when the class is made, for a topic that is missing or unknown and for a second class of the
    same name.
    """

    topic: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, *, topic: str | None = None, **options: Any) -> None:
        super().__init_subclass__()
        cls.topic = _known(cls, topic if topic is not None else getattr(cls, "topic", None))
        if unknown := sorted(options.keys() - {"max_attempts", "priority", "timeout", "max_backoff"}):
            raise TypeError(f"{cls.__name__} has unknown options: {', '.join(unknown)}")
        cls.options = {**cls.options, **options}
        _register(cls)

    async def perform(self, job: Job, args: dict[str, Any]) -> Any:
        """Perform one job: what a Performer may return, it may. By default nothing is done, with success."""

    async def after_error(self, job: Job, reason: object) -> None:
        """Called after each failure was written, the last too, with the exception or Err's reason."""

    @classmethod
    def new(cls, args: Mapping[str, Any] | BaseModel | None = None, **options: Any) -> TopicJob:
        """A job for this worker; the options are create_job's, and go before the class's own."""
        return TopicJob(cls.topic, cls.__name__, args if args is not None else {}, {**cls.options, **options})

    def bound(self, job: Job) -> tuple[Any, tuple[Any, ...]]:
        """perform, and its arguments."""
        return self.perform, (job, job.params)

    @property
    def handles_failures(self) -> bool:
        """Whether failures are to be told to `after_failure`."""
        return type(self).after_error is not TopicWorker.after_error

    async def after_failure(self, job: Job, failure: Failure) -> None:
        """A failure has been written."""
        await self.after_error(job, failure.message if failure.exception is None else failure.exception)


def worker_of(topic: str, action: str) -> type[TopicWorker] | None:
    """The class whose jobs these are; None where they are a performer's."""
    return _WORKERS.get((topic, action))


_WORKERS: dict[tuple[str, str], type[TopicWorker]] = {}


def _known(worker: type[TopicWorker], topic: object) -> str:
    if topic is None:
        raise TypeError(f'{worker.__name__} needs a topic: class {worker.__name__}(TopicWorker, topic="...")')
    if not isinstance(topic, str) or not is_declared(topic):
        raise TypeError(f"{worker.__name__}: there is no Topic({topic!r}); declare it before its workers.")
    return topic


def _register(worker: type[TopicWorker]) -> None:
    other = _WORKERS.setdefault((worker.topic, worker.__name__), worker)
    if (other.__module__, other.__qualname__) != (worker.__module__, worker.__qualname__):
        raise TypeError(
            f"topic {worker.topic!r} has a worker {worker.__name__} already: {inspect.getmodule(other)}"
        )
    _WORKERS[worker.topic, worker.__name__] = worker
