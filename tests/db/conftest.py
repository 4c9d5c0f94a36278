"""What the tests of the database share."""

import pytest

from tests.db import failpoints


@pytest.fixture
async def racing_dsn(fresh_dsn: str) -> str:
    """A database whose step() can be stopped."""
    await failpoints.install(fresh_dsn)
    return fresh_dsn
