"""Every error that pgqueuetopia raises, named by who must act.

QueuetopiaError
├── InvalidJob            the caller: what create_job was given
├── InvalidConfig         the caller: a config's key or value
├── ConfigNotFound        the caller: no such config
├── JobNotFound           the caller: no such job, or not one that the call applies to
├── NoReply               the caller: the job was not created with reply=True
├── Misconfigured         the developer: how a Queuetopia is set up
├── NotMigrated           the operator: run the migrations
├── MigrationFailed       the operator: the migrations cannot be run
├── AccessDenied          the operator: the role lacks a privilege
├── DatabaseUnavailable   the operator: the database cannot be reached
├── WorkerFailed          the developer: a worker process of run_process gave no answer
└── DatabaseRefused       the operator: the database refused a statement
"""

from collections.abc import Sequence


class QueuetopiaError(Exception):
    """The root of all errors that pgqueuetopia raises."""


class InvalidJob(QueuetopiaError):
    """What was given to create_job cannot be stored; `faults` lists everything that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class InvalidConfig(QueuetopiaError):
    """A config's key or value is refused; nothing was stored."""


class ConfigNotFound(QueuetopiaError):
    """There is no config of that key."""


class JobNotFound(QueuetopiaError):
    """There is no such job in this scope, or it is not in a state that the call applies to."""


class NoReply(QueuetopiaError):
    """A job that was not created with reply=True has no replies."""


class Misconfigured(QueuetopiaError):
    """A Queuetopia, a Repo or a Performer is set up in a way that cannot work."""


class NotMigrated(QueuetopiaError):
    """The database lacks the tables, or has those of another version."""

    def __init__(self, detail: str = "The tables of pgqueuetopia are missing.") -> None:
        super().__init__(f"{detail} Run: python -m pgqueuetopia.migrate")


class MigrationFailed(QueuetopiaError):
    """The migrations cannot be applied; nothing was left half done."""


class AccessDenied(QueuetopiaError):
    """The database role lacks a privilege; docs/operations.md lists the grants."""


class DatabaseUnavailable(QueuetopiaError):
    """The database cannot be reached, or the connection was lost."""


class DatabaseRefused(QueuetopiaError):
    """The database refused a statement."""


class WorkerFailed(QueuetopiaError):
    """A worker process gave no answer: it was killed, or what it returned or raised cannot be sent."""
