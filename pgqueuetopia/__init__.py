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
    WorkerFailed,
)
from pgqueuetopia.event import Event, EventKind
from pgqueuetopia.job import Job, NewJob, Page
from pgqueuetopia.modes import Abandon, ExponentialRetry, Log, Move, Retry, Success
from pgqueuetopia.node.process_run import run_process
from pgqueuetopia.outcome import Discard, Err, Failure, Launched, Moved, Ok, Retrying, Settlement, Snooze
from pgqueuetopia.performer import Performer, action
from pgqueuetopia.progress import progress
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.settings import Settings
from pgqueuetopia.status import BlockedQueue, Cancelled, Quantiles, Stats, Status, Utilisation
from pgqueuetopia.table.queue import TableQueue
from pgqueuetopia.table.status import TableStatus
from pgqueuetopia.table_operations import TableOperations
from pgqueuetopia.topic_worker import TopicJob, TopicWorker
from pgqueuetopia.topics import Topic
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
    "Discard",
    "Dispatcher",
    "Err",
    "Event",
    "EventKind",
    "ExponentialRetry",
    "Failure",
    "InvalidConfig",
    "InvalidJob",
    "Job",
    "JobNotFound",
    "LRUNode",
    "Launched",
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
    "Quantiles",
    "Queuetopia",
    "QueuetopiaError",
    "Repo",
    "Retry",
    "Retrying",
    "Settings",
    "Settlement",
    "Snooze",
    "Stats",
    "Status",
    "Success",
    "TableOperations",
    "TableQueue",
    "TableStatus",
    "Topic",
    "TopicJob",
    "TopicWorker",
    "Utilisation",
    "Worker",
    "WorkerFailed",
    "Workers",
    "action",
    "progress",
    "run_process",
]
