"""Arrays as PostgreSQL writes them, for what goes in with each step: asyncpg takes three times as long.

None where there is nothing in it.
"""

from collections.abc import Iterable
from datetime import datetime


def numbers(values: Iterable[float | None]) -> str | None:
    """For ::bigint[], ::integer[] or ::boolean[]."""
    written = array(map(str, values))
    return written and written.replace("None", "NULL")


def texts(values: Iterable[str | None]) -> str | None:
    """For ::text[]; many are the same."""
    known = list(values)
    told = {value: "NULL" if value is None else quoted(value) for value in set(known)}
    return array([told[value] for value in known])


def times(values: Iterable[datetime | None]) -> str | None:
    """For ::timestamptz[]; most are the same."""
    known = list(values)
    told = {value: None if value is None else value.isoformat() for value in set(known)}
    return texts([told[value] for value in known])


def array(elements: Iterable[str]) -> str | None:
    """Of elements that are written as there: numbers, or quoted."""
    joined = ",".join(elements)
    return f"{{{joined}}}" if joined else None


def quoted(text: str) -> str:
    """As an element of an array."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
