"""Least privilege: what a node needs of the user's table, and who inserts."""

import pytest

from pgqueuetopia import AccessDenied, Repo
from tests.support import Recorder, eventually
from tests.table.world import World
from tests.test_privileges import Roles, as_role, roles

__all__ = ["roles"]


async def test_a_node_needs_to_read_and_update_and_a_creator_to_insert(photos: World, roles: Roles) -> None:
    await photos.connection.execute(
        f"grant select, update on photos to {roles.name('node')}; "
        f"grant insert on photos to {roles.name('creator')}"
    )
    recorder = Recorder()
    async with photos.running(recorder, repo=Repo(roles.dsn_of("node"))):
        for number in (1, 2):
            await as_role(roles.dsn_of("creator"), f"insert into photos (id) values ({number})")
            await eventually(lambda: is_finished(photos, number))  # noqa: B023
    assert [job.key for job in recorder.performed] == [1, 2]


async def is_finished(world: World, number: int) -> bool:
    return await world.lock(number) is None


async def test_a_role_that_may_not_update_the_table_is_told_so(photos: World, roles: Roles) -> None:
    await photos.connection.execute(f"grant select on photos to {roles.name('node')}")
    async with photos.app(repo=Repo(roles.dsn_of("node"))) as app:
        with pytest.raises(AccessDenied, match="photos"):
            await app.table("classify").cancel(1)
