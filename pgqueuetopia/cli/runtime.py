"""How a process runs that is a node and nothing else."""

import gc
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TypeVar

import anyio

T = TypeVar("T")

HAS_UVLOOP = find_spec("uvloop") is not None
# Python's collector looks for circles of garbage after so many new objects, by default 700 in 3.11.
# It takes a tenth of what a job costs a node, for a step makes thousands, which live until the next.
COLLECT_AFTER = 5_000
# As it is before the application is loaded, which may set its own.
_DEFAULT = gc.get_threshold()


def run(main: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run it, by uvloop where that is installed, and have the garbage collector look less often."""
    # What has been loaded by now stays for good, and need not be looked at.
    gc.freeze()
    if gc.get_threshold() == _DEFAULT:
        gc.set_threshold(max(COLLECT_AFTER, _DEFAULT[0]), *_DEFAULT[1:])
    return anyio.run(main, *arguments, backend_options={"use_uvloop": HAS_UVLOOP})
