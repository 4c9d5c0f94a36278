"""What ended, as it goes to the server: persist counts on its order."""

from pgqueuetopia.db.step import Ended, settlement_columns
from pgqueuetopia.outcome import SUCCEEDED, Failure, Settlement
from tests.db.steps import look, sessions
from tests.support import an_app


async def test_those_with_something_to_tell_come_first_and_then_the_plain_ones_by_their_ids(dsn: str) -> None:
    async with an_app(dsn) as app, sessions(dsn, "a") as [a]:
        await app.create_jobs([{"queue": queue, "action": "a"} for queue in "pqrs"])
        claimed = (await look(a)).claimed
    first, second, third, fourth = sorted(claimed, key=lambda job: job.id)
    failed = Settlement.abandoned(Failure("no"))
    ended = [
        Ended("s", fourth, SUCCEEDED, run_time=0.4, one_of_many=True),
        Ended("only looked at"),
        Ended("r", third, failed, run_time=0.3),
        Ended("p", first, SUCCEEDED, run_time=0.1),
        Ended("q", second, SUCCEEDED, "2", run_time=0.2),
    ]
    ids, claims, outcomes, *_, results, moves, run_times = settlement_columns(ended, "a")
    assert ids == [third.id, second.id, first.id, fourth.id]
    assert claims == [1] * 4
    assert (outcomes, results, moves) == (["abandoned", "succeeded"], [None, "2"], [None, None])
    assert run_times == [300_000, 200_000, 100_000, 400_000]
    assert settlement_columns(ended, "a", keep=False)[-1] == [], "nothing is written of the plain ones"
