"""A node's line to its guardian, the small process that ends what the node has launched."""

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
import structlog

from pgqueuetopia.node import guardian
from pgqueuetopia.node.guardian import see

log = structlog.get_logger("pgqueuetopia")

PROGRAM = Path(guardian.__file__).resolve()
# In seconds: how often the guardian is asked whether a tree is gone.
PAUSE = 0.02
# In seconds: how long a node that ends in order waits for its guardian.
LEAVE_TIMEOUT = 5


class Child(Protocol):
    """A process that this one has started."""

    @property
    def pid(self) -> int:
        """Its number, which may be another's once it has ended."""

    @property
    def returncode(self) -> int | None:
        """None until it has ended."""


class Guarding:
    """Tells the guardian of this process which trees to watch and to end; the first brings it to life.

    A guardian that has died is replaced by another, which is told everything. Where there can be none, for
    the system is not Linux or has no room for one more process, nothing is watched. Any thread may call it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._watched: dict[int, tuple[Child, int]] = {}
        self._ending: set[int] = set()
        self._unread = b""

    def watch(self, child: Child) -> None:
        """End its tree when this process dies, unless it is forgotten before."""
        seen = see(child.pid)
        if child.returncode is not None or seen is None or seen.parent != os.getpid():
            return
        with self._lock:
            if not self._is_watched(child):
                self._watched[child.pid] = child, seen.start
                self._ending.discard(child.pid)
                self._tell(f"watch {child.pid} {seen.start}")

    def forget(self, child: Child) -> None:
        """It has ended well: what it has left behind is meant to go on, unless its tree is being ended."""
        with self._lock:
            if self._is_watched(child) and child.pid not in self._ending:
                self._drop(child.pid)
                self._tell(f"forget {child.pid}")

    async def end(self, child: Child) -> bool:
        """End its tree; False where there is no guardian, or the child had ended before it was watched.

        A guardian that dies over it is replaced once.
        """
        self.watch(child)
        return await self._is_ended(child) or await self._is_ended(child)

    def close(self) -> None:
        """This process ends in order: so does its guardian, when it has ended what is left."""
        with self._lock:
            leaving, self._guardian = self._guardian, None
        if leaving is not None:
            _close_pipes(leaving)
            with suppress(subprocess.TimeoutExpired):
                leaving.wait(LEAVE_TIMEOUT)

    def lose(self) -> None:
        """This process is a fork of the node: the guardian and what is watched are not its own."""
        self._lock = threading.RLock()
        if self._guardian is not None:
            _close_pipes(self._guardian)
            # Another's child: not to be waited for.
            self._guardian.returncode = 0
        self._guardian = None
        self._watched = {}
        self._ending = set()
        self._unread = b""

    def _is_watched(self, child: Child) -> bool:
        watched = self._watched.get(child.pid)
        return watched is not None and watched[0] is child

    def _drop(self, pid: int) -> None:
        del self._watched[pid]
        self._ending.discard(pid)

    async def _is_ended(self, child: Child) -> bool:
        """Have the guardian end it; False when there is no guardian, or none any longer."""
        with self._lock:
            if not self._is_watched(child):
                return False
            self._ending.add(child.pid)
            self._tell(f"end {child.pid}")
        while self._listen():
            if not self._is_watched(child):
                return True
            await anyio.sleep(PAUSE)
        return False

    def _tell(self, request: str) -> None:
        """Only what changes `_watched` and `_ending` as well: a new guardian is told what they say."""
        if not self._write(request):
            self._replace()

    def _write(self, request: str) -> bool:
        """False when there is no guardian, or it has died, or it does not read."""
        if self._guardian is None or self._guardian.stdin is None:
            return False
        try:
            os.write(self._guardian.stdin.fileno(), f"{request}\n".encode())
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def _replace(self) -> None:
        self._dismiss()
        try:
            self._guardian = started = _start()
        except OSError as error:
            log.warning("guardian_not_started", error=str(error))
            return
        for pid, (_, start) in self._watched.items():
            self._write(f"watch {pid} {start}")
        for pid in self._ending:
            self._write(f"end {pid}")
        _unblock(started)

    def _dismiss(self) -> None:
        """A guardian that has died, or no longer reads, ends without ending anything."""
        if self._guardian is not None:
            self._guardian.kill()
            self._guardian.wait()
            _close_pipes(self._guardian)
        self._guardian = None
        self._unread = b""

    def _listen(self) -> bool:
        """Take the guardian's answers; False when there is no guardian."""
        with self._lock:
            if self._guardian is None or self._guardian.stdout is None:
                return False
            try:
                data = os.read(self._guardian.stdout.fileno(), 65536)
            except BlockingIOError:
                return True
            if not data:
                self._dismiss()
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._take(line.decode())
            return bool(data)

    def _take(self, answer: str) -> None:
        pid, start, *orphans = map(int, answer.split()[1:])
        if pid in self._watched and self._watched[pid][1] == start:
            self._drop(pid)
        for orphan in orphans:
            with suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)


def _start() -> subprocess.Popen[bytes]:
    """In a session of its own, out of reach for what is sent to the node's terminal or group."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )


def _unblock(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


guarding = Guarding()
atexit.register(guarding.close)
os.register_at_fork(after_in_child=guarding.lose)
