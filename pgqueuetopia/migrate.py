"""python -m pgqueuetopia.migrate: bring a database to this version."""

import argparse
import sys
from collections.abc import Sequence

import anyio

from pgqueuetopia import migrate_table
from pgqueuetopia.db import migrations
from pgqueuetopia.errors import MigrationFailed, QueuetopiaError

TABLE = "To make a queue of a table of yours: python -m pgqueuetopia.migrate table --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, or 1 after an error that was printed."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == ["table"]:
            return anyio.run(migrate_table.run, migrate_table.parser().parse_args(words[1:]))
        options = _parser().parse_args(words)
        _check_version(options)
        return anyio.run(_COMMANDS[options.command], options)
    except QueuetopiaError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pgqueuetopia.migrate", description=__doc__, epilog=TABLE)
    parser.add_argument("command", nargs="?", default="up", choices=sorted(_COMMANDS))
    parser.add_argument("--to", type=int, help="the version to stop at (up: the newest; down: 0)")
    parser.add_argument(
        "--dsn",
        help="the database; else $PGQUEUETOPIA_DSN, $DATABASE_URL, or libpq's PG* variables",
    )
    return parser


def _check_version(options: argparse.Namespace) -> None:
    """Raise MigrationFailed for a version that there is not: down to 0 removes everything."""
    least, newest = int(options.command != "down"), migrations.all_migrations()[-1].version
    if options.to is not None and not least <= options.to <= newest:
        raise MigrationFailed(f"--to must be between {least} and {newest}, the newest, not {options.to}.")


async def _up(options: argparse.Namespace) -> int:
    applied = await migrations.up(options.dsn, options.to)
    _say(*(f"applied {m.version:04} {m.name}" for m in applied), none="nothing to do: up to date")
    return 0


async def _down(options: argparse.Namespace) -> int:
    undone = await migrations.down(options.dsn, options.to or 0)
    _say(*(f"undone {m.version:04} {m.name}" for m in undone), none="nothing to do")
    return 0


async def _status(options: argparse.Namespace) -> int:
    states = await migrations.status(options.dsn)
    _say(*(f"{s.version:04} {s.name}: {s.applied_at or 'not applied'}" for s in states))
    return 0 if all(state.applied_at for state in states) else 1


async def _sql(options: argparse.Namespace) -> int:
    sys.stdout.write(migrations.sql(options.to))
    return 0


def _say(*lines: str, none: str = "") -> None:
    sys.stdout.write("\n".join(lines or (none,)) + "\n")


_COMMANDS = {"up": _up, "down": _down, "status": _status, "sql": _sql}

if __name__ == "__main__":
    sys.exit(main())
