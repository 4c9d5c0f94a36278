"""job_configs: get, set, and follow."""

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

from pgqueuetopia.db.driver import AnyConnection
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.db.watch import Watch
from pgqueuetopia.errors import ConfigNotFound, InvalidConfig
from pgqueuetopia.settings import Settings

EVERY_SCOPE = "*"
TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
FALSE = frozenset({"false", "f", "no", "n", "off", "0"})
LONGEST_KEY = 300


@dataclass(frozen=True, slots=True)
class Config:
    """One config as it speaks to a scope; `value` is None once it has been deleted."""

    key: str
    value: str | None


class Configs:
    """The configs of one scope.

    A row of scope `*` speaks to every scope, and a scope's own row wins over it, except that suspension is
    the OR of both.
    """

    def __init__(
        self,
        repo: Repo,
        scope: str,
        settings: type[Settings],
        on_read: Callable[[list[tuple[str, str, str]]], None],
    ) -> None:
        self._repo = repo
        self._scope = scope
        self._settings = settings
        self._on_read = on_read

    async def get(self, key: str) -> str:
        """The value that is in force for this scope. Raises ConfigNotFound."""
        try:
            return merged(await self._repo.configs(self._scope))[key]
        except KeyError:
            raise ConfigNotFound(f"There is no config {key!r} in scope {self._scope!r}.") from None

    async def list(self) -> list[Config]:
        """Every config in force for this scope, by key."""
        found = merged(await self._repo.configs(self._scope))
        return [Config(key, value) for key, value in sorted(found.items())]

    async def set(self, key: str, value: str, *, conn: AnyConnection | None = None) -> None:
        """Set this scope's own config; every instance hears of it at commit. `conn` joins a transaction.

        Raises InvalidConfig for a key or a value that is refused.
        """
        _check(key, value, self._settings)
        await self._repo.set_config(self._scope, key, value, conn)

    async def delete(self, key: str, *, conn: AnyConnection | None = None) -> None:
        """Delete this scope's own config. Raises ConfigNotFound."""
        if not await self._repo.delete_config(self._scope, key, conn):
            raise ConfigNotFound(f"Scope {self._scope!r} has no config {key!r} of its own.")

    async def changes(self) -> AsyncGenerator[Config, None]:
        """The current configs first, then each that changes, for ever; all again after a lost connection.

        Each open iterator has a connection of its own. While one is open the instance's `settings` are kept
        in step, as they are while a node runs.
        """
        watch = Watch(self._repo, self._scope)
        known: dict[str, str] = {}
        try:
            while True:
                anew, configs = await watch.read()
                self._on_read(configs)
                now = merged(configs)
                for config in _differences({} if anew else known, now, known):
                    yield config
                known = now
        finally:
            watch.close()


def merged(configs: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """What is in force, by key."""
    everybody: dict[str, str] = {}
    own: dict[str, str] = {}
    for scope, key, value in configs:
        (everybody if scope == EVERY_SCOPE else own)[key] = value
    return {key: _either(key, everybody.get(key), own.get(key)) for key in everybody.keys() | own.keys()}


def is_suspension(key: str) -> bool:
    """Whether a config suspends: the whole scope, or one queue."""
    return key == "suspended" or key.endswith("_suspended")


def is_true(value: str) -> bool:
    """Whether a config's text says yes."""
    return value.strip().lower() in TRUE


def _either(key: str, everybody: str | None, own: str | None) -> str:
    if is_suspension(key) and everybody is not None and is_true(everybody):
        return everybody
    return own if own is not None else everybody or ""


def _differences(before: dict[str, str], now: dict[str, str], known: dict[str, str]) -> list[Config]:
    changed = [Config(key, value) for key, value in sorted(now.items()) if before.get(key) != value]
    return changed + [Config(key, None) for key in sorted(known.keys() - now.keys())]


def _check(key: object, value: object, settings: type[Settings]) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or "\0" in key:
        raise InvalidConfig(f"A config's key must be a string of 1 to {LONGEST_KEY} characters.")
    if not isinstance(value, str) or "\0" in value:
        raise InvalidConfig(f"The value of {key!r} must be a string without NUL; use str(...) or JSON.")
    if is_suspension(key) and value.strip().lower() not in TRUE | FALSE:
        raise InvalidConfig(f"The value of {key!r} must be true or false, not {value!r}.")
    if key in settings.model_fields:
        try:
            settings.parsed(key, value)
        except ValueError as error:
            raise InvalidConfig(f"The value {value!r} of {key!r} is refused: {error}") from None
