"""The embedded server as its users see it: started by the first, stopped by the last."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote

from pgqueuetopia.embedded.cluster import Cluster
from pgqueuetopia.embedded.errors import EmbeddedUnavailable
from pgqueuetopia.embedded.postmaster import PORT

OURS = frozenset({"data", "data.new", "lock", "server.log", "users"})


def start(
    directory: Path | None = None,
    *,
    durable: bool = True,
    options: Mapping[str, str] = MappingProxyType({}),
) -> "Server":
    """Start PostgreSQL in a directory, or join the server that runs there already.

    Args:
        directory: Where data and log are kept; made when it does not exist. By default
            `$PGQUEUETOPIA_DATA`, or else one directory per user that outlives the process.
        durable: False gives safety in a crash away for speed: for tests only.
        options: More of PostgreSQL's settings. The server that runs already keeps its own.

    Raises:
        EmbeddedUnavailable: No PostgreSQL was found or it did not start; says what to do.
    """
    home = _prepare(Path(directory) if directory else _default_directory())
    cluster = Cluster(home, durable, options)
    with _alone(home), ExitStack() as undo:
        users = os.open(home / "users", os.O_RDWR | os.O_CREAT, 0o600)
        undo.callback(os.close, users)
        # The kernel counts the users: it lets go of a lock whose process was killed.
        fcntl.flock(users, fcntl.LOCK_SH)
        server = Server(cluster, cluster.start().sockets, users)
        undo.pop_all()
    return server


class Server:
    """One user's hold on a running server; the last to let go stops it."""

    def __init__(self, cluster: Cluster, sockets: Path, users: int) -> None:
        self._cluster = cluster
        self._sockets = sockets
        self._users: int | None = users

    @property
    def dsn(self) -> str:
        """The URL of the database `postgres`, as its superuser, through the server's socket."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets))}&port={PORT}"

    @property
    def directory(self) -> Path:
        """Where the server keeps its data and its log."""
        return self._cluster.directory

    def stop(self) -> None:
        """Leave the server, and stop it if nobody else uses it; a second call does nothing."""
        if self._users is None:
            return
        users, self._users = self._users, None
        with _alone(self.directory):
            try:
                if _is_last(users):
                    self._cluster.stop()
            finally:
                os.close(users)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _default_directory() -> Path:
    chosen = os.environ.get("PGQUEUETOPIA_DATA")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        # The server's user could not reach root's home.
        return Path("/var/lib/pgqueuetopia")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    if _is_writable(data):
        return data / "pgqueuetopia"
    return Path(tempfile.gettempdir()) / f"pgqueuetopia-{os.geteuid()}"


def _is_writable(directory: Path) -> bool:
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    return os.access(nearest, os.W_OK)


def _prepare(directory: Path) -> Path:
    home = directory.expanduser().resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = {path.name for path in home.iterdir()}
    except OSError as error:
        raise EmbeddedUnavailable(
            f"{home} cannot be used ({error.strerror}): choose a directory of your own with PGQUEUETOPIA_DATA"
        ) from error
    if not entries <= OURS or (os.geteuid() != 0 and home.stat().st_uid != os.geteuid()):
        raise EmbeddedUnavailable(
            f"{home} holds other files or belongs to somebody else: choose an empty directory "
            "of your own with PGQUEUETOPIA_DATA"
        )
    return home
