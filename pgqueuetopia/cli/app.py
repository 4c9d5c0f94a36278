"""Every command, and what an error becomes: a message and exit code 1."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pgqueuetopia import logs
from pgqueuetopia.cli import configs, jobs, nodes, operate, server
from pgqueuetopia.errors import QueuetopiaError


class Commands(TyperGroup):
    """The commands; an error of ours is for the reader, and needs no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except QueuetopiaError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="pgqueuetopia",
    help="Jobs in strict order per queue, on nothing but PostgreSQL.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(nodes.run)
app.command("migrate")(server.migrate)
app.command("status")(operate.status)
app.command("blocked")(operate.blocked)
app.command("suspend")(operate.suspend)
app.command("resume")(operate.resume)
app.add_typer(jobs.app, name="jobs")
app.add_typer(configs.app, name="config")
app.command("doctor")(server.doctor)
app.command("dev")(server.dev)


@app.callback()
def configured(
    log_level: Annotated[
        str, typer.Option(envvar="PGQUEUETOPIA_LOG_LEVEL", help="debug, info, warning or error")
    ] = "info",
) -> None:
    """Logs go to stderr, as JSON lines where that is no terminal."""
    try:
        logs.configure(log_level)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from None


def main() -> None:
    """Run one command."""
    app()
