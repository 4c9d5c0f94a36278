"""A node asleep: who creates jobs notifies it, and it looks for what may still commit without notifying."""

from pgqueuetopia.db.session import Session

# How often a node that sleeps beside others asks whether they are still there. All in seconds.
COMPANY = 10.0
FIRST_NAP = 0.001
LONGEST_NAP = 1.0
# Each nap is longer by so much: who commits late waits at most about a quarter of the time it was open.
LONGER = 1.25


class Sleep:
    """Whether the node sleeps, whether it is alone then, and how long it naps until its horizon is passed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._horizon = 0
        self._since = 0.0
        self._nap = FIRST_NAP
        self._joined = False
        self.is_on = False
        # Whether no other node ran when it fell asleep.
        self.is_alone = False

    def join(self) -> None:
        """Another node has started: we are not alone any longer."""
        self._joined = True

    def knows_its_company(self, now: float) -> bool:
        """Who sleeps alone is told when another node joins; who does not must ask whether it has left."""
        return not self._joined and (self.is_alone or not self.is_on or now - self._since < COMPANY)

    async def begin(self, now: float) -> None:
        """Have creators notify from now on."""
        # Before we ask: who joins while the answer is on its way makes us ask again.
        self._joined = False
        self._horizon, self.is_alone = await self._session.fall_asleep()
        self._since, self._nap = now, FIRST_NAP
        self.is_on = True

    async def end(self) -> None:
        """Have creators notify no longer."""
        self.is_on = self.is_alone = False
        await self._session.wake_up()

    def nap(self, horizon: int) -> float | None:
        """How long to wait for what began before we slept; None if a step has seen that all has ended."""
        if horizon >= self._horizon:
            return None
        nap, self._nap = self._nap, min(self._nap * LONGER, LONGEST_NAP)
        return nap
