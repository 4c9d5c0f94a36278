from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pgqueuetopia import Job
from pgqueuetopia.failure import FailurePolicy, settle
from pgqueuetopia.outcome import Failed, Failure, Interrupted, Settlement, Snoozed, Succeeded

NOW = datetime.now(UTC)
JOB = Job(
    id=1, scope="S", queue="q", action="a", params={}, scheduled_at=NOW, inserted_at=NOW, updated_at=NOW,
    attempts=1, max_attempts=2,
)  # fmt: skip
FAILURE = Failure("no")
SECOND = timedelta(seconds=1)


def test_each_outcome_has_one_settlement() -> None:
    policy = FailurePolicy()
    assert settle(JOB, Succeeded(5), policy, SECOND) == Settlement("succeeded", result=5)
    assert settle(JOB, Failed(FAILURE), policy, SECOND) == Settlement(None, SECOND, failure=FAILURE)
    assert settle(JOB, Snoozed(SECOND), policy, SECOND) == Settlement(None, SECOND, attempt_spent=False)
    assert settle(JOB, Interrupted(), policy, SECOND) == Settlement(None, timedelta(0), attempt_spent=False)


def test_the_last_attempt_abandons_or_blocks() -> None:
    last = replace(JOB, attempts=2)
    assert settle(last, Failed(FAILURE), FailurePolicy("abandon"), SECOND).outcome == "abandoned"
    assert settle(last, Failed(FAILURE), FailurePolicy("block"), SECOND) == Settlement(
        None, None, failure=FAILURE
    )
