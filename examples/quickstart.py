import asyncio
from contextlib import ExitStack

from pgqueuetopia import Job, Performer, Queuetopia, Repo, embedded, migrate


class MailPerformer(Performer):
    async def perform(self, job: Job) -> None:
        print(f"{job.queue}: mail to {job.params['to']}")


class MailQueuetopia(Queuetopia):
    performer = MailPerformer()


async def main(dsn: str) -> None:
    mails = MailQueuetopia(repo=Repo(dsn))
    for name in ("ada", "grace", "edsger"):
        await mails.create_job("mails_1", "send_mail", {"to": f"{name}@example.com"})
    async with mails.running():  # a node; it may as well run in other processes, as many as you like
        while (await mails.status()).count:
            await asyncio.sleep(0.01)
    await mails.close()


with ExitStack() as stack:  # $PGQUEUETOPIA_DSN, or else a PostgreSQL of its own
    dsn = Repo().dsn or stack.enter_context(embedded.start()).dsn
    migrate.main(["--dsn", dsn])
    asyncio.run(main(dsn))
