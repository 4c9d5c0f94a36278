"""Who the server runs as: PostgreSQL refuses to run as root."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Root under another name: what root owns stays its own, and PostgreSQL sees no root.
NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")


@dataclass(frozen=True)
class Account:
    """A user to run PostgreSQL's programs as, and what to put before their command lines."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def run(
        self, *command: str | Path, output: IO[bytes] | None = None, passing: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, in a session of its own: no Ctrl-C of ours reaches it."""
        return subprocess.run(
            [*self.prefix, *command],
            **self._identity(),
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=passing,
            start_new_session=True,
            check=False,
        )

    def can_serve(self, postgres: Path, directory: Path) -> bool:
        """Whether this account may run the program and reach the directory."""
        script = 'cd "$1" && exec "$0" --version'
        try:
            return self.run("sh", "-c", script, postgres, directory).returncode == 0
        except OSError:
            return False

    def own(self, directory: Path) -> None:
        """Hand a directory and all that lies in it to this account."""
        if os.geteuid() != 0 or directory.stat().st_uid == self.uid:
            return
        for path in directory.rglob("*"):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        # Last, for an interrupted hand-over must be taken up again.
        os.chown(directory, self.uid, self.gid)

    def _identity(self) -> dict[str, Any]:
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def accounts() -> Iterator[Account]:
    """The accounts to try, the preferred first."""
    if os.geteuid() != 0:
        yield Account(os.geteuid(), os.getegid())
        return
    yield from _unprivileged_users()
    if shutil.which("unshare"):
        yield Account(0, 0, NAMESPACE)


def _unprivileged_users() -> Iterator[Account]:
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        yield Account(user.pw_uid, user.pw_gid)
