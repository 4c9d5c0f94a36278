"""What a running server says of itself in postmaster.pid."""

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

PORT = 5432
# The shortest question of the protocol; the server answers with one letter.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
ANSWER_LIMIT = timedelta(seconds=5)
PROCESSES = Path("/proc")


@dataclass(frozen=True)
class Postmaster:
    """A server process, the folder of its socket, and the state that it reports."""

    pid: int
    sockets: Path
    status: str

    @property
    def accepts_connections(self) -> bool:
        """Whether the server answers: file and socket may outlive it."""
        if self.status != "ready":
            return False
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.settimeout(ANSWER_LIMIT.total_seconds())
            client.connect(str(self.sockets / f".s.PGSQL.{PORT}"))
            client.sendall(SSL_REQUEST)
            return bool(client.recv(1))
        return False

    @property
    def is_gone(self) -> bool:
        """Whether the process ended without a word, and perhaps another got its number."""
        if not PROCESSES.joinpath("self").exists():
            return False
        try:
            process = PROCESSES.joinpath(str(self.pid), "stat").read_text()
        except OSError:
            return True
        return "(postgres)" not in process or "(postgres) Z" in process


def read_postmaster(data: Path) -> Postmaster | None:
    """The server that left its postmaster.pid in a data directory; None when there is none."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    pid, _, _, _, sockets, _, _, status, *_ = [*lines, *[""] * 8]
    return Postmaster(int(pid or 0), Path(sockets), status.strip())
