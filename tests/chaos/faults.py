"""The faults: each breaks something, mends it, and says when."""

import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import anyio

from tests.chaos.world import END_SESSIONS, SESSION_TIMEOUT, SUSPEND, World


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done, to which node (None: to all), from when until when; `back` is when work could go on."""

    kind: str
    node: str | None
    since: float
    until: float
    back: float


async def kill(world: World) -> Fault:
    place = world.any_place()
    name = place.node.name
    since = time.monotonic()
    world.cluster.kill(place.node)
    place.node = world.start(place.dsn)
    return Fault("killed -9", name, since, since, since)


async def freeze(world: World) -> Fault:
    """SIGSTOP past the deadline, then SIGCONT."""
    place = world.any_place()
    place.node.signal(signal.SIGSTOP)
    since = time.monotonic()
    await anyio.sleep(SESSION_TIMEOUT * random.uniform(0.5, 2))
    # Noted before it is woken: it may write down an end at once.
    until = time.monotonic()
    place.node.signal(signal.SIGCONT)
    return Fault("frozen", place.node.name, since, until, since)


async def black_hole(world: World) -> Fault:
    place = world.any_place()
    since = time.monotonic()
    place.proxy.black_hole()
    await anyio.sleep(SESSION_TIMEOUT * random.uniform(0.5, 2))
    place.proxy.heal()
    return Fault("black-holed", place.node.name, since, time.monotonic(), since)


async def reset(world: World) -> Fault:
    place = world.any_place()
    since = time.monotonic()
    await place.proxy.reset()
    return Fault("reset", place.node.name, since, time.monotonic(), since)


async def terminate(world: World) -> Fault:
    since = time.monotonic()
    await world.execute(END_SESSIONS)
    return Fault("terminated", None, since, time.monotonic(), since)


async def restart_fast(world: World) -> Fault:
    since = time.monotonic()
    back = await world.restart(signal.SIGINT)
    return Fault("server restarted, fast", None, since, back, back)


async def restart_at_once(world: World) -> Fault:
    since = time.monotonic()
    back = await world.restart(signal.SIGQUIT)
    return Fault("server restarted, immediate", None, since, back, back)


async def pause(world: World) -> Fault:
    await world.execute(SUSPEND, "true")
    since = time.monotonic()
    await anyio.sleep(random.uniform(0.2, 1.0))
    until = time.monotonic()
    await world.execute(SUSPEND, "false")
    return Fault("suspended", None, since, until, until)


Kind: TypeAlias = Callable[[World], Awaitable[Fault]]

ALL: list[Kind] = [
    kill,
    freeze,
    black_hole,
    reset,
    terminate,
    restart_fast,
    restart_at_once,
    pause,
]
