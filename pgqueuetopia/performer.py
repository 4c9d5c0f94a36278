"""The contract that a user's code fulfils to perform jobs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ValidationError

from pgqueuetopia.backoff import doubling
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job
from pgqueuetopia.outcome import Failure

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Action:
    """A performer's method for an action: its name, its parameter's model, what it takes in which order."""

    method: str
    model: type[BaseModel] | None
    takes: tuple[str, ...]


def action(name: str) -> Callable[[Method], Method]:
    """Register a Performer's method for jobs with this action.

    The method takes a pydantic model and the Job, in either order, one of them or nothing: by their
    annotations, the Job by the name `job`, too. With a model create_job refuses params that the model
    refuses. Plain `def` methods run in a thread.
    """

    def mark(method: Method) -> Method:
        method.__action__ = name  # type: ignore[attr-defined]  # a mark, read by Performer below
        return method

    return mark


def _model_faults(model: type[BaseModel], params: object) -> list[str]:
    try:
        model.model_validate(params)
    except ValidationError as error:
        return [
            f"{'.'.join(('params', *map(str, fault['loc'])))}: {fault['msg']}" for fault in error.errors()
        ]
    return []


def _actions_of(performer: "type[BasePerformer]") -> dict[str, Action]:
    """Its own, and those of its bases, a mixin's too, as it has overridden them."""
    attributes = {
        member.__action__: attribute
        for base in reversed(performer.__mro__)
        for attribute, member in vars(base).items()
        if hasattr(member, "__action__")
    }
    return {name: _action(performer, attribute) for name, attribute in attributes.items()}


def _action(performer: "type[BasePerformer]", attribute: str) -> Action:
    method = getattr(performer, attribute)
    hints = get_type_hints(method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    takes = [_use_of(one, hints.get(one.name), performer._has_state) for one in parameters]
    if None in takes or len(set(takes)) < len(takes):
        raise Misconfigured(
            f"{performer.__name__}.{attribute}: an action takes one pydantic model and job: Job, "
            "in either order, one of them, or nothing; a Worker's takes state, too. Each by its position."
        )
    models = [hints[one.name] for one, use in zip(parameters, takes, strict=True) if use == "model"]
    return Action(attribute, models[0] if models else None, tuple(use for use in takes if use))


def _use_of(parameter: inspect.Parameter, hint: object, has_state: bool) -> str | None:
    """What a parameter is for, by its annotation and its name; None where it is for nothing that we have."""
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        return None
    if has_state and parameter.name == "state":
        return "state"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "model"
    return "job" if hint is Job or parameter.name == "job" else None


class BasePerformer:
    """What performers and workers have in common: actions, and what follows a failure."""

    actions: ClassVar[Mapping[str, Action]] = {}
    _has_state: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.actions = _actions_of(cls)

    def perform(self, *args: Any, **kwargs: Any) -> Any:
        """Perform one job for which there is no action."""
        name = type(self).__name__
        raise Misconfigured(f"{name} has no perform(job) and no @action({args[0].action!r})")

    def backoff(self, job: Job) -> timedelta:
        """How long this job waits after its failed attempt number `job.attempts` (1 for the first).

        By default 2, 3, 5, 9, 17, 33 s and so on, at most the job's max_backoff (PgQueuetopia).
        """
        return doubling(job.attempts - 1, job.max_backoff)

    async def handle_failed_job(self, job: Job) -> None:
        """Called after each failure has been written, with the job as it is then (Queuetopia)."""

    async def after_async(self, job: Job, handle: Any) -> Any:
        """What a job comes to that has returned Launched(handle), once the handle has ended (JobQueue).

        Discard(reason) gives the job up, Err(reason) is a failure, anything else success. Unless it is
        overridden: a process's exit code other than 0 and what an awaitable raises are failures, its value
        is the result.
        """

    @property
    def handles_failures(self) -> bool:
        """Whether failures are to be told to `after_failure`."""
        return type(self).handle_failed_job is not BasePerformer.handle_failed_job

    async def after_failure(self, job: Job, failure: Failure) -> None:
        """A failure has been written."""
        await self.handle_failed_job(job)

    def faults(self, name: str, params: object) -> list[str]:
        """Why this performer would not take a job with this action and these params."""
        if not self.actions:
            return []
        if name in self.actions:
            model = self.actions[name].model
            return [] if model is None else _model_faults(model, params)
        if type(self).perform is not BasePerformer.perform:
            return []
        known = ", ".join(sorted(self.actions))
        return [f"action {name!r} is unknown; this performer has: {known}"]

    def bound(self, job: Job) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The method for a job, and its arguments."""
        found = self.actions.get(job.action)
        if found is None:
            return self.perform, (job,)
        return getattr(self, found.method), tuple(self._argument(use, found, job) for use in found.takes)

    def _argument(self, use: str, action: Action, job: Job) -> Any:
        if use == "model" and action.model is not None:
            return action.model.model_validate(job.params)
        return job


def can_perform(performer: BasePerformer | type[BasePerformer]) -> bool:
    """Whether it has a `perform` of its own, or an action."""
    perform = getattr(performer.perform, "__func__", performer.perform)
    return bool(performer.actions) or perform is not BasePerformer.perform


class Performer(BasePerformer):
    """Subclass it and implement `perform`, or methods marked with `@action`.

    Returning None, Ok(value), any other JSON value or a pydantic model is success; Err(message) or a raise
    is failure; Snooze(delay) asks to be called again later; Launched(handle) says that the job goes on until
    the handle ends. An `async def` runs on the event loop; a plain `def` runs in a thread, which nothing can
    stop: its queue waits until it returns, however late.
    """

    if TYPE_CHECKING:

        def perform(self, job: Job) -> Any:
            """Perform one job: may be `async def`. Called for every job of a performer without actions."""
