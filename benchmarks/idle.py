"""What does a node cost that has nothing to do: statements and processor time, a minute?"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import anyio

from benchmarks import scale
from benchmarks.figures import Figure
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE
from tests.support import eventually

COMPANIES = {"an idle node, alone": 1, "one of four idle nodes": 4}
SECONDS = scale.seconds(60)
# In seconds, once all are asleep: they nap until everything that may not notify has been looked at.
SETTLE = 2
LEAVE_LIMIT = 30
ASLEEP = """
select count(*) = $2
from pg_locks
where locktype = 'advisory'
  and mode = 'ShareLock'
  and granted
  and objsubid = 1
  and (classid::bigint << 32) | objid::bigint = pgqueuetopia.lock_key('sleeping', $1)
  and database = (select oid from pg_database where datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node did up to some time, or in some time: statements by their name, and processor seconds."""

    statements: dict[str, int]
    processor: float

    def since(self, before: "Cost") -> "Cost":
        counts = {name: n - before.statements.get(name, 0) for name, n in self.statements.items()}
        return Cost({name: n for name, n in counts.items() if n}, self.processor - before.processor)

    def __str__(self) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(self.statements.items())) or "none"


class CountedNode:
    """A node in a process of its own that counts its statements."""

    def __init__(self, dsn: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.counted_node", dsn, SCOPE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def cost(self) -> Cost:
        """Ask the node what it has done so far."""
        question, answers = self._process.stdin, self._process.stdout
        assert question is not None
        assert answers is not None
        print(file=question, flush=True)
        answer = json.loads(answers.readline())
        return Cost(answer["statements"], answer["processor"])

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=LEAVE_LIMIT)


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """From when the nodes have fallen asleep."""
    figures = []
    for company, nodes in COMPANIES.items():
        async with server.database() as dsn:
            costs = await _costs(dsn, nodes)
        for cost in costs:
            tell(f"{company}, {SECONDS:g} s: {cost}")
        statements = [sum(cost.statements.values()) * 60 / SECONDS for cost in costs]
        processor = [cost.processor * 60 / SECONDS for cost in costs]
        figures += [
            _each(f"{company}: statements a minute", statements, ".0f"),
            _each(f"{company}: processor seconds a minute", processor, ".3f"),
        ]
    return figures


def _each(question: str, values: list[float], shown: str) -> Figure:
    """One value for each node."""
    return Figure(
        question,
        format(statistics.median(values), shown),
        ", ".join(format(value, shown) for value in values),
    )


async def _costs(dsn: str, nodes: int) -> list[Cost]:
    with _running(dsn, nodes) as running:
        await _until_asleep(dsn, nodes)
        before = [node.cost() for node in running]
        await anyio.sleep(SECONDS)
        after = [node.cost() for node in running]
    return [late.since(early) for early, late in zip(before, after, strict=True)]


@contextmanager
def _running(dsn: str, nodes: int) -> Iterator[list[CountedNode]]:
    with ExitStack() as stops:
        running = []
        for _ in range(nodes):
            running.append(CountedNode(dsn))
            stops.callback(running[-1].stop)
        yield running


async def _until_asleep(dsn: str, nodes: int) -> None:
    async with connected(dsn) as connection:
        await eventually(lambda: connection.fetchval(ASLEEP, SCOPE, nodes))
    await anyio.sleep(SETTLE)
