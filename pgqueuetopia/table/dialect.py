"""What differs between the databases that a table queue can be on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Dialect:
    """One database.

    notifies: whether it has LISTEN, advisory locks and statement-level triggers: without them nodes poll.
    has_jobs: whether a Queuetopia's own jobs can be there, too.
    concurrently: the word that has an index made while others write; not every database needs one.
    """

    name: str
    notifies: bool
    has_jobs: bool
    concurrently: str


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "postgresql": Dialect("postgresql", notifies=True, has_jobs=True, concurrently="concurrently "),
        "cockroachdb": Dialect("cockroachdb", notifies=False, has_jobs=False, concurrently=""),
    }
)
