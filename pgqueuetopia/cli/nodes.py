"""pgqueuetopia run: a node."""

from typing import Annotated

import typer

from pgqueuetopia.cli import runtime
from pgqueuetopia.cli.target import Dsn, loaded
from pgqueuetopia.queuetopia import Queuetopia


def run(
    app: Annotated[str, typer.Argument(help="The Queuetopia to run, as module:Class.")],
    dsn: Dsn = None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C, which let its jobs end; a second one interrupts them."""
    runtime.run(_run, loaded(app, dsn))


async def _run(queuetopia: Queuetopia) -> None:
    try:
        await queuetopia.run()
    finally:
        await queuetopia.close()
