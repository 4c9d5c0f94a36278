"""An idle node that counts its statements: python -m benchmarks.counted_node DSN SCOPE.

For each line that it reads it prints how many statements it has sent, and how much processor time it took.
It runs until it is told to stop, or nobody is left who asks.
"""

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from typing import Any

import asyncpg

from benchmarks.throughput import Nothing
from pgqueuetopia import Queuetopia, Repo, logs
from pgqueuetopia.cli import runtime
from pgqueuetopia.db.statements import SQL

NAMES = {text: name for name, text in SQL.items()}


def count_statements() -> Counter[str]:
    """The statements of every connection that this process opens from now on, by name where they are ours."""
    counts: Counter[str] = Counter()
    initialise = asyncpg.Connection.__init__

    def count(logged: Any) -> None:
        counts[NAMES.get(logged.query, logged.query)] += 1

    def initialise_and_count(self: Any, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        self.add_query_logger(count)

    asyncpg.Connection.__init__ = initialise_and_count  # type: ignore[method-assign]  # every one, the pool's too
    return counts


def answer(counts: Counter[str]) -> None:
    """The end of the input means that whoever asked is gone."""
    if sys.stdin.readline():
        print(json.dumps({"statements": counts, "processor": time.process_time()}), flush=True)
    else:
        asyncio.get_running_loop().remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)


async def main(dsn: str, scope: str) -> None:
    logs.configure("warning", sys.stderr)
    counts = count_statements()
    asyncio.get_running_loop().add_reader(sys.stdin, answer, counts)
    app = Queuetopia(repo=Repo(dsn), performer=Nothing(1), scope=scope)
    await app.run()
    await app.close()


if __name__ == "__main__":
    runtime.run(main, sys.argv[1], sys.argv[2])
