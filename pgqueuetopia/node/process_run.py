"""A call in a process of its own, for what is bound by the CPU or must be killable."""

import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from pgqueuetopia import process_worker
from pgqueuetopia.errors import Misconfigured, WorkerFailed
from pgqueuetopia.node.child import end, fate_of, outlast
from pgqueuetopia.node.guarding import guarding
from pgqueuetopia.process_worker import ALIAS, HEADER, Main

Result = TypeVar("Result")

PROGRAM = Path(process_worker.__file__).resolve()
GUARD = re.compile(r"^if\b.*\b__name__\b", re.MULTILINE)


def run_process(function: Callable[..., Result], *args: Any) -> "ProcessRun[Result]":
    """Call a module's function in a new process: `await` it, or return it as Launched(run_process(...)).

    It starts when it is awaited; cancelled, it is killed, with all that it has started. Function, arguments
    and result are pickled, for this pipe between a process and its own child alone: nothing in the database
    ever is. What the function prints goes to stderr. A process takes some 50 ms to start, and as long as the
    function's module takes to import: this is for work of seconds.

    A function of the program that was started itself (`__main__`) is taken from a second import of it, under
    another name: therefore that must start the program only below `if __name__ == "__main__":`.

    Raises:
        Misconfigured: The function or an argument cannot be sent: a lambda, an inner function, a connection.
    """
    name = getattr(function, "__qualname__", repr(function))
    sent = io.BytesIO()
    sender = _Sender(sent)
    try:
        sender.dump((function, args))
    except Exception as error:
        raise Misconfigured(f"{name} cannot be called in another process: {error}") from error
    if sender.needs_main and not _is_main_guarded():
        raise Misconfigured(
            f"{name} cannot be called in another process: the program that defines it would run there again; "
            'start it below `if __name__ == "__main__":`, or move the function to another module'
        )
    return ProcessRun(name, pickle.dumps((sys.path, tuple(_main()))) + sent.getvalue())


class ProcessRun(Generic[Result]):
    """What run_process returns.

    Awaited, it gives what the function has returned, or raises what that has raised, with the worker's
    traceback as a note; WorkerFailed where the worker has ended without an answer. Awaited once more, it
    gives the same at once.
    """

    def __init__(self, name: str, request: bytes) -> None:
        self._name = name
        self._request = request
        self._process: anyio.abc.Process | None = None
        self._reply: bytes | None = None
        self._is_begun = False
        self._over = anyio.Event()

    def __await__(self) -> Generator[Any, Any, Result]:
        return self._result().__await__()

    async def stop(self) -> None:
        """Kill it, with all that it has started; one that has not begun never will."""
        if not self._is_begun:
            self._is_begun = True
            self._over.set()
        if self._process is not None:
            await end(self._process)

    async def _result(self) -> Result:
        if self._is_begun:
            await self._over.wait()
        else:
            self._is_begun = True
            await self._perform()
        return self._answer()

    async def _perform(self) -> None:
        try:
            self._process = process = await _start(self._name)
            guarding.watch(process)
            try:
                await outlast(process, self._converse)
            finally:
                await _leave(process)
        finally:
            self._over.set()

    async def _converse(self) -> None:
        """Send the request, receive the reply; a worker that has died does neither."""
        assert self._process is not None, "it has been started"
        assert self._process.stdin is not None, "it has a pipe"
        assert self._process.stdout is not None, "it has a pipe"
        replies = BufferedByteReceiveStream(self._process.stdout)
        try:
            await self._process.stdin.send(self._request)
            size = int.from_bytes(await replies.receive_exactly(HEADER), "big")
            self._reply = await replies.receive_exactly(size)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.IncompleteRead):
            return

    def _answer(self) -> Result:
        if self._reply is None:
            fate = "was stopped before it began" if self._process is None else fate_of(self._process)
            raise WorkerFailed(f"{self._name}: the worker process: {fate}")
        value: Result
        error, traceback, value = _Receiver(io.BytesIO(self._reply)).load()
        if error is None:
            return value
        told = error if isinstance(error, Exception) else WorkerFailed(f"{self._name}: {error}")
        told.add_note(f"In the worker process:\n{traceback}")
        raise told


async def _start(name: str) -> anyio.abc.Process:
    """In a session of its own, all of which is its tree; the name is for those who look at processes."""
    return await anyio.open_process(
        [sys.executable, "-P", "-X", "faulthandler", str(PROGRAM), str(os.getpid()), name],
        stderr=None,
        start_new_session=True,
    )


async def _leave(process: anyio.abc.Process) -> None:
    """Nothing is left of a worker that was stopped or has failed."""
    if process.returncode == 0:
        guarding.forget(process)
    else:
        with anyio.CancelScope(shield=True):
            await end(process)


class _Sender(pickle.Pickler):
    """Notices whether the program's main module is needed to read what it writes."""

    needs_main = False

    def reducer_override(self, value: object) -> Any:
        if getattr(value, "__module__", None) == "__main__":
            self.needs_main = True
        return NotImplemented


class _Receiver(pickle.Unpickler):
    """Takes what the worker knows of the main module, by its other name, from the one that runs."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class("__main__" if module == (_main().name or ALIAS) else module, name)


def _main() -> Main:
    """Where a worker finds the program's main module."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return Main(spec.name if spec is not None else None, getattr(main, "__file__", None))


@cache
def _is_main_guarded() -> bool:
    """Whether the program's main module can be imported without starting the program."""
    file = _main().file
    return file is not None and GUARD.search(Path(file).read_text()) is not None
