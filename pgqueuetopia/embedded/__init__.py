"""PostgreSQL without an installation: a server of one's own for development, demos and tests."""

from pgqueuetopia.embedded.errors import EmbeddedUnavailable
from pgqueuetopia.embedded.server import Server, start

__all__ = ["EmbeddedUnavailable", "Server", "start"]
