"""python -m pgqueuetopia.migrate table TABLE QUEUE: make a queue of a table, or undo it."""

import argparse
import sys
from collections.abc import Sequence

from pgqueuetopia.db import table_migration
from pgqueuetopia.table.dialect import DIALECTS
from pgqueuetopia.table.queue import TableQueue


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m pgqueuetopia.migrate table", description=__doc__)
    parser.add_argument("table", help="the table; schema.table if it is not in public")
    parser.add_argument("queue", help="the queue's name")
    parser.add_argument("--key", default="id", help="the key's columns, separated by commas (id)")
    parser.add_argument("--rerun-when", default="", help="columns whose change runs a row again")
    parser.add_argument("--enqueue-existing", action="store_true", help="rows that are there are jobs, too")
    parser.add_argument("--database", default="postgresql", help=f"one of {', '.join(DIALECTS)}")
    parser.add_argument("--down", action="store_true", help="make the table what it was")
    parser.add_argument("--sql", action="store_true", help="print the SQL, and do nothing")
    parser.add_argument(
        "--dsn",
        help="the database; else $PGQUEUETOPIA_DSN, $DATABASE_URL, or libpq's PG* variables",
    )
    return parser


async def run(options: argparse.Namespace) -> int:
    """Do what was asked for. Raises QueuetopiaError."""
    queue = _queue(options)
    if options.sql:
        sys.stdout.write(
            queue.down_sql() if options.down else queue.up_sql(enqueue_existing=options.enqueue_existing)
        )
        return 0
    if options.down:
        await table_migration.down(options.dsn, queue)
        sys.stdout.write(f"{queue.names.relation} is no queue {queue.queue} any longer\n")
    else:
        await table_migration.up(options.dsn, queue, enqueue_existing=options.enqueue_existing)
        sys.stdout.write(f"{queue.names.relation} is the queue {queue.queue}\n")
    return 0


def _queue(options: argparse.Namespace) -> TableQueue:
    schema, dot, table = options.table.rpartition(".")
    return TableQueue(
        options.queue,
        table=table,
        schema=schema if dot else "public",
        key=_columns(options.key),
        rerun_when=_columns(options.rerun_when),
        database=options.database,
    )


def _columns(text: str) -> Sequence[str]:
    return [column.strip() for column in text.split(",") if column.strip()]
