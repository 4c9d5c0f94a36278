"""python -m examples.demo: a producer and two nodes deliver mails; then the database is asked how it went."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeAlias

import anyio
import asyncpg
from rich.console import Console

from examples.demo import checks, mails
from examples.demo.mails import MAILS, MailQueuetopia
from examples.demo.view import Picture, View, view_on
from pgqueuetopia import embedded, migrate

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LIMIT = 120
LOOK = 0.08
PAUSE = 1.5
LEAVE_LIMIT = 40
PICTURE = """
select
  count(*) as created,
  count(*) filter (where s.outcome = 'succeeded') as done,
  (select count(*) from demo.deliveries d where not d.delivered) as failed,
  count(distinct s.queue) filter (where s.done_at is null) as pending,
  count(distinct s.queue) filter (where s.state = 'executing') as running,
  count(distinct s.queue) filter (where s.state = 'retrying') as blocked
from pgqueuetopia.job_states s
"""
FACTS = """
select
  (select count(*) from pgqueuetopia.jobs where outcome = 'succeeded') as delivered,
  (select count(*) from demo.deliveries where not delivered) as failed,
  (select count(distinct queue) from demo.deliveries where not delivered) as blocked,
  array(select count(*)::int from demo.deliveries group by node order by 1) as by_node
"""
RECORD_PAUSE = "insert into demo.pauses (since, until) values ($1, $2)"


def main(arguments: Sequence[str]) -> int:
    """Play the part that is named, or without a name conduct the whole."""
    match arguments:
        case []:
            return _conduct_or_leave(Console())
        case ["producer"]:
            anyio.run(mails.produce)
        case ["node"]:
            anyio.run(mails.deliver)
        case _:
            sys.stderr.write("usage: python -m examples.demo\n")
            return 2
    return 0


def _conduct_or_leave(console: Console) -> int:
    try:
        return conduct(console)
    except KeyboardInterrupt:
        console.print("Left.")
        return 130


def conduct(console: Console) -> int:
    """Start a PostgreSQL in a new directory, play the demo on it, and leave nothing behind."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pgqueuetopia-demo-", dir="/tmp") as folder:
        try:
            server = embedded.start(Path(folder) / "server")
        except embedded.EmbeddedUnavailable as error:
            console.print(f"[red]{error}")
            return 1
        with server:
            os.environ["PGQUEUETOPIA_DSN"] = server.dsn
            if migrate.main(["up"]) != 0:
                return 1
            return anyio.run(Demo(console, server.dsn, Path(folder), began).run)


class Demo:
    """The conductor: it starts the processes, pauses them half way, and has the outcome checked."""

    def __init__(self, console: Console, dsn: str, folder: Path, began: float) -> None:
        self._console = console
        self._dsn = dsn
        self._folder = folder
        self._began = began
        self._mails = MailQueuetopia()
        self._half_way = anyio.Event()
        self._paused = False

    async def run(self) -> int:
        """The exit code: 0 if every promise was kept."""
        async with self._connected() as connection:
            await connection.execute(mails.TABLES)
            all_went_well = await self._deliver(connection)
            await self._tell_facts(connection)
            kept = self._tell_promises(await checks.broken(connection))
        await self._mails.close()
        return 0 if all_went_well and kept else 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = await asyncpg.connect(self._dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def _deliver(self, connection: Connection) -> bool:
        self._say(f"{MAILS} mails over {mails.QUEUES} queues: one producer, two nodes, one pause.")
        with (
            view_on(self._console) as view,
            _process(self._folder / "node-1.log", "node") as first,
            _process(self._folder / "node-2.log", "node") as second,
            _process(self._folder / "producer.log", "producer") as producer,
        ):
            processes = [first, second, producer]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pause_half_way, name="pause half way")
                with anyio.move_on_after(LIMIT):
                    await self._watch(processes, connection, view)
                tasks.cancel_scope.cancel()
        self._report(processes)
        return all(process.returncode == 0 for process in processes)

    async def _watch(
        self, processes: list[subprocess.Popen[bytes]], connection: Connection, view: View
    ) -> None:
        """Show how it goes, until all mails are delivered or a process has failed."""
        while all(process.poll() in (None, 0) for process in processes):
            picture = await self._picture(connection)
            view.show(picture)
            if picture.done == MAILS:
                return
            if picture.done >= MAILS // 2:
                self._half_way.set()
            await anyio.sleep(LOOK)

    async def _picture(self, connection: Connection) -> Picture:
        [row] = await connection.fetch(PICTURE)
        return Picture(
            created=row["created"],
            done=row["done"],
            failed=row["failed"],
            waiting=row["pending"] - row["running"] - row["blocked"],
            running=row["running"],
            blocked=row["blocked"],
            paused=self._paused,
        )

    async def _pause_half_way(self) -> None:
        async with self._connected() as connection:
            await self._half_way.wait()
            await self._mails.suspend()
            since, self._paused = time.monotonic(), True
            await anyio.sleep(PAUSE)
            await connection.execute(RECORD_PAUSE, since, time.monotonic())
            await self._mails.resume()
            self._paused = False

    def _report(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Say what a process that failed has printed last."""
        for process, name in zip(processes, ("node-1", "node-2", "producer"), strict=True):
            if process.returncode != 0:
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                self._say(f"{name} ended with {process.returncode}:\n{log[-2_000:]}")

    async def _tell_facts(self, connection: Connection) -> None:
        [facts] = await connection.fetch(FACTS)
        nodes = " and ".join(str(count) for count in facts["by_node"])
        self._say(
            f"{facts['delivered']} mails delivered; {facts['failed']} deliveries failed and held up "
            f"{facts['blocked']} queues; {mails.SCHEDULED} were scheduled; the nodes made {nodes} deliveries."
        )

    def _tell_promises(self, broken: dict[str, list[asyncpg.Record]]) -> bool:
        for promise, culprits in broken.items():
            if culprits:
                jobs = ", ".join(f"{row['job']} of {row['queue']}" for row in culprits[:5])
                self._say(f"✗ {promise}: NO, not so for {len(culprits)}, first {jobs}", style="bold red")
            else:
                self._say(f"✓ {promise}", style="green")
        self._say(f"{time.monotonic() - self._began:.1f} s in all, PostgreSQL's first start included.")
        return not any(broken.values())

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _process(log: Path, role: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the demo, told to leave at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", role],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LEAVE_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
