"""pgqueuetopia: jobs in strict order per queue, on nothing but PostgreSQL."""

from pgqueuetopia.db.configs import Config
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.dispatching import LRU, MRU, Dispatcher, LRUNode
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
from pgqueuetopia.progress import progress
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.settings import Settings
from pgqueuetopia.status import BlockedQueue, Cancelled, Status
from pgqueuetopia.workers import Worker, Workers

__all__ = [
    "LRU",
    "MRU",
    "Abandon",
    "AccessDenied",
    "BlockedQueue",
    "Cancelled",
    "Config",
    "ConfigNotFound",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "Dispatcher",
    "Err",
    "ExponentialRetry",
    "Failure",
    "InvalidConfig",
    "InvalidJob",
    "Job",
    "JobNotFound",
    "LRUNode",
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
    "Worker",
    "Workers",
    "action",
    "progress",
]
