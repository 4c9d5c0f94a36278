"""The mails: who creates them, who delivers them, and what is written down about each delivery."""

import random
import time
from collections.abc import Iterator
from datetime import timedelta

import anyio

from pgqueuetopia import Err, Job, NewJob, Performer, Queuetopia, Repo

MAILS = 2_000
QUEUES = 50
SCHEDULED = 200
# Both nodes together run fewer mails at once than there are queues, so that some wait.
CONCURRENCY = 20
# In seconds.
DELIVERY = (0.04, 0.14)
BATCH_PAUSE = 0.03
AHEAD = (1.0, 2.5)

# Times are those of the machine's monotonic clock, which all of its processes share.
TABLES = """
create schema demo;
create table demo.deliveries (
  job bigint not null,
  queue text not null,
  attempt integer not null,
  node text not null,
  started double precision not null,
  ended double precision not null,
  delivered boolean not null
);
create table demo.pauses (since double precision not null, until double precision not null);
"""
RECORD = """
insert into demo.deliveries (job, queue, attempt, node, started, ended, delivered)
values ($1, $2, $3, $4, $5, $6, $7)
"""


class MailPerformer(Performer):
    """Pretends to send a mail; the first attempts of some fail."""

    async def perform(self, job: Job) -> object:
        started = time.monotonic()
        await anyio.sleep(random.uniform(*DELIVERY))
        delivered = job.attempts > job.params["failures"]
        ended = time.monotonic()
        async with MailQueuetopia.repo.connection() as connection:
            await connection.execute(
                RECORD, job.id, job.queue, job.attempts, job.attempted_by, started, ended, delivered
            )
        return None if delivered else Err("the mail server is busy")

    def backoff(self, job: Job) -> timedelta:
        return timedelta(seconds=0.2)


class MailQueuetopia(Queuetopia):
    """The mails of the demo, on the database that $PGQUEUETOPIA_DSN names."""

    repo = Repo()
    performer = MailPerformer()
    concurrency = CONCURRENCY


async def produce() -> None:
    """Create the mails, batch by batch; last those that are scheduled."""
    mails = MailQueuetopia()
    for batch in _batches():
        await mails.create_jobs(batch)
        await anyio.sleep(BATCH_PAUSE)
    await mails.create_jobs([_mail(n, timedelta(seconds=random.uniform(*AHEAD))) for n in range(SCHEDULED)])
    await mails.close()


async def deliver() -> None:
    """Run a node until it is told to stop."""
    mails = MailQueuetopia()
    await mails.run()
    await mails.close()


def _batches() -> Iterator[list[NewJob]]:
    """One mail for each queue, again and again."""
    for start in range(SCHEDULED, MAILS, QUEUES):
        yield [_mail(n) for n in range(start, min(start + QUEUES, MAILS))]


def _mail(number: int, scheduled_at: timedelta | None = None) -> NewJob:
    failures = random.choice((1, 2, 3)) if random.random() < 0.04 else 0
    params = {"to": f"reader{number}@example.com", "failures": failures}
    return NewJob(f"mails_{number % QUEUES + 1}", "send_mail", params, scheduled_at)
