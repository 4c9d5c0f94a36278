"""Clients in a process of their own that repeat one statement, a commit each: pgbench, or else Python.

python -m benchmarks.clients DSN STATEMENT CLIENTS SECONDS is what runs where there is no pgbench.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks.server import connected
from pgqueuetopia.cli import runtime
from pgqueuetopia.embedded.binaries import find_binaries

THREADS = 2
RATE = re.compile(r"tps = ([0-9.]+)")


async def commits_per_second(dsn: str, statement: str, clients: int, seconds: int) -> float:
    """What so many clients, each with a connection of its own, commit together."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.sql"
        script.write_text(" ".join(statement.split()) + ";\n")
        command = _command(dsn, script, statement, clients, seconds)
        done = await anyio.run_process(command, stderr=None)
    return float(RATE.findall(done.stdout.decode())[-1])


def tool() -> str:
    """What drives the clients."""
    return "pgbench" if _pgbench() else "Python"


def _command(dsn: str, script: Path, statement: str, clients: int, seconds: int) -> list[str]:
    if pgbench := _pgbench():
        load = f"-n -M prepared -c {clients} -j {min(clients, THREADS)} -T {seconds}"
        return [pgbench, *load.split(), "-f", str(script), dsn]
    return [sys.executable, "-m", "benchmarks.clients", dsn, statement, str(clients), str(seconds)]


def _pgbench() -> str | None:
    """The one beside the server's programs, else the one on the path."""
    beside = [str(binaries.directory / "pgbench") for binaries in find_binaries()]
    return next((path for path in beside if os.access(path, os.X_OK)), shutil.which("pgbench"))


async def _in_python(dsn: str, statement: str, clients: int, seconds: float) -> float:
    commits: list[int] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(_client, dsn, statement, seconds, commits)
    return sum(commits) / seconds


async def _client(dsn: str, statement: str, seconds: float, commits: list[int]) -> None:
    async with connected(dsn) as connection:
        prepared = await connection.prepare(statement)
        done, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            await prepared.fetch()
            done += 1
    commits.append(done)


if __name__ == "__main__":
    rate = runtime.run(_in_python, sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    print(f"tps = {rate}")
