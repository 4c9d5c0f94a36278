"""Ends the process trees that a node has launched: at the node's request, and when the node has died."""

import os
import select
import signal
import sys
import time

# In seconds: from SIGTERM to SIGKILL.
GRACE = 0.5
# In seconds: how much longer one is held that has not been told yet, for each look finds more of it.
LONGEST_HOLD = 2.0
# In seconds: from one look at all processes to the next. Whatever is new is looked at often in the beginning.
SHORTEST_PAUSE = 0.02
LONGEST_PAUSE = 1.0
# A pause is at least so many times as long as the look before it.
REST = 10
NEVER = float("inf")


class Seen:
    """A process as a look has found it; its pid and its start are its identity."""

    __slots__ = ("group", "is_zombie", "parent", "pid", "session", "start")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        """`fields` are those of /proc/PID/stat from the third, the state, on."""
        self.pid = pid
        self.parent, self.group, self.session = map(int, fields[1:4])
        self.start = int(fields[19])
        # What has more threads than the first, which has ended, lives.
        self.is_zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def see(pid: int) -> Seen | None:
    """A process as it is now; None where there is none, or none that this user may see, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return Seen(pid, file.read().rpartition(b")")[2].split())
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None


def look() -> dict[int, Seen]:
    """All processes."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {pid: seen for pid in pids if (seen := see(pid)) is not None}


def relatives_of(seen: dict[int, Seen]) -> dict[int, list[Seen]]:
    """For a pid all whose parent it is, or the leader of their group or of their session."""
    relatives: dict[int, list[Seen]] = {}
    for one in seen.values():
        for pid in {one.parent, one.group, one.session}:
            relatives.setdefault(pid, []).append(one)
    return relatives


class Tree:
    """A launched process and all that has come from it, as far as looks have found it.

    A process belongs to it if its parent does, or the leader of its group or session. Once found it is
    known, and so found again when its parent has died and it has become a child of another.

    Before it is signalled it is held still: else what is born between a look and the death of its parent
    would be lost.
    """

    def __init__(self, root: int, start: int) -> None:
        self.root = root
        self.start = start
        self.starts = {root: start}
        self.kill_at = NEVER
        self._number = signal.SIGTERM
        self._held: set[int] = set()
        self._told: set[int] = set()
        self._refused: set[int] = set()

    def grow(self, seen: dict[int, Seen], relatives: dict[int, list[Seen]]) -> list[Seen]:
        """Learn from a look; its processes, parents before children.

        What has died is forgotten, but for the leader of a group or a session that goes on: its pid is not
        given to another until then.
        """
        starts = {pid: start for pid, start in self.starts.items() if _is_same(seen.get(pid), start)}
        pids = list(starts)
        for pid in pids:
            found = [one for one in relatives.get(pid, ()) if one.pid not in starts]
            starts.update((one.pid, one.start) for one in found)
            pids.extend(one.pid for one in found)
        self.starts = {pid: start for pid, start in starts.items() if pid in seen or pid in relatives}
        return [seen[pid] for pid in self.starts if pid in seen]

    def end(self, kill_at: float) -> None:
        """It is to end, and is killed from that time on."""
        self.kill_at = min(self.kill_at, kill_at)

    @property
    def is_ending(self) -> bool:
        """Whether it is to end."""
        return self.kill_at < NEVER

    def press(self, processes: list[Seen]) -> bool:
        """Hold those that live, and signal them once a look finds no others; whether any is left."""
        if self._number != signal.SIGKILL and self._has_had_its_time():
            self._number = signal.SIGKILL
            self._held, self._told = set(), set()
        pids = [one.pid for one in processes if not one.is_zombie and one.pid not in self._refused]
        if not self._hold(pids):
            self._tell(pids)
        return bool(pids)

    def _has_had_its_time(self) -> bool:
        """Not before it was told, however long the looks took, unless it grows and grows."""
        return time.monotonic() >= self.kill_at + (0 if self._told else LONGEST_HOLD)

    def _hold(self, pids: list[int]) -> bool:
        """Whether there were any that were not held yet."""
        others = [pid for pid in pids if pid not in self._held]
        for pid in others:
            self._signal(pid, signal.SIGSTOP)
        self._held.update(others)
        return bool(others)

    def _tell(self, pids: list[int]) -> None:
        """Each once; it goes on then, and so hears it. Their time begins when the first are told."""
        if not self._told and self._number == signal.SIGTERM:
            self.kill_at = max(self.kill_at, time.monotonic() + GRACE)
        for pid in pids:
            if pid not in self._told:
                self._signal(pid, self._number)
                self._signal(pid, signal.SIGCONT)
        self._told.update(pids)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        """A process that has become another user's is not ours to be signalled."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            self._refused.add(pid)


def _is_same(seen: Seen | None, start: int) -> bool:
    """Whether a pid is of the process that began then; where there is none, it is nobody else's."""
    return seen is None or seen.start == start


class Guardian:
    r"""Does what the node asks for, one request a line, and answers where there is an answer.

    watch PID START    end the tree of this process when the node dies
    forget PID         do not
    end PID            end it now; answers "gone PID START ORPHAN …" once nothing of it is left

    ORPHAN is one of its zombies that has become the node's child, to be waited for by the node: where that
    is process 1 of a container there is nobody else to do it.
    """

    def __init__(self, node: int, requests: int, answers: int) -> None:
        """`node` is the node's pid, `requests` and `answers` are the ends of the pipes from and to it."""
        self._node = node
        self._requests = requests
        self._answers = answers
        self._arrivals = select.poll()
        self._arrivals.register(requests, select.POLLIN)
        self._unread = b""
        self._is_open = True
        self._trees: dict[int, Tree] = {}
        self._pause = LONGEST_PAUSE
        self._rested_at = 0.0
        self._due = 0.0

    def serve(self) -> None:
        """Until the node has died, or wants it no longer; nothing of what is watched is left then.

        A fork of the node may hold the pipe open: hence the look at the parent.
        """
        while self._is_open and os.getppid() == self._node:
            while self._receive(max(0.0, self._due - time.monotonic())):
                pass
            self._look_round()
        while self._receive(0):
            pass
        self._end_all()

    def _receive(self, seconds: float) -> bool:
        """Take what comes within this time; False when nothing has come, or nothing will."""
        if not self._arrivals.poll(seconds * 1000):
            return False
        data = os.read(self._requests, 65536)
        self._is_open = bool(data)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._take(line.decode())
        return self._is_open

    def _take(self, request: str) -> None:
        match request.split():
            case ["watch", pid, start]:
                self._trees[int(pid)] = Tree(int(pid), int(start))
                self._hurry()
            case ["forget", pid]:
                self._trees.pop(int(pid), None)
            case ["end", pid] if int(pid) in self._trees:
                self._trees[int(pid)].end(time.monotonic() + GRACE)
                self._hurry()

    def _hurry(self) -> None:
        self._pause = SHORTEST_PAUSE
        self._due = max(self._rested_at, min(self._due, time.monotonic() + SHORTEST_PAUSE))

    def _look_round(self) -> None:
        began = time.monotonic()
        if self._trees:
            self._attend(look())
        self._rested_at = began + REST * (time.monotonic() - began)
        self._due = max(self._rested_at, began + self._pause)
        is_ending = any(tree.is_ending for tree in self._trees.values())
        self._pause = SHORTEST_PAUSE if is_ending else min(2 * self._pause, LONGEST_PAUSE)

    def _attend(self, seen: dict[int, Seen]) -> None:
        relatives = relatives_of(seen)
        for tree in list(self._trees.values()):
            processes = tree.grow(seen, relatives)
            if tree.is_ending and not tree.press(processes):
                del self._trees[tree.root]
                self._answer(tree, processes)

    def _answer(self, tree: Tree, processes: list[Seen]) -> None:
        """Nobody may read it any longer."""
        orphans = [one.pid for one in processes if one.is_zombie and self._is_orphan(tree, one)]
        words = " ".join(map(str, [tree.root, tree.start, *orphans]))
        try:
            os.write(self._answers, f"gone {words}\n".encode())
        except (BlockingIOError, BrokenPipeError):
            return

    def _is_orphan(self, tree: Tree, one: Seen) -> bool:
        return one.parent == self._node and one.pid != tree.root

    def _end_all(self) -> None:
        for tree in self._trees.values():
            tree.end(kill_at=0.0)
        while self._trees:
            self._look_round()
            time.sleep(SHORTEST_PAUSE)


def main() -> None:
    """Guard the node whose pid is the argument; what ends the node, or its terminal, does not end this."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(1, False)
    Guardian(int(sys.argv[1]), 0, 1).serve()


if __name__ == "__main__":
    main()
