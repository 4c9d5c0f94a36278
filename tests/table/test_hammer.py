"""Many inserts, and nodes that are killed all the time: every row runs, and none twice at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import asyncpg
import pytest

from tests.acceptance.history import History, Run, lost, overlaps, read, reruns
from tests.support import eventually
from tests.table.world import World

# 20,000 in CI, by $HAMMER_ROWS.
ROWS, CONNECTIONS, NODES = int(os.environ.get("HAMMER_ROWS", "10000")), 8, 3
EVERY = 3.0 * ROWS / 20_000
# How long the inserts take, at least: there must be something to do when a node is killed.
SECONDS = 15.0 * ROWS / 20_000
ALL_DONE = "select not exists (select from photos where pgqueuetopia_classify_lock is not null)"


class Nodes:
    """Processes, the one that runs longest killed first, and replaced."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._journals: list[Path] = []
        self.kills: dict[str, float] = {}

    def start(self) -> None:
        name = f"node-{len(self._journals) + 1}"
        journal = self._folder / f"{name}.jsonl"
        journal.touch()
        command = [sys.executable, "-m", "tests.table.node", self._dsn, str(journal)]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running.append((name, process))
        self._journals.append(journal)

    async def until_the_oldest_is_at_work(self) -> None:
        """It is left stopped in the middle of a run, if it comes to one within a second."""
        name, process = self._running[0]
        with anyio.move_on_after(1):
            while True:
                process.send_signal(signal.SIGSTOP)
                await anyio.sleep(0.002)
                if any(run.end is None for run in read([self._folder / f"{name}.jsonl"])):
                    return
                process.send_signal(signal.SIGCONT)
                await anyio.sleep(0.002)

    def kill_the_oldest(self) -> None:
        name, process = self._running.pop(0)
        assert process.poll() is None, (self._folder / f"{name}.log").read_text()
        self.kills[name] = time.monotonic()
        process.kill()
        process.wait(10)

    @property
    def history(self) -> History:
        """Each row as a queue of its own: what must not happen in a queue must not happen to it."""
        runs: list[Run] = [replace(run, queue=str(run.job)) for run in read(self._journals)]
        return History(runs, self.kills)


@contextmanager
def nodes(dsn: str, folder: Path) -> Iterator[Nodes]:
    cluster = Nodes(dsn, folder)
    try:
        for _ in range(NODES):
            cluster.start()
        yield cluster
    finally:
        while cluster._running:
            cluster.kill_the_oldest()


async def insert(dsn: str, first: int) -> None:
    """One connection's share, one row a statement."""
    connection = await asyncpg.connect(dsn)
    began, share = time.monotonic(), ROWS // CONNECTIONS
    for n in range(share):
        await connection.execute("insert into photos (id) values ($1)", first + n)
        await anyio.sleep(max(0.0, began + SECONDS * n / share - time.monotonic()))
    await connection.close()


@pytest.mark.slow
async def test_every_row_runs_and_none_twice_at_once_while_nodes_are_killed(
    photos: World, tmp_path: Path
) -> None:
    with nodes(photos.dsn, tmp_path) as cluster:
        async with anyio.create_task_group() as tasks:
            for n in range(CONNECTIONS):
                tasks.start_soon(insert, photos.dsn, n * ROWS // CONNECTIONS)
            began = time.monotonic()
            while time.monotonic() - began < SECONDS:
                await anyio.sleep(EVERY)
                await cluster.until_the_oldest_is_at_work()
                cluster.kill_the_oldest()
                cluster.start()
        await eventually(lambda: photos.connection.fetchval(ALL_DONE), within=120)
    history = cluster.history
    order = {str(number): [number] for number in range(ROWS)}
    assert [*lost(history, order), *overlaps(history), *reruns(history)] == []
    assert len(cluster.kills) >= NODES + 4
    again = len(history.runs) - ROWS
    assert again > 0, "no kill has hit a run"
