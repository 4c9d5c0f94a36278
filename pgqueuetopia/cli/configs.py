"""pgqueuetopia config: list, get, set, delete."""

from typing import Annotated

import typer

from pgqueuetopia.cli import show
from pgqueuetopia.cli.target import App, AsJson, Dsn, Everywhere, Scope, Target

app = typer.Typer(help="The settings in job_configs, as they are in force.", no_args_is_help=True)

Key = Annotated[str, typer.Argument()]


@app.command("list")
def list_configs(
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """Every config in force."""
    found = Target(dsn, scope, app).ask_configs(lambda configs: configs.list(), everywhere=everywhere)
    if as_json:
        show.document({config.key: config.value for config in found})
    else:
        show.table(("key", "value"), [(config.key, config.value) for config in found])


@app.command("get")
def get_config(
    key: Key,
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """One config's value."""
    value = Target(dsn, scope, app).ask_configs(lambda configs: configs.get(key), everywhere=everywhere)
    if as_json:
        show.document({key: value})
    else:
        typer.echo(value)


@app.command("set")
def set_config(
    key: Key,
    value: Annotated[str, typer.Argument()],
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
) -> None:
    """Set a config; every node hears of it at once. With --app its Settings say what is valid."""
    Target(dsn, scope, app).ask_configs(lambda configs: configs.set(key, value), everywhere=everywhere)


@app.command("delete")
def delete_config(
    key: Key,
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
) -> None:
    """Delete a config of the scope's own; that of every scope, or the default, is in force again."""
    Target(dsn, scope, app).ask_configs(lambda configs: configs.delete(key), everywhere=everywhere)
