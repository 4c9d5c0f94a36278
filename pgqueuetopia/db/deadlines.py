"""When a node and its server give each other up."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When each side gives the other up, in seconds, from how long a node may keep its queues unheard.

    A node that has heard nothing for `heartbeat` asks, and gives up `client` later: it stops its jobs
    before the server, after `server`, gives up on the node and hands its locks on.
    """

    server: float

    @property
    def heartbeat(self) -> float:
        """How often a node that is idle asks for a sign of life."""
        return self.server / 4

    @property
    def client(self) -> float:
        """How long a node waits for an answer."""
        return self.server / 2

    def settings(self) -> dict[str, str]:
        """The server's side of it."""
        milliseconds = str(int(self.server * 1000))
        return {
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "idle_session_timeout": milliseconds,
            "tcp_user_timeout": milliseconds,
            "tcp_keepalives_idle": str(max(1, int(self.server / 3))),
            "tcp_keepalives_interval": str(max(1, int(self.server / 6))),
            "tcp_keepalives_count": "3",
        }
