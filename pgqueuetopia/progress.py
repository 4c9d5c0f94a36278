"""How far a job has come, told from within it."""

from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any

import structlog

log = structlog.get_logger("pgqueuetopia")

Report = Callable[[Any], None]

# Who wants to know, in the task or thread of each run.
reporter: ContextVar[Report] = ContextVar("pgqueuetopia_progress")


class Told:
    """Nothing is left to be waited for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def progress(value: Any) -> Told:
    """Tell how far the job has come that this task, or thread, performs: a JSON value or a model (Honeydew).

    `await progress("10/50")`, or without await in a plain function. It is written at most twice a second for
    a job, and the last one always; `status` and the command line show it. It never fails the job: what cannot
    be stored is logged and dropped, and so is what is told outside of a job.
    """
    report = reporter.get(None)
    if report is None:
        log.warning("progress_ignored", hint="no job is performed here")
    else:
        report(value)
    return Told()
