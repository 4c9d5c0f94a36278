"""Waiting for a condition, instead of sleeping a guess."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

Value = TypeVar("Value")

# In seconds: what a look that begins shortly before the end has at least.
SHORTEST_LOOK = 1.0


@overload
async def eventually(
    condition: Callable[[], Awaitable[Value]], *, within: float = 5, every: float = 0.01
) -> Value: ...
@overload
async def eventually(condition: Callable[[], Value], *, within: float = 5, every: float = 0.01) -> Value: ...
async def eventually(condition: Callable[[], Any], *, within: float = 5, every: float = 0.01) -> Any:
    """Wait until a condition is truthy, and return its value; it may be async, and may assert.

    Looks `every` so many seconds (0.01) for `within` seconds (5), and once at least. Raises AssertionError
    with the last value then, or the condition's own last AssertionError; any other error at once.
    """
    __tracebackhide__ = True
    deadline = anyio.current_time() + within
    while True:
        value, failure = await _look(condition, deadline)
        if failure is None and value:
            return value
        if anyio.current_time() >= deadline:
            raise failure or AssertionError(f"Not within {within:g} s; the last value was {value!r}.")
        await anyio.sleep(every)


async def _look(condition: Callable[[], Any], deadline: float) -> tuple[Any, AssertionError | None]:
    """The condition's value, or why it has none."""
    limit = max(deadline - anyio.current_time(), SHORTEST_LOOK)
    with anyio.move_on_after(limit):
        try:
            value = condition()
            return await value if inspect.isawaitable(value) else value, None
        except AssertionError as error:
            return None, error
    return None, AssertionError(f"The condition did not answer in {limit:.3g} s.")
