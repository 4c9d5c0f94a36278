"""A node as a process of its own: python -m tests.acceptance.node DSN HISTORY, until it is told to stop."""

import argparse
import asyncio
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from pgqueuetopia import Err, Job, Launched, Performer, Queuetopia, Repo, Topic
from pgqueuetopia.cli import runtime
from tests.acceptance.history import DONE, INTERRUPTED
from tests.support import eventually

SCOPE = "Acceptance"


class Journal:
    """The runs of this process, one line for a start and one for an end; a written line survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._node = path.stem

    @contextmanager
    def run(self, job: Job) -> Iterator[None]:
        start = time.monotonic()
        self._write(
            queue=job.queue,
            job=job.id,
            attempt=job.attempts,
            claim=job.claim,
            node=self._node,
            start=start,
        )
        how = INTERRUPTED
        try:
            yield
            how = "failed" if _fails(job) else DONE
        finally:
            self._write(job=job.id, claim=job.claim, end=time.monotonic(), how=how)

    def _write(self, **event: object) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")


class Journalist(Performer):
    """Works for params["seconds"], and until the file params["until"] is there; fails so many "failures"."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def perform(self, job: Job) -> object:
        with self._journal.run(job):
            await anyio.sleep(job.params.get("seconds", 0))
            if "until" in job.params:
                await eventually(Path(job.params["until"]).exists, within=math.inf)
            if "launch" in job.params:
                return Launched(await asyncio.create_subprocess_exec(*job.params["launch"]))
            return Err("not yet") if _fails(job) else None


class ThreadedJournalist(Performer):
    """The same, in a thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def perform(self, job: Job) -> None:
        with self._journal.run(job):
            time.sleep(job.params.get("seconds", 0))


def _fails(job: Job) -> bool:
    return job.attempts <= int(job.params.get("failures", 0))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dsn")
    parser.add_argument("history", type=Path)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--instances", type=int, default=1, help="in this process")
    parser.add_argument("--shutdown", type=float, default=30)
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--session-dsn")
    parser.add_argument("--pooled", action="store_true", help="the DSN is that of a pooler")
    parser.add_argument("--topic", default="", help="name=parallelism")
    parser.add_argument("--session-timeout", type=float, default=15)
    parser.add_argument("--tuned", action="store_true", help="as pgqueuetopia run does")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> None:
    journal = Journal(given.history)
    async with anyio.create_task_group() as tasks:
        for _ in range(given.instances):
            tasks.start_soon(run_one, given, journal)


async def run_one(given: argparse.Namespace, journal: Journal) -> None:
    app = Queuetopia(
        repo=Repo(
            given.dsn,
            session_dsn=given.session_dsn,
            statement_cache_size=0 if given.pooled else 100,
        ),
        performer=ThreadedJournalist(journal) if given.threads else Journalist(journal),
        scope=SCOPE,
        concurrency=given.concurrency,
        prefetch=given.prefetch,
        shutdown=given.shutdown,
        session_timeout=given.session_timeout,
        topics=[Topic(name, int(number)) for name, _, number in [given.topic.partition("=")] if name],
    )
    await app.run()
    await app.close()


if __name__ == "__main__":
    arguments = _arguments()
    run = runtime.run if arguments.tuned else anyio.run
    run(main, arguments)
