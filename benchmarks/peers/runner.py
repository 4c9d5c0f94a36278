"""A runner: a process that drives a peer, and says in lines of JSON what it did."""

import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

Event: TypeAlias = dict[str, Any]


class RunnerFailed(Exception):
    """A runner ended with an error; it has said why."""


@dataclass(frozen=True, slots=True)
class Runner:
    """How to start it: the first words of its command line, and the folder it wants to be in."""

    command: tuple[str, ...]
    folder: Path

    async def run(self, *words: object, dsn: str = "") -> list[Event]:
        """Run it to its end; returns what it said."""
        async with self.running(*words, dsn=dsn) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def running(self, *words: object, dsn: str = "") -> AsyncIterator[AsyncIterator[Event]]:
        """What it says, as it says it; killed at the end of the block."""
        command = [*self.command, *map(str, words)]
        with tempfile.TemporaryFile() as errors:
            async with await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                cwd=self.folder,
                env={**os.environ, **environment(dsn)},
            ) as process:
                try:
                    yield _events(process, errors)
                finally:
                    if process.returncode is None:
                        process.kill()


async def _events(process: Process, errors: IO[bytes]) -> AsyncIterator[Event]:
    assert process.stdout is not None
    unfinished = ""
    async for text in TextReceiveStream(process.stdout):
        *lines, unfinished = (unfinished + text).split("\n")
        for line in lines:
            yield json.loads(line)
    if await process.wait():
        errors.seek(0)
        raise RunnerFailed(errors.read().decode(errors="replace"))


def environment(dsn: str) -> dict[str, str]:
    """A DSN as the variables that libpq, asyncpg and node-postgres read; a host may be a socket's folder."""
    parts = urlsplit(dsn)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    variables = {
        "PGHOST": query.get("host") or parts.hostname,
        "PGPORT": query.get("port") or parts.port,
        "PGUSER": parts.username,
        "PGPASSWORD": parts.password,
        "PGDATABASE": parts.path.removeprefix("/"),
    }
    return {name: unquote(str(value)) for name, value in variables.items() if value}
