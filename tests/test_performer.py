from typing import Any

import pytest
from pydantic import BaseModel

from pgqueuetopia import InvalidJob, Job, Misconfigured, Performer, Queuetopia, Repo, action


class Mail(BaseModel):
    to: str
    copies: int = 1


class Mailer(Performer):
    @action("send_mail")
    async def send_mail(self, mail: Mail, job: Job) -> Any:
        return [mail.to, mail.copies, job.id]

    @action("ping")
    def ping(self) -> str:
        return "pong"


class Other(Mailer):
    async def perform(self, job: Job) -> Any:
        return job.action


def app(performer: Performer) -> Queuetopia:
    return Queuetopia(performer=performer, scope="Test", repo=Repo("postgresql://nobody@localhost:1/none"))


async def test_an_unknown_action_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(
        InvalidJob, match="action 'send_male' is unknown; this performer has: ping, send_mail"
    ):
        await app(Mailer()).create_job("q", "send_male", {})


async def test_wrong_params_are_refused_with_every_fault_at_once() -> None:
    with pytest.raises(InvalidJob) as raised:
        await app(Mailer()).create_job("", "send_mail", {"copies": "many"})
    assert len(raised.value.faults) == 3
    assert "params.to: Field required" in raised.value.faults


async def test_try_create_job_returns_the_error() -> None:
    assert isinstance(await app(Mailer()).try_create_job("q", "nothing"), InvalidJob)


def test_a_performer_with_perform_takes_unknown_actions_in_it() -> None:
    assert Other().faults("anything", {}) == []
    assert Other().faults("send_mail", {}) != []


def test_an_action_of_two_models_is_refused() -> None:
    with pytest.raises(Misconfigured, match="an action takes one pydantic model"):

        class Bad(Performer):
            @action("bad")
            def bad(self, first: Mail, second: Mail) -> None: ...
