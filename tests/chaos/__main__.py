"""Breaks everything for a while, and judges: python -m tests.chaos, or make chaos.

CHAOS_SECONDS (600) is how long; CHAOS_SEED makes the same choices again; CHAOS_KINDS names the faults to do
(their functions, with spaces between); CHAOS_SESSION_TIMEOUT (4) is how many seconds a session lives
unheard; CHAOS_POOLER=1 sends all but the nodes' sessions through PgBouncer. The last line is the verdict;
exit 1 on any fault.
"""

import os
import random
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import asyncpg

from tests.acceptance.cluster import Connection, until_nodes_are_up
from tests.chaos.faults import ALL, Fault, Kind
from tests.chaos.verdict import Verdict, judge
from tests.chaos.world import SESSION_TIMEOUT, World, a_world
from tests.support import eventually

NODES = 3
BETWEEN = (0.5, 3.0)
# In seconds: longer than any job runs, so something stands still where nothing has ended for so long.
STANDSTILL = 60 + 4 * SESSION_TIMEOUT
LEFT = "select count(*) from pgqueuetopia.jobs where done_at is null"


async def main() -> int:
    seconds = float(os.environ.get("CHAOS_SECONDS", "600"))
    seed = os.environ.get("CHAOS_SEED", str(random.randrange(10**6)))
    random.seed(seed)
    kinds = chosen_kinds()
    pooled = bool(os.environ.get("CHAOS_POOLER"))
    say(f"{seconds:g} s of chaos, seed {seed}{', through PgBouncer' if pooled else ''}")
    with tempfile.TemporaryDirectory(prefix="pgqueuetopia-chaos-", dir="/tmp") as folder:
        async with a_world(Path(folder), NODES, pooled=pooled) as world:
            faults = await rage(world, seconds, kinds)
            verdict = await settle(world, faults)
    for line in verdict.lines(faults):
        say(line)
    return 0 if verdict.is_good else 1


def chosen_kinds() -> list[Kind]:
    """Those of CHAOS_KINDS, or all."""
    kinds = {kind.__name__: kind for kind in ALL}
    chosen = os.environ.get("CHAOS_KINDS", "").split()
    if unknown := set(chosen) - set(kinds):
        sys.exit(f"CHAOS_KINDS: no fault is called {', '.join(unknown)}; there are: {' '.join(kinds)}")
    return [kinds[name] for name in chosen or kinds]


async def rage(world: World, seconds: float, kinds: list[Kind]) -> list[Fault]:
    """One fault after the other, while jobs are created."""
    faults: list[Fault] = []
    await until_nodes_are_up(world.app, NODES)
    deadline = anyio.current_time() + seconds
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.create)
        while anyio.current_time() < deadline:
            fault = await random.choice(kinds)(world)
            faults.append(fault)
            say(
                f"{fault.kind} {fault.node or ''} for {fault.until - fault.since:.1f} s; {world.created} jobs"
            )
            await anyio.sleep(random.uniform(*BETWEEN))
        world.ending = True
    return faults


async def settle(world: World, faults: list[Fault]) -> Verdict:
    """Wait until everything is done, or nothing moves any longer, and judge."""
    connection = await asyncpg.connect(world.dsn)
    with suppress(TimeoutError):
        while left := await connection.fetchval(LEFT):
            await eventually(partial(has_shrunk, connection, left), within=STANDSTILL)
    await connection.close()
    return await judge(world.dsn, world.cluster.runs, world.cluster.kills, faults)


async def has_shrunk(connection: Connection, left: int) -> bool:
    await anyio.sleep(0.2)
    return bool(await connection.fetchval(LEFT) < left)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(anyio.run(main))
