"""The guardian: what a node has launched does not outlive it."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from pgqueuetopia.node.guardian import Seen, Tree, look, relatives_of
from pgqueuetopia.node.guarding import guarding
from pgqueuetopia.node.processes import ended, stop
from tests.node.living import SLEEPERS, TREE, guardians, is_gone, kill, kill_all, launcher, living, sleepers
from tests.support import eventually

# In seconds.
SOON = 5


@pytest.fixture
def mark() -> Iterator[str]:
    """A time to sleep that no other process sleeps; none is left that does."""
    mark = f"300.{uuid.uuid4().int}"
    yield mark
    kill_all(mark)


async def said(node: "subprocess.Popen[str]") -> str:
    assert node.stdout is not None
    return (await anyio.to_thread.run_sync(node.stdout.readline)).strip()


def tell(node: "subprocess.Popen[str]") -> None:
    assert node.stdin is not None
    node.stdin.write("\n")
    node.stdin.flush()


async def nothing_is_left(node: "subprocess.Popen[str]", mark: str) -> None:
    """Once the node is killed nothing bears the mark any longer, and the guardian has gone."""
    [guardian] = guardians(node.pid)
    node.kill()
    await eventually(lambda: not living(mark) and is_gone(guardian), within=SOON)


def seen(pid: int, parent: int, group: int, session: int, start: int = 1) -> Seen:
    fields = ["S", parent, group, session, *[0] * 13, 1, 0, start]
    return Seen(pid, [str(field).encode() for field in fields])


def test_a_tree_is_told_before_it_is_killed_however_long_the_looks_take(mark: str) -> None:
    process = subprocess.Popen(["sleep", mark])
    processes = [look()[process.pid]]
    tree = Tree(process.pid, processes[0].start)
    tree.end(kill_at=time.monotonic() - 0.1)
    assert tree.press(processes), "held"
    assert tree.press(processes), "told"
    assert process.wait(SOON) == -signal.SIGTERM


def test_a_tree_whose_node_has_died_is_killed_at_once(mark: str) -> None:
    process = subprocess.Popen(["sh", "-c", f"trap '' TERM; sleep {mark}"])
    processes = [look()[process.pid]]
    tree = Tree(process.pid, processes[0].start)
    tree.end(kill_at=0.0)
    assert tree.press(processes)
    assert tree.press(processes)
    assert process.wait(SOON) == -signal.SIGKILL


def grown(tree: Tree, *processes: Seen) -> list[int]:
    """The pids of the tree after a look that has seen these."""
    every = {one.pid: one for one in processes}
    return [one.pid for one in tree.grow(every, relatives_of(every))]


def test_a_tree_is_what_descends_from_its_root_parents_first() -> None:
    others = [seen(1, 0, 1, 1), seen(9, 1, 1, 1)]
    assert grown(Tree(5, 1), seen(3, 4, 1, 1), seen(4, 5, 1, 1), seen(5, 1, 1, 1), *others) == [5, 4, 3]


def test_an_orphan_belongs_to_the_tree_by_its_session_or_group() -> None:
    assert grown(Tree(5, 1), seen(6, 1, 6, 5), seen(7, 1, 5, 1), seen(8, 1, 8, 8)) == [6, 7]


def test_an_orphan_that_was_seen_before_is_known() -> None:
    tree = Tree(5, 1)
    assert grown(tree, seen(5, 1, 5, 5), seen(6, 5, 6, 6), seen(7, 6, 7, 7)) == [5, 6, 7]
    assert grown(tree, seen(5, 1, 5, 5), seen(7, 1, 7, 7), seen(8, 7, 7, 7)) == [5, 7, 8]


def test_a_pid_that_is_another_processes_now_is_not_of_the_tree() -> None:
    tree = Tree(5, 1)
    assert grown(tree, seen(5, 1, 5, 5), seen(6, 5, 6, 6)) == [5, 6]
    assert grown(tree, seen(5, 1, 5, 5, start=2), seen(6, 1, 6, 6, start=3), seen(7, 5, 5, 5)) == []


def test_what_has_died_is_forgotten() -> None:
    tree = Tree(5, 1)
    grown(tree, seen(5, 1, 5, 5), seen(6, 5, 6, 6), seen(7, 6, 6, 6), seen(8, 5, 5, 5))
    grown(tree, seen(5, 1, 5, 5), seen(7, 1, 6, 6))
    assert tree.starts == {5: 1, 6: 1, 7: 1}, "6 leads a session that goes on"


@pytest.mark.slow
async def test_no_process_outlives_a_node_that_is_killed(mark: str) -> None:
    commands = [f"trap '' TERM; {TREE.format(mark=mark)}", f"setsid sleep {mark} & exec sleep {mark}"]
    with launcher("launch", *commands) as node:
        assert await said(node) == "watched"
        await eventually(lambda: len(sleepers(mark)) == SLEEPERS + 2)
        await nothing_is_left(node, mark)


@pytest.mark.slow
async def test_a_node_may_be_killed_as_soon_as_it_has_launched(mark: str) -> None:
    with launcher("launch", TREE.format(mark=mark)) as node:
        assert await said(node) == "watched"
        await nothing_is_left(node, mark)


@pytest.mark.slow
async def test_no_worker_process_outlives_a_node_that_is_killed(mark: str) -> None:
    with launcher("work", TREE.format(mark=mark)) as node:
        await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
        await nothing_is_left(node, mark)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "fork_secretly"])
async def test_a_fork_that_lives_on_does_not_hide_that_the_node_has_died(how: str, mark: str) -> None:
    with launcher(how, f"exec sleep {mark}") as node:
        assert await said(node) == "watched"
        [guardian] = guardians(node.pid)
        forks = [pid for pid in living(mark) if pid != node.pid and pid not in sleepers(mark)]
        assert len(forks) == 1
        node.kill()
        await eventually(lambda: not sleepers(mark) and is_gone(guardian), within=SOON)
        assert living(mark) == forks, "they are the node's, but not launched"


@pytest.mark.slow
async def test_the_guardian_of_a_node_that_ends_in_order_goes_and_takes_along_what_is_left(mark: str) -> None:
    with launcher("launch", f"trap '' TERM; {TREE.format(mark=mark)}") as node:
        await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
        assert await said(node) == "watched"
        [guardian] = guardians(node.pid)
        tell(node)
        assert await anyio.to_thread.run_sync(node.wait, SOON) == 0
        assert (living(mark), is_gone(guardian)) == ([], True)


@pytest.mark.slow
async def test_what_stops_a_node_does_not_stop_its_guardian(mark: str) -> None:
    with launcher("launch", f"exec sleep {mark}") as node:
        assert await said(node) == "watched"
        [guardian] = guardians(node.pid)
        assert os.getsid(guardian) == guardian, "out of reach for Ctrl-C"
        await eventually(lambda: ignores(guardian, signal.SIGTERM))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guardian, number)
        await nothing_is_left(node, mark)


@pytest.mark.slow
async def test_where_orphans_become_the_nodes_children_none_of_them_stays_a_zombie(mark: str) -> None:
    with launcher("reap", TREE.format(mark=mark)) as node:
        assert await said(node) == "launched"
        await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
        tell(node)
        assert await said(node) == "zombies: []"


@pytest.mark.slow
async def test_the_guardian_holds_nothing_of_the_node() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    for one in guardians(os.getpid()):
        os.kill(one, signal.SIGKILL)
    await stop(await anyio.open_process(["sleep", "300"]))
    [guardian] = guardians(os.getpid())
    assert sorted(os.listdir(f"/proc/{guardian}/fd")) == ["0", "1", "2"]
    os.close(reading)
    os.close(writing)


@pytest.mark.slow
async def test_a_guardian_that_was_killed_is_replaced_and_told_everything(mark: str) -> None:
    handles = [await anyio.open_process(["sh", "-c", TREE.format(mark=mark)]) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for handle in handles:
            tasks.start_soon(ended, handle)
        await eventually(lambda: len(sleepers(mark)) == 2 * SLEEPERS)
        kill(guardians(os.getpid()))
        await stop(handles[0])
        assert len(sleepers(mark)) == SLEEPERS
        await stop(handles[1])
    assert not living(mark)


@pytest.mark.slow
async def test_a_guardian_that_is_killed_while_it_ends_a_tree_is_replaced(mark: str) -> None:
    handle = await anyio.open_process(["sh", "-c", f"trap '' TERM; {TREE.format(mark=mark)}"])
    await eventually(lambda: len(sleepers(mark)) == SLEEPERS)
    guarding.watch(handle)
    [guardian] = guardians(os.getpid())
    os.kill(guardian, signal.SIGSTOP)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop, handle)
        await anyio.lowlevel.checkpoint()
        kill([guardian])
    assert not living(mark)


@pytest.mark.slow
async def test_what_has_been_forgotten_outlives_the_node(mark: str) -> None:
    with launcher("launch", f"setsid sleep {mark} >/dev/null 2>&1 & exit 0", f"exec sleep {mark}") as node:
        assert await said(node) == "watched"
        await eventually(lambda: len(sleepers(mark)) == 2)
        [detached] = [pid for pid in sleepers(mark) if os.getsid(pid) == pid]
        await eventually(lambda: not any(one.parent == node.pid and one.is_zombie for one in look().values()))
        [guardian] = guardians(node.pid)
        node.kill()
        await eventually(lambda: is_gone(guardian), within=SOON)
        assert living(mark) == [detached]


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process has come so far as to ignore a signal."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line]
    return bool(int(line.split()[1], 16) & (1 << (number - 1)))
