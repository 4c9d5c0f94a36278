"""PgBouncer in transaction mode in front of the server."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pgqueuetopia.embedded.account import NAMESPACE

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")

CONFIG = """
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 200
default_pool_size = 20
server_login_retry = 1
logfile = {folder}/pgbouncer.log
"""


@contextmanager
def a_pooler(dsn: str) -> Iterator[str]:
    """The DSN through a pooler that runs as long as the context."""
    url = urlsplit(dsn)
    query = parse_qs(url.query)
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="pgqueuetopia-pooler-", dir="/tmp"))
    config = folder / "pgbouncer.ini"
    config.write_text(
        CONFIG.format(
            host=query["host"][0],
            port=query["port"][0],
            user=url.username,
            listen_port=port,
            folder=folder,
        )
    )
    # It refuses to run as root, as the server does, and has to reach the server's socket.
    owner = Path(query["host"][0]).stat().st_uid
    os.chown(folder, owner, -1)
    command = [str(PGBOUNCER), "-q", str(config)]
    if owner == 0:
        command = [*NAMESPACE, *command]
    elif owner != os.geteuid():
        command += ["-u", pwd.getpwuid(owner).pw_name]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield f"postgresql://{url.username}@127.0.0.1:{port}{url.path}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
