"""A pytest plugin: pytest_plugins = ["pgqueuetopia.testing.fixtures"]."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.testing.databases import a_database, a_template, in_database
from pgqueuetopia.testing.servers import DSN, a_server

HOME = "PGQUEUETOPIA_TEST_HOME"


def pytest_configure(config: pytest.Config) -> None:
    """Say where the embedded server would be, before the workers of xdist start: they share it."""
    if HOME not in os.environ:
        # Not under pytest's own folder: a server run as another user could not enter it.
        os.environ[HOME] = f"/tmp/pgqueuetopia-pytest-{secrets.token_hex(6)}"
        config.add_cleanup(partial(_forget, os.environ[HOME]))


def _forget(home: str) -> None:
    os.environ.pop(HOME, None)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def _queuetopia_template() -> Iterator[tuple[str, str]]:
    """The server's DSN, and the name of a migrated database on it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(a_server(Path(os.environ[HOME])))
            template = stack.enter_context(a_template(server))
        except QueuetopiaError as error:
            where = f", on the server of ${DSN}" if os.environ.get(DSN) else ""
            pytest.fail(f"queuetopia_dsn{where}: {error}", pytrace=False)
        yield server, template


@pytest.fixture
def queuetopia_dsn(_queuetopia_template: tuple[str, str]) -> Iterator[str]:
    """The DSN of a migrated database without a job, of this test's own; dropped at its end.

    It is made on the server of $PGQUEUETOPIA_TEST_DSN, whose role must be allowed to create databases; else
    on the embedded server, which all workers of pytest-xdist share; else, if testcontainers is installed, in
    a container of this process.
    """
    server, template = _queuetopia_template
    with a_database(server, template) as name:
        yield in_database(server, name)
