"""What a runner in Python says: a line of JSON an event, times in seconds by the monotonic clock."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


class Starts:
    """Told of the start of every job; says when the first of so many jobs began, once all have begun."""

    def __init__(self, jobs: int) -> None:
        self._missing = jobs
        self._first: float | None = None

    def begin(self) -> None:
        if self._first is None:
            self._first = time.monotonic()
        self._missing -= 1
        if not self._missing:
            say(first=self._first)


async def trickle(jobs: int, pause: float, enqueue: Callable[[int], Awaitable[object]]) -> None:
    """Enqueue so many jobs one at a time, with pauses between one and two times so many seconds."""
    for n in range(jobs):
        await asyncio.sleep(pause * random.uniform(1, 2))
        called = time.monotonic()
        await enqueue(n)
        say(job=n, called=called, returned=time.monotonic())
