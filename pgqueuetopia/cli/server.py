"""pgqueuetopia migrate, doctor and dev: the database itself."""

import shlex
import signal
from enum import StrEnum
from typing import Annotated

import anyio
import typer

from pgqueuetopia import migrate as migration
from pgqueuetopia.cli import show
from pgqueuetopia.cli.target import App, AsJson, Dsn, loaded
from pgqueuetopia.db import migrations
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.doctor import examination
from pgqueuetopia.doctor.finding import Finding, Level, worst
from pgqueuetopia.embedded import Server, start


class Direction(StrEnum):
    """What to do with the migrations."""

    UP = "up"
    DOWN = "down"
    STATUS = "status"
    SQL = "sql"


def migrate(
    direction: Annotated[Direction, typer.Argument()] = Direction.UP,
    to: Annotated[int | None, typer.Option(help="The version to stop at.")] = None,
    dsn: Dsn = None,
) -> None:
    """Bring a database to this version; down undoes it, jobs and all."""
    arguments = [direction.value]
    arguments += [] if to is None else ["--to", str(to)]
    arguments += [] if dsn is None else ["--dsn", dsn]
    raise typer.Exit(migration.main(arguments))


def doctor(
    nodes: Annotated[
        int | None, typer.Option(min=1, help="How many nodes will run; else those that do now.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Jobs at once per node; else --app's, or 100.")
    ] = None,
    dsn: Dsn = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with the database, and what to do; exit 1 if there is a problem."""
    queuetopia = loaded(app, dsn) if app else None
    repo = queuetopia.repo if queuetopia else Repo(dsn)
    concurrency = concurrency or (queuetopia.concurrency if queuetopia else 100)

    async def examine() -> list[Finding]:
        return await examination.examine(repo, nodes=nodes, concurrency=concurrency)

    findings = anyio.run(examine)
    level = worst(findings)
    if as_json:
        show.document({"level": level, "findings": findings})
    else:
        _show(findings)
    raise typer.Exit(1 if level is Level.PROBLEM else 0)


def dev(as_json: AsJson = False) -> None:
    """A PostgreSQL of your own, migrated, until Ctrl-C; its data is kept in $PGQUEUETOPIA_DATA."""
    with start(durable=True) as server:
        anyio.run(_serve, server, as_json)


async def _serve(server: Server, as_json: bool) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await migrations.up(server.dsn)
        if as_json:
            show.document({"dsn": server.dsn, "directory": str(server.directory)})
        else:
            typer.echo(f"PostgreSQL runs in {server.directory} until Ctrl-C; in other terminals:\n")
            typer.echo(f"export PGQUEUETOPIA_DSN={shlex.quote(server.dsn)}")
        async for _ in signals:
            return


def _show(findings: list[Finding]) -> None:
    show.table(
        ("", "check", "finding"),
        [(finding.level, finding.check, finding.what) for finding in findings],
    )
    for finding in findings:
        if finding.advice:
            typer.echo(f"\n{finding.check}: {finding.advice}")
