from collections.abc import AsyncIterator
from typing import Self

import anyio
import asyncpg
import pytest
import structlog
from pydantic import field_validator, model_validator

from pgqueuetopia import Config, ConfigNotFound, InvalidConfig, Queuetopia, Settings
from tests.support import Recorder, an_app, eventually


class MailSettings(Settings):
    rate: int = 10


class OddSettings(Settings):
    size: int = 1

    @field_validator("size")
    @classmethod
    def check(cls, value: int) -> int:
        if value > 1:
            raise AttributeError("odd")
        return value


class OddTogether(Settings):
    size: int = 1
    width: int = 1

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.size > 1 and self.width > 1:
            raise AttributeError("odd")
        return self


async def test_a_config_is_set_read_listed_and_deleted(dsn: str) -> None:
    async with an_app(dsn) as app:
        await app.configs.set("colour", "blue")
        await app.configs.set("colour", "red")
        assert await app.configs.get("colour") == "red"
        assert await app.configs.list() == [Config("colour", "red"), Config("suspended", "false")]
        await app.configs.delete("colour")
        with pytest.raises(ConfigNotFound):
            await app.configs.get("colour")
        with pytest.raises(ConfigNotFound):
            await app.configs.delete("colour")


async def test_a_scopes_own_row_wins_over_that_of_every_scope(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute("insert into pgqueuetopia.job_configs (key, value) values ('colour', 'blue')")
    async with an_app(dsn) as app, an_app(dsn, scope="Other") as other:
        assert await app.configs.get("colour") == "blue"
        await app.configs.set("colour", "red")
        assert await app.configs.get("colour") == "red"
        assert await other.configs.get("colour") == "blue"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", "x"),
        ("k", 5),
        ("k", "a\0b"),
        ("suspended", "maybe"),
        ("q_suspended", ""),
        ("rate", "fast"),
        ("k" * 301, ""),
    ],
)
async def test_a_bad_config_is_refused(dsn: str, key: str, value: str) -> None:
    async with an_app(dsn, settings=MailSettings()) as app:
        with pytest.raises(InvalidConfig):
            await app.configs.set(key, value)


async def test_the_database_refuses_a_suspension_that_is_neither_true_nor_false(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("update pgqueuetopia.job_configs set value = 'ture' where key = 'suspended'")


async def test_settings_stay_in_step_on_every_node(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with (
        an_app(dsn, Recorder(), settings=MailSettings()) as app,
        an_app(dsn, Recorder(), settings=MailSettings) as other,
        app.running(),
        other.running(),
    ):
        await app.configs.set("rate", "20")
        await eventually(lambda: rates(app, other) == [20, 20])
        await connection.execute("update pgqueuetopia.job_configs set value = 'fast' where key = 'rate'")
        await app.configs.set("other", "x")
        await anyio.wait_all_tasks_blocked()
        assert rates(app, other) == [20, 20], "the last good one is kept"
        await app.configs.delete("rate")
        await eventually(lambda: rates(app, other) == [10, 10])


@pytest.mark.parametrize("odd", [OddSettings, OddTogether])
async def test_a_config_whose_validator_raises_anything_is_refused_and_the_node_goes_on(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]", odd: type[Settings]
) -> None:
    performer = Recorder()
    async with an_app(dsn, performer, settings=odd) as app, app.running():
        with structlog.testing.capture_logs() as logs:
            await connection.execute(
                "insert into pgqueuetopia.job_configs (scope, key, value)"
                " values ('Test', 'size', '2'), ('Test', 'width', '2')"
            )
            await eventually(lambda: [log for log in logs if log["event"] == "config_refused"])
        job = await app.create_job("q", "a")
        await eventually(lambda: performer.ids == [job.id])


def rates(*apps: Queuetopia) -> list[int]:
    return [app.settings.rate for app in apps]  # type: ignore[attr-defined]  # MailSettings


async def test_changes_come_as_they_are_made_after_the_current_values(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn, settings=MailSettings()) as app:
        await app.configs.set("colour", "blue")
        changes = app.configs.changes()
        assert [await anext(changes) for _ in range(2)] == [
            Config("colour", "blue"),
            Config("suspended", "false"),
        ]
        await app.configs.set("rate", "30")
        assert await anext(changes) == Config("rate", "30")
        assert rates(app) == [30], "an instance without a node is in step, too"
        await app.configs.delete("colour")
        assert await anext(changes) == Config("colour", None)
        await closed(changes)


async def test_changes_come_again_after_a_lost_connection(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with an_app(dsn) as app:
        changes = app.configs.changes()
        assert await anext(changes) == Config("suspended", "false")
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        with anyio.fail_after(10):
            assert await anext(changes) == Config("suspended", "false")
        await closed(changes)


async def closed(changes: AsyncIterator[Config]) -> None:
    await changes.aclose()  # type: ignore[attr-defined]  # an async generator
