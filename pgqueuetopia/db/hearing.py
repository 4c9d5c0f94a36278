"""What a node's session hears, and who is told of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgqueuetopia.db.repo import TOOK

JOBS_CHANNEL = "pgqueuetopia_jobs"
CONFIGS_CHANNEL = "pgqueuetopia_configs"
KILL = "kill "


def nobody(*heard: object) -> None:
    """Who does not want to be told."""


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told what a session hears.

    That jobs came in, another node joined, the session is lost, a config of the scope changed (with its
    key), a job is to be stopped (with its id), and a node has taken a job (with its name).
    """

    jobs: Callable[[], None] = nobody
    join: Callable[[], None] = nobody
    lost: Callable[[], None] = nobody
    config: Callable[[str], None] = nobody
    kill: Callable[[int], None] = nobody
    turn: Callable[[str], None] = nobody


@dataclass(slots=True)
class Hearing:
    """Tells of a scope's notifications; `answered`: whether what this node has sent itself has come back."""

    scope: str
    ping: str
    told: Told
    answered: bool = False

    def channels(self) -> Mapping[str, Callable[[str], None]]:
        """What is to be listened to, each with who takes the payload."""
        return {JOBS_CHANNEL: self._hear_jobs, CONFIGS_CHANNEL: self._hear_config}

    def _hear_jobs(self, payload: str) -> None:
        if payload == self.ping:
            self.answered = True
        elif payload == f"joined {self.scope}":
            self.told.join()
        elif payload == self.scope:
            self.told.jobs()
        elif payload.startswith(KILL) and payload.removeprefix(KILL).isdecimal():
            self.told.kill(int(payload.removeprefix(KILL)))
        elif payload.startswith(f"{TOOK}{self.scope} "):
            self.told.turn(payload.rpartition(" ")[2])

    def _hear_config(self, payload: str) -> None:
        scope, key = json.loads(payload)
        if scope in ("*", self.scope):
            self.told.config(key)
