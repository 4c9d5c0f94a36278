"""Whose turn it is among the nodes of a scope: the one that has gone longest without a job (LRUNode)."""

import anyio
import structlog

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.node.bell import Bell

log = structlog.get_logger("pgqueuetopia")

# In seconds: how long a node waits for each that comes first, and how often it asks who is there.
STAND_BACK = 0.02
COMPANY = 5.0
# How often a node stands back in a row, when something comes in meanwhile.
MOST_TIMES = 3
NEVER = -1


class Turns:
    """Which nodes there are, and in which order they took their last jobs."""

    def __init__(self, repo: Repo, scope: str, node: str) -> None:
        self._repo = repo
        self._scope = scope
        self._node = node
        self._others: set[str] = set()
        self._joined = anyio.Event()
        self._last: dict[str, int] = {}
        self._number = 0

    @property
    def in_company(self) -> bool:
        """Whether there are other nodes."""
        return bool(self._others)

    def join(self) -> None:
        """There is a new node."""
        self._joined.set()

    def took(self, node: str) -> None:
        """A node has taken a job."""
        self._number += 1
        self._last[node] = self._number

    @property
    def rank(self) -> int:
        """How many other nodes come first."""
        ours = self._place(self._node)
        return sum(self._place(node) < ours for node in self._others)

    def _place(self, node: str) -> tuple[int, str]:
        return self._last.get(node, NEVER), node

    async def stand_back(self, bell: Bell) -> None:
        """Leave the next job to the nodes that come first, for a moment from when it came in."""
        for _ in range(MOST_TIMES):
            bell.hear()
            await anyio.sleep(self.rank * STAND_BACK)
            if not bell.rung:
                return

    async def tell(self) -> None:
        """Tell all that this node has taken a job."""
        try:
            await self._repo.tell_turn(self._scope, self._node)
        except QueuetopiaError as error:
            log.warning("turn_untold", scope=self._scope, error=str(error))

    async def keep_company(self) -> None:
        """Know who is there, until cancelled."""
        while True:
            await self._meet()
            with anyio.move_on_after(COMPANY):
                await self._joined.wait()
            self._joined = anyio.Event()

    async def _meet(self) -> None:
        try:
            nodes = set(await self._repo.nodes(self._scope)) | {self._node}
            self._others = nodes - {self._node}
            self._last = {node: place for node, place in self._last.items() if node in nodes}
        except QueuetopiaError as error:
            log.warning("company_unknown", scope=self._scope, error=str(error))
