"""Nodes as real processes, started, killed and asked what they did."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import asyncpg

from pgqueuetopia import Queuetopia
from tests.acceptance.history import History, Run, read
from tests.support import eventually

LEAVE_LIMIT = 30
ALL_DONE = "select not exists (select from pgqueuetopia.jobs where done_at is null)"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class NodeProcess:
    """One node; its name is that of the file in which it writes down what it does."""

    def __init__(
        self, dsn: str, folder: Path, name: str, options: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.journal = folder / f"{name}.jsonl"
        self.journal.touch()
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.node", dsn, str(self.journal), *options],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def runs(self) -> list[Run]:
        self.expect_alive()
        return read([self.journal])

    @property
    def running(self) -> list[Run]:
        return [run for run in self.runs if run.end is None]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def expect_alive(self) -> None:
        """Fail with what the node has printed if it has ended, and not by a signal of ours."""
        code = self._process.poll()
        assert code in (None, 0, -signal.SIGKILL), f"{self.name} ended with {code}:\n{self.log}"

    def terminate(self) -> None:
        self._process.terminate()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once the node has left."""
        return self._process.wait(LEAVE_LIMIT)

    def kill(self) -> float:
        """kill -9; returns the moment before."""
        killed_at = time.monotonic()
        self._process.kill()
        self._process.wait(LEAVE_LIMIT)
        return killed_at


class Cluster:
    """The nodes of a test, and those that were killed."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self.nodes: list[NodeProcess] = []
        self.kills: dict[str, float] = {}

    def start(self, *options: str, environment: Mapping[str, str] = MappingProxyType({})) -> NodeProcess:
        node = NodeProcess(self._dsn, self._folder, f"node-{len(self.nodes) + 1}", options, environment)
        self.nodes.append(node)
        return node

    def kill(self, node: NodeProcess) -> None:
        self.kills[node.name] = node.kill()

    def kill_all(self) -> None:
        for node in self.nodes:
            node.kill()

    @property
    def runs(self) -> list[Run]:
        for node in self.nodes:
            node.expect_alive()
        return read(node.journal for node in self.nodes)

    def history(self, pauses: Sequence[tuple[float, float]] = ()) -> History:
        return History(self.runs, self.kills, pauses)


async def until_nodes_are_up(app: Queuetopia, count: int) -> None:
    """Wait until the database knows of so many nodes."""

    async def are_up() -> bool:
        return len((await app.status()).nodes) == count

    await eventually(are_up)


async def until_all_is_done(connection: Connection, *, within: float) -> None:
    """Wait until no job is pending."""

    async def is_done() -> bool:
        return bool(await connection.fetchval(ALL_DONE))

    await eventually(is_done, within=within)
