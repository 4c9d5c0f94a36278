"""Ten subscribers of events, one of them asleep: python -m benchmarks.listeners DSN SCOPE.

It prints a line once it listens, and, when its input ends, what was read, what was dropped, and its memory.
"""

import json
import resource
import sys

import anyio

from pgqueuetopia import Queuetopia, Repo
from pgqueuetopia.cli import runtime
from pgqueuetopia.db.events import Events

LISTENERS = 10


async def read(events: Events, counts: list[int], number: int) -> None:
    """Count events; the first subscriber reads none."""
    if number:
        async for _ in events:
            counts[number] += 1


async def main(dsn: str, scope: str) -> None:
    app = Queuetopia(repo=Repo(dsn), scope=scope)
    counts = [0] * LISTENERS
    async with anyio.create_task_group() as tasks:
        subscribed = []
        for number in range(LISTENERS):
            # Left open until the process ends.
            subscribed.append(app.events())
            events = await subscribed[-1].__aenter__()
            tasks.start_soon(read, events, counts, number)
            if not number:
                asleep = events
        print("listening", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        await anyio.sleep(1)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"read": counts, "lost": asleep.lost, "memory": memory}), flush=True)
        tasks.cancel_scope.cancel()
    for one in subscribed:
        await one.__aexit__(None, None, None)
    await app.close()


if __name__ == "__main__":
    runtime.run(main, sys.argv[1], sys.argv[2])
