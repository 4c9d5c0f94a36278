"""What a command works on: a database, and a scope of it."""

import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio
import typer

from pgqueuetopia.db.checkup import scopes
from pgqueuetopia.db.configs import EVERY_SCOPE, Configs
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.settings import Settings

Answer = TypeVar("Answer")

Dsn = Annotated[
    str | None,
    typer.Option(help="The database; else $PGQUEUETOPIA_DSN, $DATABASE_URL, or libpq's PG* variables."),
]
Scope = Annotated[str | None, typer.Option(help="The scope: the name of the Queuetopia's class.")]
App = Annotated[
    str | None, typer.Option(help="The Queuetopia as module:Class, instead of --dsn and --scope.")
]
Everywhere = Annotated[bool, typer.Option("--everywhere", help="Every scope of the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Queue = Annotated[str | None, typer.Argument(help="One queue; else the whole scope.")]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a command finds its Queuetopia."""

    dsn: str | None
    scope: str | None
    app: str | None

    def ask(self, question: Callable[[Queuetopia], Awaitable[Answer]]) -> Answer:
        """One question to the Queuetopia, opened and closed for it. Raises Misconfigured if none is named."""

        async def asked() -> Answer:
            queuetopia = await self._queuetopia()
            try:
                return await question(queuetopia)
            finally:
                await queuetopia.close()

        return anyio.run(asked)

    def ask_configs(self, question: Callable[[Configs], Awaitable[Answer]], *, everywhere: bool) -> Answer:
        """One question to the configs of the scope, or to those that speak to every scope."""
        if not everywhere:
            return self.ask(lambda queuetopia: question(queuetopia.configs))
        if self.scope or self.app:
            raise Misconfigured("Give --everywhere, or --scope or --app, not both.")

        async def asked() -> Answer:
            repo = Repo(self.dsn)
            try:
                return await question(Configs(repo, EVERY_SCOPE, Settings, lambda _: None))
            finally:
                await repo.close()

        return anyio.run(asked)

    async def _queuetopia(self) -> Queuetopia:
        match self.app, self.scope:
            case None, None:
                raise Misconfigured(f"Say which: {await self._choice()}.")
            case str(), str():
                raise Misconfigured("Give --scope or --app, not both.")
            case str(path), _:
                return loaded(path, self.dsn)
            case _, scope:
                return Queuetopia(repo=Repo(self.dsn), scope=scope)

    async def _choice(self) -> str:
        repo = Repo(self.dsn)
        try:
            known = await scopes(repo)
        finally:
            await repo.close()
        return f"--scope NAME (on this database: {', '.join(known) or 'none yet'}) or --app module:Class"


def loaded(path: str, dsn: str | None = None) -> Queuetopia:
    """The Queuetopia at module:Class, on the database `dsn` if that is given; a class is made an instance.

    Raises Misconfigured where there is none, or where it has another database of its own.
    """
    if dsn is not None:
        os.environ["PGQUEUETOPIA_DSN"] = dsn
    found = _attribute(path)
    if isinstance(found, type) and issubclass(found, Queuetopia):
        found = found()
    if not isinstance(found, Queuetopia):
        raise Misconfigured(f"{path} is no Queuetopia, but {type(found).__name__}.")
    if dsn is not None and found.repo.dsn != dsn:
        raise Misconfigured(f"{path} names a database of its own in its Repo; leave --dsn out.")
    return found


def _attribute(path: str) -> object:
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        raise Misconfigured(f"Give a module and a name in it, as in shop.mails:Mails; not {path!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Misconfigured(f"There is no module {error.name!r}, here or on Python's path.") from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise Misconfigured(f"Module {name!r} has no {attribute!r}.") from None
