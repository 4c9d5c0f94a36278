"""The command line: pgqueuetopia."""

from pgqueuetopia.cli.app import main

__all__ = ["main"]
