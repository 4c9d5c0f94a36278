"""What a command prints: JSON for programs, tables on a terminal, tabs between columns in a pipe."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

FOLDED_ABOVE = 30


def document(value: Any) -> None:
    """One JSON document."""
    typer.echo(json.dumps(value, default=_plain))


def record(facts: Mapping[str, Any]) -> None:
    """One thing: a line for each of its facts."""
    table(("", ""), [(name, fact) for name, fact in facts.items()])


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Many things: a line for each."""
    cells = [[in_one_line(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        lines = [list(columns), *cells] if any(columns) else cells
        typer.echo("\n".join("\t".join(line) for line in lines))
        return
    drawn = Table(show_header=any(columns), box=None, pad_edge=False)
    for index, column in enumerate(columns):
        is_short = all(len(line[index]) <= FOLDED_ABOVE for line in cells)
        drawn.add_column(column, overflow="fold", no_wrap=is_short)
    for line in cells:
        drawn.add_row(*(Text(cell) for cell in line))
    Console().print(drawn)


def in_one_line(value: Any) -> str:
    """A value as people read it; a job's own text can neither break the line nor command the terminal."""
    match value:
        case None:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = "never" if is_never(value) else value.astimezone().isoformat(" ", "seconds")
        case timedelta():
            text = f"{value.total_seconds():g} s"
        case tuple() | list() if all(isinstance(item, str) for item in value):
            text = ", ".join(value) or "-"
        case dict() | tuple() | list():
            text = json.dumps(value, default=_plain, ensure_ascii=False)
        case _:
            text = str(value)
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def is_never(time: datetime) -> bool:
    """PostgreSQL's infinity, as the driver has it."""
    return time.year in (datetime.min.year, datetime.max.year)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return None if is_never(value) else value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} is not JSON")
