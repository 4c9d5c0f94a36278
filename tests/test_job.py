import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueuetopia import InvalidJob, Job, NewJob
from pgqueuetopia.job import checked, json_faults


def faults(**values: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidJob) as raised:
        checked(NewJob(**{"queue": "q", "action": "a", **values}))
    return raised.value.faults


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"queue": ""}, "queue must not be empty"),
        ({"queue": None}, "queue must be a string, not NoneType"),
        ({"queue": "q" * 256}, "queue has 256 characters; at most 255 are allowed"),
        ({"queue": "a\0b"}, "queue contains a NUL character, which PostgreSQL cannot store"),
        ({"action": ""}, "action must not be empty"),
        ({"action": "\ud800"}, "action contains a lone surrogate, which is not valid text"),
        ({"params": [1]}, "params must be a dict, not list"),
        ({"params": {1: 2}}, "params has the key 1, which is not a string"),
        ({"params": {"a": {"b": {2: 1}}}}, "params.a.b has the key 2, which is not a string"),
        ({"params": {"a": [math.nan]}}, "params.a[0] is nan, which JSON cannot hold"),
        ({"params": {"a": math.inf}}, "params.a is inf, which JSON cannot hold"),
        ({"params": {"a": "x\0"}}, "params.a contains a NUL character, which PostgreSQL cannot store"),
        ({"params": {"a\0": 1}}, "a key of params contains a NUL character, which PostgreSQL cannot store"),
        ({"params": {"a": {1, 2}}}, "params.a is a set, which is not JSON"),
        ({"timeout": -1}, "timeout must not be negative"),
        ({"timeout": timedelta(seconds=-1)}, "timeout must not be negative"),
        ({"timeout": "60"}, "timeout must be seconds or a timedelta, not str"),
        ({"timeout": True}, "timeout must be seconds or a timedelta, not bool"),
        ({"timeout": math.nan}, "timeout must be finite, not nan"),
        ({"max_backoff": -0.5}, "max_backoff must not be negative"),
        ({"max_attempts": 0}, "max_attempts must be between 1 and 2147483647, not 0"),
        ({"max_attempts": 1.5}, "max_attempts must be an integer, not float"),
        ({"priority": 2**31}, "priority must be between -2147483647 and 2147483647, not 2147483648"),
        (
            {"scheduled_at": datetime(2026, 1, 1)},
            "scheduled_at has no time zone; use datetime.now(UTC), or a timedelta from now",
        ),
        (
            {"scheduled_at": "tomorrow"},
            "scheduled_at must be an aware datetime or a timedelta, not str",
        ),
    ],
)
def test_bad_input_is_refused_with_its_fault(values: dict[str, Any], fault: str) -> None:
    assert faults(**values) == (fault,)


def test_every_fault_is_listed_at_once() -> None:
    found = faults(queue="", action="", params={"a": math.nan}, timeout=-1, max_attempts=0)
    assert len(found) == 5


def test_params_that_are_nested_too_deep_are_refused() -> None:
    params: dict[str, Any] = {}
    for _ in range(300):
        params = {"a": params}
    assert "is nested more than 200 levels deep" in faults(params=params)[0]


@pytest.mark.parametrize("zero", [0, 0.0, timedelta(0)])
def test_zero_is_a_valid_timeout_and_backoff(zero: float | timedelta) -> None:
    row = checked(NewJob("q", "a", {}, timeout=zero, max_backoff=zero))
    assert (row.timeout, row.max_backoff) == (timedelta(0), timedelta(0))


def test_seconds_and_timedeltas_mean_the_same() -> None:
    assert checked(NewJob("q", "a", timeout=1.5)).timeout == timedelta(seconds=1.5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.integers(), children),
    max_leaves=10,
)


@given(JSON)
def test_what_has_no_faults_is_json_that_postgresql_can_hold(value: Any) -> None:
    import json

    if not list(json_faults("value", value)):
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in text
        assert text.encode("utf-8")
        assert json.loads(text) == value


def test_a_failure_report_is_escaped_html() -> None:
    now = datetime.now(UTC)
    job = Job(
        id=7,
        scope="S",
        queue="<q>",
        action="a",
        params={},
        scheduled_at=now,
        inserted_at=now,
        updated_at=now,
        errors=({"error": "<b>", "traceback": "x < y"},),
    )
    subject, body = job.failure_report()
    assert subject == "[S] job 7 (a) of queue <q> failed"
    assert "&lt;b&gt;" in body
    assert "x &lt; y" in body
    assert "<b>" not in body
