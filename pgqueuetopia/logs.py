"""How a process of ours logs: readable on a terminal, one JSON document a line otherwise."""

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

HANDLER = "pgqueuetopia"


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Have structlog, and the standard library's logging with it, write to `stream` (stderr).

    For the programs that own their process, the command line and the demo; a library never does this. A later
    call replaces an earlier one. Raises ValueError for an unknown level.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.name = HANDLER
    handler.setFormatter(_formatter(stream))
    root = logging.getLogger()
    root.setLevel(level.upper())
    for other in [known for known in root.handlers if known.name == HANDLER]:
        root.removeHandler(other)
    root.addHandler(handler)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            *_facts(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _facts() -> list[Processor]:
    """What every line says besides its event."""
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(stream: TextIO) -> logging.Formatter:
    rendering = _readable() if stream.isatty() else _json()
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_facts(),
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )


def _readable() -> list[Processor]:
    return [
        structlog.dev.ConsoleRenderer(
            colors="NO_COLOR" not in os.environ,
            # Not rich's: it prints local variables, and those may hold what is secret.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]


def _json() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
