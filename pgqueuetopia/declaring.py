"""What is wrong with how a Queuetopia was declared, apart from its options."""

from collections.abc import Iterator

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.settings import Settings
from pgqueuetopia.workers import performer_faults


def part_faults(repo: object, performer: object, settings: object) -> Iterator[str]:
    """What is wrong with the parts of a Queuetopia."""
    if not isinstance(repo, Repo):
        # Its value is not told: a DSN may have a password.
        yield f"repo must be a Repo, as in repo = Repo(dsn), not {type(repo).__name__}"
    yield from performer_faults(performer)
    if not isinstance(settings, Settings):
        yield f"settings must be a Settings of yours, not {type(settings).__name__}"
