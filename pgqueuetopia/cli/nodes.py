"""pgqueuetopia run: a node."""

from importlib.util import find_spec
from typing import Annotated

import anyio
import typer

from pgqueuetopia.cli.target import Dsn, loaded
from pgqueuetopia.queuetopia import Queuetopia


def run(
    app: Annotated[str, typer.Argument(help="The Queuetopia to run, as module:Class.")],
    dsn: Dsn = None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C, which let its jobs end; a second one interrupts them."""
    anyio.run(_run, loaded(app, dsn), backend_options={"use_uvloop": find_spec("uvloop") is not None})


async def _run(queuetopia: Queuetopia) -> None:
    try:
        await queuetopia.run()
    finally:
        await queuetopia.close()
