"""A server of the test's own, for what would harm the others."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from pgqueuetopia.embedded import Server, start

StartServer: TypeAlias = Callable[..., Server]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts a server with these settings; given the directory of one that was stopped, that one again."""
    with ExitStack() as stack:
        # Not under pytest's own folder: a server run as another user could not enter it.
        directory = Path(tempfile.mkdtemp(prefix="pgqueuetopia-test-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)

        def start_with(**options: str) -> Server:
            return stack.enter_context(start(directory / "server", durable=False, options=options))

        yield start_with
