"""Arrays as PostgreSQL writes them, for what goes in with each step: asyncpg takes three times as long.

None where there is nothing in it.
"""

from collections.abc import Iterable
from datetime import datetime


def numbers(values: Iterable[float | None]) -> str | None:
    """For ::bigint[], ::integer[] or ::boolean[]."""
    joined = ",".join(map(str, values)).replace("None", "NULL")
    return f"{{{joined}}}" if joined else None


def texts(values: Iterable[str | None]) -> str | None:
    """For ::text[]; many are the same."""
    known = list(values)
    if not known:
        return None
    told = {value: "NULL" if value is None else quoted(value) for value in set(known)}
    return f"{{{','.join([told[value] for value in known])}}}"


def times(values: Iterable[datetime | None]) -> str | None:
    """For ::timestamptz[]; most are the same."""
    known = list(values)
    told = {value: None if value is None else value.isoformat() for value in set(known)}
    return texts([told[value] for value in known])


def quoted(text: str) -> str:
    """As an element of an array."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
