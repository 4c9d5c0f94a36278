"""An API that stops queueing jobs when a config says so, on every instance (the notify queue's example).

Whoever runs `pgqueuetopia config set accept_mails false`, or updates the row by SQL, reaches every instance
at once: each follows the configs over a connection of its own, and hears all of them again after a lost one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from pgqueuetopia import Queuetopia, Settings


class ApiSettings(Settings):
    """Custom configs, typed: a value that does not validate is refused, and the last good one kept."""

    accept_mails: bool = True
    mails_per_request: int = 10


class Mails(Queuetopia):
    scope = "Mails"
    settings: ApiSettings = ApiSettings()


class Api:
    """The handler of one instance."""

    def __init__(self, mails: Mails) -> None:
        self._mails = mails

    async def post_mails(self, to: list[str]) -> HTTPStatus:
        settings = self._mails.settings
        if not settings.accept_mails:
            return HTTPStatus.SERVICE_UNAVAILABLE
        if len(to) > settings.mails_per_request:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        await self._mails.create_jobs(
            {"queue": f"mails_{address}", "action": "send_mail", "params": {"to": address}} for address in to
        )
        return HTTPStatus.ACCEPTED


@asynccontextmanager
async def an_api(mails: Mails) -> AsyncIterator[Api]:
    """An instance that is kept in step with job_configs as long as it is open."""
    in_step = asyncio.Event()

    async def follow() -> None:
        async for config in mails.configs.changes():
            print(f"config {config.key} is {config.value}")
            in_step.set()

    following = asyncio.create_task(follow())
    await in_step.wait()
    try:
        yield Api(mails)
    finally:
        following.cancel()
        await asyncio.wait([following])
