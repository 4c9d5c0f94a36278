"""A connection that hears of every change of a scope's configs, and connects again whenever it is lost."""

import random

import anyio

from pgqueuetopia.db.driver import Connection
from pgqueuetopia.db.hearing import CONFIGS_CHANNEL
from pgqueuetopia.db.listening import listen
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import DatabaseUnavailable

LONGEST_PAUSE = 5.0
LOOK_EVERY = 30.0


class Watch:
    """Reads the configs at first, and again each time that one changes."""

    def __init__(self, repo: Repo, scope: str) -> None:
        self._repo = repo
        self._scope = scope
        self._connection: Connection | None = None
        self._heard = anyio.Event()
        self._pause = 0.1

    async def read(self) -> tuple[bool, list[tuple[str, str, str]]]:
        """The configs, once they have changed; True with them after a new connection."""
        while True:
            try:
                anew = self._connection is None
                connection = self._connection or await self._connect()
                if not anew:
                    with anyio.move_on_after(LOOK_EVERY):
                        await self._heard.wait()
                self._heard = anyio.Event()
                configs = await self._repo.configs(self._scope, connection)
            except DatabaseUnavailable:
                await self._lose()
            else:
                self._pause = 0.1
                return anew, configs

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _connect(self) -> Connection:
        self._connection = await listen(
            self._repo.session_dsn,
            "pgqueuetopia-configs",
            {CONFIGS_CHANNEL: lambda _: self._heard.set()},
            lambda: self._heard.set(),
        )
        return self._connection

    async def _lose(self) -> None:
        self.close()
        await anyio.sleep(self._pause * random.uniform(0.5, 1.5))
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
