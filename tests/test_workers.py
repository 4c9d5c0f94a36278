"""Workers with a state of their own, and who of them takes the next job."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import asyncpg
import pytest
import structlog
from pydantic import BaseModel

from pgqueuetopia import (
    LRU,
    MRU,
    Abandon,
    Err,
    InvalidJob,
    Job,
    LRUNode,
    Misconfigured,
    NewJob,
    Ok,
    Performer,
    Queuetopia,
    Snooze,
    Worker,
    Workers,
    action,
)
from pgqueuetopia.node import turns
from pgqueuetopia.testing import perform_job
from tests.support import an_app, eventually

END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name like 'pgqueuetopia %'
"""
AT_ONCE = {"failure_mode": Abandon()}


class Counted(Worker):
    """Its state is how often a worker was made before it; `performed` is (state, params) of each run."""

    made = 0
    performed: list[tuple[Any, dict[str, Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.made, cls.performed = 0, []

    async def init(self, *args: Any) -> Any:
        type(self).made += 1
        return (*args, self.made)

    async def perform(self, job: Job, state: Any) -> Any:
        self.performed.append((state, job.params))
        if "fail" in job.params:
            return Err("no")
        return Snooze(0.01) if job.params.get("snooze") and len(self.performed) == 1 else None


async def done(app: Queuetopia) -> bool:
    return not (await app.status()).count


async def test_init_is_given_the_arguments_and_its_return_is_the_state_of_each_job(dsn: str) -> None:
    class Stateful(Counted): ...

    async with an_app(dsn, Workers(Stateful, ["a", 2], num=1)) as app, app.running():
        await app.create_jobs([NewJob("q", "a", {"n": n}) for n in range(3)])
        await eventually(lambda: done(app))
    assert Stateful.performed == [(("a", 2, 1), {"n": n}) for n in range(3)]


async def test_a_worker_has_one_job_at_a_time_and_there_are_num_of_them(dsn: str) -> None:
    class Slow(Worker):
        busy = most = 0

        async def perform(self, job: Job, state: Any) -> None:
            cls = type(self)
            cls.busy += 1
            cls.most = max(cls.most, cls.busy)
            await anyio.sleep(0.02)
            cls.busy -= 1

    async with an_app(dsn, Workers(Slow, num=3)) as app, app.running():
        await app.create_jobs([NewJob(f"q{n}", "a") for n in range(20)])
        await eventually(lambda: done(app))
    assert Slow.most == 3


async def test_what_no_worker_is_free_for_is_left_to_other_nodes(dsn: str) -> None:
    """The jobs that wait are not claimed: another node runs them at once."""

    class Busy(Worker):
        async def perform(self, job: Job, state: Any) -> None:
            await anyio.sleep(3600)

    class Free(Performer):
        performed = 0

        async def perform(self, job: Job) -> None:
            self.performed += 1

    async with an_app(dsn, Workers(Busy, num=1, shutdown=0)) as app, app.running():
        await app.create_jobs([NewJob(f"q{n}", "a", timeout=0) for n in range(5)])
        await eventually(lambda: executing(app, 1))
        other = Free()
        async with an_app(dsn, other) as second, second.running():
            await eventually(lambda: other.performed == 4)
        assert (await app.status()).executing == 1


async def executing(app: Queuetopia, count: int) -> bool:
    return (await app.status()).executing == count


async def test_a_job_that_fails_costs_its_worker_and_one_that_succeeds_keeps_it(dsn: str) -> None:
    class Fresh(Counted): ...

    async with an_app(dsn, Workers(Fresh, num=1), **AT_ONCE) as app, app.running():
        await app.create_jobs([NewJob("q", "a", p) for p in ({"n": 1}, {"fail": 1}, {"n": 2}, {"n": 3})])
        await eventually(lambda: done(app))
    assert [state for state, _ in Fresh.performed] == [(1,), (1,), (2,), (2,)]


async def test_a_job_that_snoozes_keeps_its_worker(dsn: str) -> None:
    class Snoozing(Counted): ...

    async with an_app(dsn, Workers(Snoozing, num=1)) as app, app.running():
        await app.create_job("q", "a", {"snooze": True})
        await eventually(lambda: done(app))
    assert [state for state, _ in Snoozing.performed] == [(1,), (1,)]


async def test_a_job_that_is_killed_or_takes_too_long_costs_its_worker(dsn: str) -> None:
    class Stuck(Counted):
        async def perform(self, job: Job, state: Any) -> None:
            self.performed.append((state, job.params))
            await anyio.sleep(3600 if job.params else 0)

    async with an_app(dsn, Workers(Stuck, num=1), **AT_ONCE) as app, app.running():
        await app.create_job("q", "a", {"long": 1}, timeout=0.05)
        killed = await app.create_job("q", "a", {"long": 1}, timeout=0)
        await app.create_job("q", "a")
        await eventually(lambda: len(Stuck.performed) == 2)
        await app.cancel(killed, kill=True)
        await eventually(lambda: done(app))
    assert [state for state, _ in Stuck.performed] == [(1,), (2,), (3,)]


async def test_a_state_that_is_a_context_manager_is_entered_and_left_when_its_worker_is_replaced(
    dsn: str,
) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def connection(number: int) -> AsyncIterator[str]:
        log.append(f"open {number}")
        yield f"connection {number}"
        log.append(f"close {number}")

    class Connected(Counted):
        async def init(self, *args: Any) -> Any:
            return connection((await super().init())[0])

        async def perform(self, job: Job, state: Any) -> Any:
            log.append(str(state))
            return Err("no") if job.params else None

    async with an_app(dsn, Workers(Connected, num=1), **AT_ONCE) as app, app.running():
        await app.create_jobs([NewJob("q", "a", {"fail": 1}), NewJob("q", "a")])
        await eventually(lambda: done(app))
    assert log == ["open 1", "connection 1", "close 1", "open 2", "connection 2", "close 2"]


async def test_a_worker_whose_init_fails_takes_no_job_and_the_others_work_on_meanwhile(dsn: str) -> None:
    class Lame(Counted):
        async def init(self, *args: Any) -> Any:
            made = await super().init()
            if made != (1,):
                raise ConnectionError("no")
            return made

    async with an_app(dsn, Workers(Lame, num=3, init_retry=3600)) as app, app.running():
        await app.create_jobs([NewJob(f"q{n}", "a") for n in range(5)])
        await eventually(lambda: done(app))
    assert {state for state, _ in Lame.performed} == {(1,)}


async def test_init_is_tried_again_after_init_retry(dsn: str) -> None:
    class Late(Counted):
        async def init(self, *args: Any) -> Any:
            made = await super().init()
            if made[0] < 3:
                raise ConnectionError("no")
            return time.monotonic()

    began = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        async with an_app(dsn, Workers(Late, num=1, init_retry=0.1)) as app, app.running():
            await app.create_job("q", "a")
            await eventually(lambda: done(app))
    [(ready, _)] = Late.performed
    assert ready - began >= 0.2
    assert [log["worker"] for log in logs if log["event"] == "worker_init_failed"] == ["Late", "Late"]


async def test_an_init_that_awaits_what_somebody_else_has_cancelled_is_tried_again(dsn: str) -> None:
    class Late(Counted):
        async def init(self, *args: Any) -> Any:
            made = await super().init()
            if made == (1,):
                raise asyncio.CancelledError
            return made

    async with an_app(dsn, Workers(Late, num=1, init_retry=0)) as app, app.running():
        await app.create_job("q", "a")
        await eventually(lambda: done(app))
    assert Late.performed == [((2,), {})]


async def test_a_worker_that_cannot_even_be_made_is_tried_again_as_well(dsn: str) -> None:
    class Unmade(Counted):
        tries = 0

        def __init__(self) -> None:
            type(self).tries += 1
            if self.tries == 2:
                raise ValueError("once")

    async with an_app(dsn, Workers(Unmade, num=1, init_retry=0)) as app, app.running():
        await app.create_job("q", "a")
        await eventually(lambda: done(app))
    assert Unmade.tries == 3


async def test_failed_init_is_called_instead_and_may_have_init_called_again(dsn: str) -> None:
    class Asking(Counted):
        asked = 0

        async def init(self, *args: Any) -> Any:
            made = await super().init()
            if made[0] < 3:
                raise ConnectionError("no")
            return made

        async def failed_init(self) -> None:
            type(self).asked += 1
            self.reinitialize()

    async with an_app(dsn, Workers(Asking, num=1, init_retry=3600)) as app, app.running():
        await app.create_job("q", "a")
        await eventually(lambda: done(app))
    assert Asking.asked == 2


async def test_a_failed_init_that_asks_for_nothing_keeps_the_worker_out(dsn: str) -> None:
    class Out(Counted):
        async def init(self, *args: Any) -> Any:
            await super().init()
            raise ConnectionError("no")

        async def init_failed(self) -> None:
            raise RuntimeError("its own fault is logged")

    with structlog.testing.capture_logs() as logs:
        async with an_app(dsn, Workers(Out, num=1, init_retry=0)) as app, app.running():
            await app.create_job("q", "a")
            await eventually(lambda: any(log["event"] == "failed_init_raised" for log in logs))
            assert (await app.status()).ready == 1
    assert Out.made == 1


async def test_a_head_that_fails_does_not_give_the_next_job_to_a_worker_that_is_not_ready(dsn: str) -> None:
    """The queue goes on at once, for its job was abandoned; its only worker is being made anew."""

    class Slow(Counted):
        async def init(self, *args: Any) -> Any:
            made = await super().init()
            await anyio.sleep(0.1)
            return made

    async with an_app(dsn, Workers(Slow, num=1), **AT_ONCE) as app, app.running():
        await app.create_jobs([NewJob("q", "a", {"fail": n}) for n in range(3)])
        await eventually(lambda: done(app))
        assert [job.claim for job in await app.list_jobs()] == [1, 1, 1]
    assert [params["fail"] for _, params in Slow.performed] == [0, 1, 2]


async def test_workers_outlive_their_nodes_session_and_one_whose_job_was_stopped_by_its_loss_is_replaced(
    dsn: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    class Lasting(Counted):
        async def perform(self, job: Job, state: Any) -> None:
            self.performed.append((state, job.params))
            await anyio.sleep(0 if job.claim > 1 or job.queue == "after" else 3600)

    async with an_app(dsn, Workers(Lasting, num=2, dispatcher=MRU())) as app, app.running():
        await eventually(lambda: Lasting.made == 2)
        await app.create_job("q", "a", timeout=0)
        await eventually(lambda: Lasting.performed)
        await connection.execute(END_SESSIONS)
        await eventually(lambda: done(app))
        assert Lasting.made == 3
        await app.create_job("after", "a")
        await eventually(lambda: done(app))
    assert [params for _, params in Lasting.performed] == [{}, {}, {}]


async def test_workers_that_join_a_suspended_queue_get_nothing(dsn: str) -> None:
    class Idle(Counted): ...

    async with an_app(dsn, Workers(Idle, num=2)) as app:
        await app.suspend()
        await app.create_job("q", "a")
        async with app.running():
            await eventually(lambda: Idle.made == 2)
            assert (await app.status()).ready == 1
            await app.resume()
            await eventually(lambda: done(app))


async def test_a_node_that_leaves_waits_for_its_workers_as_long_as_shutdown_says(dsn: str) -> None:
    class Long(Worker):
        async def perform(self, job: Job, state: Any) -> None:
            await anyio.sleep(job.params["seconds"])

    async with an_app(dsn, Workers(Long, num=2, shutdown=0.6), shutdown=0) as app:
        async with app.running():
            short = await app.create_job("short", "a", {"seconds": 0.1})
            long = await app.create_job("long", "a", {"seconds": 3600}, timeout=0)
            await eventually(lambda: executing(app, 2))
        assert (await app.get_job(short)).state == "succeeded"
        assert (await app.get_job(long)).attempts == 0


class Mail(BaseModel):
    to: str


async def test_the_actions_of_a_worker_take_its_state_last(dsn: str) -> None:
    taken: list[Any] = []

    class Mailer(Worker):
        async def init(self, *args: Any) -> str:
            return "smtp"

        @action("send")
        async def send(self, mail: Mail, job: Job, state: str) -> None:
            taken.append((mail.to, job.action, state))

        @action("ping")
        def ping(self, state: str) -> None:
            taken.append(state)

        @action("nothing")
        async def nothing(self) -> None:
            taken.append(None)

    async with an_app(dsn, Workers(Mailer, num=1)) as app, app.running():
        await app.create_job("q", "send", {"to": "a@b.c"})
        await app.create_job("q", "ping")
        await app.create_job("q", "nothing")
        await eventually(lambda: done(app))
        with pytest.raises(InvalidJob, match="unknown"):
            await app.create_job("q", "unknown")
    assert taken == [("a@b.c", "send", "smtp"), "smtp", None]


async def test_a_worker_without_a_state_takes_the_job_alone_and_its_init_may_be_a_plain_function(
    dsn: str,
) -> None:
    class Plain(Worker):
        def init(self, *args: Any) -> Any:
            return "unused"

        def perform(self, job: Job) -> str:
            return job.action

    async with an_app(dsn, Workers(Plain, num=1)) as app, app.running():
        job = await app.create_job("q", "a", reply=True)
        assert await app.reply(job) == Ok("a")


async def test_a_job_of_workers_is_performed_in_line_as_well(dsn: str) -> None:
    class InLine(Counted): ...

    async with an_app(dsn, Workers(InLine, ["x"], num=5)) as app:
        job = await perform_job(app, await app.create_job("q", "a"))
    assert (job.state, InLine.performed, InLine.made) == ("succeeded", [(("x", 1), {})], 1)


# Dispatchers


def test_lru_gives_the_next_job_to_the_worker_that_has_been_free_longest() -> None:
    free = LRU()
    for worker in "abc":
        free.check_in(worker)
    assert [free.check_out(), free.check_out()] == ["a", "b"]
    free.check_in("a")
    assert (len(free), free.check_out(), free.check_out()) == (2, "c", "a")


def test_mru_gives_the_next_job_to_the_worker_that_became_free_last() -> None:
    free = MRU()
    for worker in "abc":
        free.check_in(worker)
    assert free.check_out() == "c"
    free.check_in("c")
    free.remove("b")
    free.remove("unknown")
    assert [free.check_out(), free.check_out()] == ["c", "a"]


@pytest.mark.parametrize(("dispatcher", "used"), [(LRU(), 3), (MRU(), 1)])
async def test_the_dispatcher_says_which_worker_takes_the_next_job(
    dsn: str, dispatcher: LRU, used: int
) -> None:
    class One(Counted): ...

    async with an_app(dsn, Workers(One, num=3, dispatcher=dispatcher)) as app, app.running():
        await eventually(lambda: One.made == 3)
        await app.create_jobs([NewJob("q", "a") for _ in range(9)])
        await eventually(lambda: done(app))
    assert len({state for state, _ in One.performed}) == used
    assert len(dispatcher) == 0, "every node has a copy of its own"


async def test_any_object_of_the_protocol_is_a_dispatcher(dsn: str) -> None:
    class Alphabetical:
        def __init__(self) -> None:
            self.free: list[Any] = []

        def __len__(self) -> int:
            return len(self.free)

        def check_in(self, worker: object) -> None:
            self.free = sorted([*self.free, worker], key=lambda post: post.number)

        def check_out(self) -> object:
            return self.free.pop(0)

        def remove(self, worker: object) -> None:
            self.free = [free for free in self.free if free is not worker]

    class One(Counted): ...

    async with an_app(dsn, Workers(One, num=3, dispatcher=Alphabetical())) as app, app.running():
        await eventually(lambda: One.made == 3)
        await app.create_jobs([NewJob("q", "a") for _ in range(9)])
        await eventually(lambda: done(app))
    assert len({state for state, _ in One.performed}) == 1


async def test_a_dispatcher_that_returns_no_worker_fails_the_job_and_not_the_node(dsn: str) -> None:
    class Wrong(LRU):
        def check_out(self) -> object:
            super().check_out()
            return "nobody"

    class One(Counted): ...

    async with an_app(dsn, Workers(One, num=1, dispatcher=Wrong()), **AT_ONCE) as app, app.running():
        job = await app.create_job("q", "a")
        await eventually(lambda: done(app))
        assert "check_out() of Wrong" in (await app.get_job(job)).errors[0]["error"]
        assert (await app.status()).nodes


def has(found: list[str], count: int) -> bool:
    return len(found) == count


async def test_across_nodes_the_one_that_has_gone_longest_without_a_job_takes_the_next(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes and thirty jobs, one after the other: near, not exact, hence longer moments than usual."""
    monkeypatch.setattr(turns, "STAND_BACK", 0.15)
    takers: list[str] = []

    class Turn(Worker):
        async def perform(self, job: Job, state: Any) -> None:
            takers.append(str(job.attempted_by))

    workers = Workers(Turn, num=2, dispatcher=LRUNode())
    async with (
        an_app(dsn, workers) as app,
        an_app(dsn, workers) as second,
        an_app(dsn, workers) as third,
        app.running(),
        second.running(),
        third.running(),
    ):
        await asyncio.sleep(0.3)
        for n in range(30):
            await app.create_job(f"q{n}", "a")
            await eventually(partial(has, takers, n + 1))
            await asyncio.sleep(0.03)
    in_turn = [len(set(takers[n : n + 3])) == 3 for n in range(3, 28)]
    assert sum(in_turn) >= 0.7 * len(in_turn), takers


async def test_a_burst_over_nodes_that_take_turns_is_all_done(dsn: str) -> None:
    class One(Counted): ...

    workers = Workers(One, num=2, dispatcher=LRUNode())
    async with an_app(dsn, workers) as app, an_app(dsn, workers) as second, app.running(), second.running():
        await app.create_jobs([NewJob(f"q{n % 7}", "a") for n in range(30)])
        await eventually(lambda: done(app))
    assert len(One.performed) == 30


# What is refused


class NotAWorker(Performer): ...


class Idle(Worker): ...


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"worker": NotAWorker}, "must be a subclass of Worker"),
        ({"worker": Idle}, "Idle needs perform"),
        ({"worker": Counted, "args": "text"}, "args must be a list"),
        ({"worker": Counted, "num": 0}, "num must be an integer of at least 1"),
        ({"worker": Counted, "num": True}, "num must be an integer"),
        ({"worker": Counted, "init_retry": -1}, "init_retry must be seconds"),
        ({"worker": Counted, "shutdown": "10"}, "shutdown must be seconds"),
        ({"worker": Counted, "dispatcher": LRU}, "must be an instance, not a class: LRU"),
        ({"worker": Counted, "dispatcher": object()}, "has no __len__, check_in"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault):
        Workers(**arguments)
