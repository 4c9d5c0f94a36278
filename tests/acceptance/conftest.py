"""A cluster of real node processes for each test, and the same scope's Queuetopia in the test's own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pgqueuetopia import Queuetopia
from tests.acceptance.cluster import Cluster
from tests.acceptance.node import SCOPE
from tests.support import an_app


@pytest.fixture
def cluster(dsn: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(dsn, tmp_path)
    yield cluster
    cluster.kill_all()


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[Queuetopia]:
    async with an_app(dsn, scope=SCOPE) as app:
        yield app
