"""A connection of one's own that listens, for whoever is not a node's session."""

from collections.abc import Callable, Mapping

import asyncpg

from pgqueuetopia.db.driver import CONNECT_TIMEOUT, Connection, keep_alive, translated


async def listen(
    dsn: str | None,
    name: str,
    channels: Mapping[str, Callable[[str], None]],
    on_lost: Callable[[], None],
    settings: Mapping[str, str] | None = None,
) -> Connection:
    """Connect, and hear what is notified on these channels: each has a function of the payload.

    `name` is the application's, as the server shows it; `on_lost` is called when the connection has ended.
    Raises DatabaseUnavailable, and whatever else a connection may be refused with.
    """
    with translated():
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT,
            command_timeout=CONNECT_TIMEOUT,
            server_settings={"application_name": name, **(settings or {})},
        )
        try:
            keep_alive(connection, timeout=CONNECT_TIMEOUT)
            connection.add_termination_listener(lambda _: on_lost())
            await hear(connection, channels)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def hear(connection: Connection, channels: Mapping[str, Callable[[str], None]]) -> None:
    """Have a connection hear what is notified on these channels."""
    with translated():
        for channel, take in channels.items():
            await connection.add_listener(channel, _payload_to(take))


def _payload_to(take: Callable[[str], None]) -> Callable[..., None]:
    return lambda *heard: take(str(heard[-1]))
