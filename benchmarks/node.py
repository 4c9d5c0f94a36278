"""A node in a process of its own, with a performer that does nothing: python -m benchmarks.node DSN SCOPE."""

import sys

from benchmarks.throughput import Nothing
from pgqueuetopia import Queuetopia, Repo, logs
from pgqueuetopia.cli import runtime


async def main(dsn: str, scope: str) -> None:
    logs.configure("warning", sys.stderr)
    app = Queuetopia(repo=Repo(dsn), performer=Nothing(1), scope=scope)
    await app.run()
    await app.close()


if __name__ == "__main__":
    runtime.run(main, sys.argv[1], sys.argv[2])
