"""pgqueuetopia: jobs in strict order per queue, on nothing but PostgreSQL."""

from pgqueuetopia.db.configs import Config
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import (
    AccessDenied,
    ConfigNotFound,
    DatabaseRefused,
    DatabaseUnavailable,
    InvalidConfig,
    InvalidJob,
    JobNotFound,
    MigrationFailed,
    Misconfigured,
    NoReply,
    NotMigrated,
    QueuetopiaError,
)
from pgqueuetopia.job import Job, NewJob, Page
from pgqueuetopia.modes import Abandon, ExponentialRetry, Log, Move, Retry, Success
from pgqueuetopia.outcome import Err, Failure, Moved, Ok, Retrying, Settlement, Snooze
from pgqueuetopia.performer import Performer, action
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.settings import Settings
from pgqueuetopia.status import BlockedQueue, Cancelled, Status

__all__ = [
    "Abandon",
    "AccessDenied",
    "BlockedQueue",
    "Cancelled",
    "Config",
    "ConfigNotFound",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "Err",
    "ExponentialRetry",
    "Failure",
    "InvalidConfig",
    "InvalidJob",
    "Job",
    "JobNotFound",
    "Log",
    "MigrationFailed",
    "Misconfigured",
    "Move",
    "Moved",
    "NewJob",
    "NoReply",
    "NotMigrated",
    "Ok",
    "Page",
    "Performer",
    "Queuetopia",
    "QueuetopiaError",
    "Repo",
    "Retry",
    "Retrying",
    "Settings",
    "Settlement",
    "Snooze",
    "Status",
    "Success",
    "action",
]
