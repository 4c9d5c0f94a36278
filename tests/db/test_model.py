"""Random histories of two nodes and an operator on the real database, compared with a model of it."""

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgqueuetopia import Job, JobNotFound, Queuetopia, Repo
from pgqueuetopia.db.known import Known
from pgqueuetopia.db.session import Session
from pgqueuetopia.db.step import Ended, Question
from pgqueuetopia.outcome import Failure, Settlement
from tests.conftest import EMPTY
from tests.db.model import Model, ModelJob
from tests.db.steps import open_session
from tests.support import eventually

QUEUES = st.sampled_from(["a", "b", "c"])
NODES = st.sampled_from(["left", "right"])
LATER = timedelta(hours=1)
STILL_WAITING = "select from pgqueuetopia.jobs where id = any ($1) and next_attempt_at > clock_timestamp()"
TABLE = "select id, attempts, claim, outcome from pgqueuetopia.jobs"

FAILURE = Failure("no")
SETTLEMENTS = {
    "runs on": None,
    "succeeded": Settlement.succeeded(None),
    "abandoned": Settlement.abandoned(FAILURE),
    "fails": Settlement.retried(FAILURE, timedelta(0)),
    "fails for long": Settlement.retried(FAILURE, LATER),
    "blocks": Settlement.blocked(FAILURE),
    "snoozes": Settlement.snoozed(LATER),
    "interrupted": Settlement.interrupted(),
}


class World(RuleBasedStateMachine):
    """Each rule is done to the database and to the model; what it tells must be the same."""

    def __init__(self, dsn: str, runner: asyncio.Runner) -> None:
        super().__init__()
        self.runner = runner
        self.dsn = dsn
        self.app = Queuetopia(repo=Repo(dsn, max_size=1), scope="Test")
        self.connection = runner.run(asyncpg.connect(dsn))
        runner.run(self.connection.execute(EMPTY))
        self.model = Model()
        self.sessions: dict[str, Session] = {}
        self.claimed: dict[int, Job] = {}
        self.snapshots: dict[int, str] = {}

    def teardown(self) -> None:
        for session in self.sessions.values():
            session.abort()
        self.runner.run(self.connection.close())
        self.runner.run(self.app.close())

    @rule(queue=QUEUES, hours=st.sampled_from([-2, -1, 0, 0, 0, 1]))
    def create(self, queue: str, hours: int) -> None:
        job = self.runner.run(self.app.create_job(queue, "a", scheduled_at=timedelta(hours=hours)))
        self.model.create(job.id, queue, hours)

    @rule(node=NODES, data=st.data())
    def step(self, node: str, data: st.DataObject) -> None:
        ends = [(job.id, data.draw(st.sampled_from(list(SETTLEMENTS)))) for job in self.model.running(node)]
        session = self.sessions.get(node) or self._open(node)
        ended = [self._ended(job, SETTLEMENTS[how]) for job, how in ends if how != "runs on"]
        for job, how in ends:
            self._settle(job, how)
        orphans = self.model.rescue()
        self._expect(node, self._step(session, ended, node))
        if orphans:
            self.runner.run(eventually(lambda: self._are_due(orphans)))
            for orphan in orphans:
                orphan.due = True
            self._expect(node, self._step(session, [], node))

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), action=st.sampled_from(["cancel", "abandon"]))
    def end(self, data: st.DataObject, action: str) -> None:
        job = self.model.jobs[data.draw(st.sampled_from(sorted(self.model.jobs)))]
        told = self.runner.run(getattr(self.app, action)(job.id))
        expected = "NOT_FOUND" if job.outcome else "IN_PROGRESS" if job.node else "OK"
        assert told == expected
        if told == "OK":
            job.outcome = {"cancel": "cancelled", "abandon": "abandoned"}[action]

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self.model.jobs[data.draw(st.sampled_from(sorted(self.model.jobs)))]
        assert self._is_done(self.app.retry, job.id) == bool(job.waits or job.outcome)
        if job.outcome:
            self.model.renew(job)
        elif job.waits:
            job.attempts, job.due = 0, True

    @rule(queue=st.none() | QUEUES)
    def suspend(self, queue: str | None) -> None:
        self.runner.run(self.app.suspend(queue))
        self.model.suspended.add(queue)

    @rule(queue=st.none() | QUEUES)
    def resume(self, queue: str | None) -> None:
        self.runner.run(self.app.resume(queue))
        self.model.suspended.discard(queue)

    @precondition(lambda self: self.sessions)
    @rule(node=NODES)
    def kill(self, node: str) -> None:
        if session := self.sessions.pop(node, None):
            session.abort()
            self.runner.run(eventually(lambda: self._is_gone(node)))
            self.model.kill(node)

    @invariant()
    def agrees(self) -> None:
        rows = self.runner.run(self.connection.fetch(TABLE))
        assert {row["id"]: tuple(row)[1:] for row in rows} == {
            job.id: (job.attempts, job.claim, job.outcome) for job in self.model.jobs.values()
        }

    def _open(self, node: str) -> Session:
        self.sessions[node] = self.runner.run(open_session(self.dsn, node))
        return self.sessions[node]

    def _step(self, session: Session, ended: list[Ended], node: str) -> list[int]:
        running = {job.queue: self.claimed[job.id].attempted_at for job in self.model.running(node)}
        stepped = self.runner.run(session.step(Question(ended, running=running, room=10, rescue=True)))
        self.runner.run(session.started())
        assert stepped.saved == {one.job.id for one in ended if one.job}
        self.claimed |= {job.id: job for job in stepped.claimed}
        self.snapshots |= {job.id: stepped.snapshot for job in stepped.claimed}
        return sorted(job.id for job in stepped.claimed)

    def _expect(self, node: str, claimed: list[int]) -> None:
        assert claimed == self.model.claim(node)

    def _ended(self, job_id: int, settlement: Settlement | None) -> Ended:
        job = self.claimed[job_id]
        return Ended(job.queue, job, settlement, snapshot=self.snapshots[job_id])

    def _settle(self, job_id: int, how: str) -> None:
        job, settlement = self.model.jobs[job_id], SETTLEMENTS[how]
        if settlement is None:
            return
        job.attempts -= not settlement.attempt_spent
        if settlement.outcome:
            job.outcome, job.node = settlement.outcome, None
        else:
            self.model.wait(job, due=settlement.delay == timedelta(0))

    def _is_done(self, action: Callable[..., Any], *arguments: Any) -> bool:
        try:
            self.runner.run(action(*arguments))
        except JobNotFound:
            return False
        return True

    async def _are_due(self, orphans: list[ModelJob]) -> bool:
        return not await self.connection.fetch(STILL_WAITING, [job.id for job in orphans])

    async def _is_gone(self, node: str) -> bool:
        name = f"pgqueuetopia {node} %"
        found = await self.connection.fetch(
            "select from pg_stat_activity where application_name like $1 and datname = current_database()",
            name,
        )
        return not found


@pytest.mark.parametrize("knows", [False, True])
def test_random_histories_agree_with_the_model(
    worker_dsn: str, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """Also with sessions that tell what they know of the run queue."""
    if knows:
        hear = Known.hear
        monkeypatch.setattr(Known, "hear", lambda self, _: hear(self, True))
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: World(worker_dsn, runner),  # type: ignore[arg-type]  # any factory will do
            settings=settings(
                # 50 in CI.
                max_examples=int(os.environ.get("MODEL_EXAMPLES", "25")),
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
