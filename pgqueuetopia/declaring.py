"""What is wrong with how a Queuetopia was declared, apart from its options."""

import inspect
from collections.abc import Collection, Iterator
from difflib import get_close_matches

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.settings import Settings
from pgqueuetopia.workers import performer_faults

# How near a name must be to a setting's: concurency is, interval is not.
CLOSE = 0.85


def part_faults(repo: object, performer: object, settings: object) -> Iterator[str]:
    """What is wrong with the parts of a Queuetopia."""
    if not isinstance(repo, Repo):
        # Its value is not told: a DSN may have a password.
        yield f"repo must be a Repo, as in repo = Repo(dsn), not {type(repo).__name__}"
    yield from performer_faults(performer)
    if not isinstance(settings, Settings):
        yield f"settings must be a Settings of yours, not {type(settings).__name__}"


def misspelt(declared: type, base: type, settings: Collection[str]) -> Iterator[tuple[str, str]]:
    """Attributes that a class and its bases have beyond `base`, and the setting that each nearly names.

    Only of settings that the class leaves as they are: `topic` beside `topics` is somebody's own.
    """
    own = {
        name: value
        for one in declared.__mro__
        if one not in base.__mro__
        for name, value in vars(one).items()
    }
    left = [name for name in settings if name not in own]
    for name, value in own.items():
        if not (name.startswith("_") or hasattr(base, name) or _is_code(value)):
            for meant in get_close_matches(name, left, 1, CLOSE):
                yield name, meant


def _is_code(value: object) -> bool:
    return inspect.isroutine(value) or isinstance(value, property)
