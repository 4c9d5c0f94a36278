"""A TCP proxy in front of the server, to cut its connections off or to hold back what they say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc


class Proxy:
    """Forwards every connection, unless it is told not to."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._open = anyio.Event()
        self._open.set()
        self._refuses = False
        self._streams: set[anyio.abc.ByteStream] = set()
        self.port = 0

    def black_hole(self) -> None:
        """From now on nothing arrives, in either direction, and nobody is told."""
        self._open = anyio.Event()

    async def cut(self) -> None:
        """Close every connection, and refuse new ones."""
        self._refuses = True
        await self.reset()

    def heal(self) -> None:
        """What was held back goes on; connections are let through again."""
        self._refuses = False
        self._open.set()

    async def reset(self) -> None:
        """Close every connection on both sides."""
        for stream in list(self._streams):
            await anyio.aclose_forcefully(stream)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        task_status.started()
        async with listener:
            await listener.serve(self._handle)

    async def _handle(self, client: anyio.abc.ByteStream) -> None:
        async with client:
            if self._refuses:
                return
            await self._open.wait()
            try:
                server = await anyio.connect_unix(self._target)
            except OSError:
                return
            await self._forward(client, server)

    async def _forward(self, client: anyio.abc.ByteStream, server: anyio.abc.ByteStream) -> None:
        self._streams |= {client, server}
        async with server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, client, server, tasks.cancel_scope)
            tasks.start_soon(self._pump, server, client, tasks.cancel_scope)
        self._streams -= {client, server}

    async def _pump(
        self, source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, scope: anyio.CancelScope
    ) -> None:
        try:
            while True:
                data = await source.receive()
                await self._open.wait()
                await sink.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()


@asynccontextmanager
async def a_proxy(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy to the server of a DSN, and the DSN through it."""
    url = urlsplit(dsn)
    query = parse_qs(url.query)
    proxy = Proxy(f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}")
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve)
        yield proxy, f"postgresql://{url.username}@127.0.0.1:{proxy.port}{url.path}"
        tasks.cancel_scope.cancel()
