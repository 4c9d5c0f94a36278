from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from pgqueuetopia import InvalidJob, Job, Misconfigured, Performer, Queuetopia, Repo, Worker, action


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


def arguments(performer: Performer | Worker, **more: Any) -> tuple[Any, ...]:
    """What the action `a` of a performer is called with."""
    return performer.bound(replace(job(), action="a", params={"to": "a@b.c"}, **more))[1]


def job() -> Job:
    now = datetime.now(UTC)
    return Job(
        id=1,
        scope="Test",
        queue="q",
        action="a",
        params={},
        scheduled_at=now,
        inserted_at=now,
        updated_at=now,
    )


def test_an_action_takes_its_model_and_the_job_in_either_order() -> None:
    class JobFirst(Performer):
        @action("a")
        def send(self, this: Job, mail: Mail) -> None: ...

    class Misnamed(Performer):
        @action("a")
        def send(self, job: Mail) -> None: ...

    class StateFirst(Worker):
        @action("a")
        def send(self, state: str, mail: Mail, job: Job) -> None: ...

    mail = Mail(to="a@b.c")
    first, second = arguments(JobFirst())
    assert (first.id, second) == (1, mail)
    assert arguments(Misnamed()) == (mail,)
    worker = StateFirst()
    worker.state = "a state"
    assert arguments(worker)[:2] == ("a state", mail)


def test_the_actions_of_a_mixin_are_known() -> None:
    class Pings:
        @action("a")
        def ping(self) -> None: ...

    class Both(Pings, Performer): ...

    assert Both().faults("a", {}) == []


def test_an_action_is_called_as_it_was_overridden() -> None:
    class Overridden(Mailer):
        def ping(self, mail: Mail) -> str:  # type: ignore[override]  # another parameter
            return mail.to

    assert Overridden.actions["ping"].model is Mail


@pytest.mark.parametrize("kind", ["keyword", "rest", "state"])
def test_an_action_that_cannot_be_called_is_refused(kind: str) -> None:
    def keyword(self: Any, mail: Mail, *, job: Job) -> None: ...

    def rest(self: Any, *mails: Mail) -> None: ...

    def state(self: Any, mail: Mail, state: str) -> None: ...

    methods: dict[str, Any] = {"keyword": keyword, "rest": rest, "state": state}
    with pytest.raises(Misconfigured, match=r"Bad.a: an action"):
        type("Bad", (Performer,), {"a": action("a")(methods[kind])})


def test_an_action_of_two_models_is_refused() -> None:
    with pytest.raises(Misconfigured, match="an action takes one pydantic model"):

        class Bad(Performer):
            @action("bad")
            def bad(self, first: Mail, second: Mail) -> None: ...
