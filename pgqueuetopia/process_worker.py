"""The program of a worker process: calls one function for its node, and sends back what that came to."""

import ctypes
import importlib
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

# What the main module is called here if it was started as a file.
ALIAS = "__mp_main__"
# How many bytes tell the length of a reply.
HEADER = 8
# Of prctl, in Linux.
SIGNAL_AT_PARENTS_DEATH = 1


class Main(NamedTuple):
    """The node's main module: its name if it was started by that (`python -m`), and its file."""

    name: str | None
    file: str | None


def main() -> None:
    """Serve one request of the node, whose pid is the first argument."""
    die_with(int(sys.argv[1]))
    requests, replies = take_pipes()
    reply = perform(requests)
    replies.write(len(reply).to_bytes(HEADER, "big") + reply)
    replies.close()


def die_with(node: int) -> None:
    """Be killed when the node dies, even before its guardian knows of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != node:
        sys.exit("the node has died")


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes from and to the node; from now on stdin is empty, and stdout goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def perform(requests: BinaryIO) -> bytes:
    """The reply to a request: what the function has raised, or why there is no answer, else its value.

    A tuple: an exception, a text or None; a traceback; the value.
    """
    try:
        function, args = receive(requests)
        value = function(*args)
    except Exception as error:
        return _raised(error)
    try:
        return pickle.dumps((None, "", value))
    except Exception as error:
        return _failed(f"its result cannot be sent: {_last_line(error)}", error)


def receive(requests: BinaryIO) -> Any:
    """The function to be called, and its arguments."""
    sys.path[:], main = pickle.load(requests)
    return Receiver(requests, main).load()


class Receiver(pickle.Unpickler):
    """Imports the node's main module when something of it is needed, and only then."""

    def __init__(self, requests: BinaryIO, main: tuple[str | None, str | None]) -> None:
        super().__init__(requests)
        self._main = Main._make(main)

    def find_class(self, module: str, name: str) -> Any:
        """What is of the main module is of an import of it here, that does not start the program."""
        return super().find_class(_imported(self._main) if module == "__main__" else module, name)


def _imported(main: Main) -> str:
    """Import the main module by another name than __main__; that name."""
    if main.name is not None:
        return importlib.import_module(main.name).__name__
    if ALIAS not in sys.modules:
        sys.modules[ALIAS] = _module_of(str(main.file))
    return ALIAS


def _module_of(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(ALIAS, file)
    assert spec is not None, "a main module is a file of Python"
    assert spec.loader is not None, "a main module is a file of Python"
    module = sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _raised(error: Exception) -> bytes:
    """The exception itself if it can be sent, else what is to be read of it."""
    try:
        reply = _failed(error, error)
        pickle.loads(reply)
    except Exception:
        return _failed(_last_line(error), error)
    return reply


def _failed(told: str | Exception, error: Exception) -> bytes:
    return pickle.dumps((told, "".join(traceback.format_exception(error)), None))


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


if __name__ == "__main__":
    main()
