"""Arrays as text are read by PostgreSQL as what they were."""

from datetime import UTC, datetime, timedelta, timezone

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgqueuetopia.db.arrays import numbers, texts, times

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
ODD = ["", "NULL", "null", " a ", '"', "\\", "{a,b}", "a,b", "\n", "é😀", 'a\\"b', None]


async def test_texts(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert await connection.fetchval("select $1::text::text[]", texts(ODD)) == ODD
    assert texts([]) is None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT))
async def test_any_texts(connection: "asyncpg.Connection[asyncpg.Record]", values: list[str]) -> None:
    assert await connection.fetchval("select $1::text::text[]", texts(values)) == (values or None)


async def test_numbers(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    values = [1, None, -(2**63), 2**63 - 1]
    assert await connection.fetchval("select $1::text::bigint[]", numbers(values)) == values
    assert numbers([]) is None


async def test_times(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    now = datetime.now(UTC)
    values = [
        now,
        None,
        now,
        now.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1, 1, 1, tzinfo=UTC),
    ]
    assert await connection.fetchval("select $1::text::timestamptz[]", times(values)) == values
