from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.history import (
    DONE,
    INTERRUPTED,
    History,
    Run,
    faults,
    lost,
    overlaps,
    overtakings,
    read,
    reruns,
    starts_while_suspended,
)

ORDER = {"q": [1, 2]}
FIRST = Run(queue="q", job=1, attempt=1, claim=1, node="a", start=1.0, end=2.0, how=DONE)
SECOND = replace(FIRST, job=2, node="c", start=3.0, end=4.0)
KILLED = replace(FIRST, end=None, how=None)


def test_a_good_history_has_no_faults() -> None:
    assert faults(History([FIRST, SECOND], pauses=[(2.1, 2.9)]), ORDER) == []


def test_a_run_that_a_kill_interrupted_may_be_run_again() -> None:
    again = replace(FIRST, claim=2, attempt=2, node="b", start=1.6, end=2.0)
    assert faults(History([KILLED, again, SECOND], kills={"a": 1.5}), ORDER) == []


def test_a_run_that_a_shutdown_interrupted_may_be_run_again() -> None:
    interrupted = replace(FIRST, end=1.5, how=INTERRUPTED)
    again = replace(FIRST, claim=2, node="b", start=1.6)
    assert faults(History([interrupted, again, SECOND]), ORDER) == []


def test_a_run_that_was_not_saved_before_the_kill_may_be_run_again() -> None:
    again = replace(FIRST, claim=2, node="b", start=2.2, end=2.4)
    assert faults(History([FIRST, again, SECOND], kills={"a": 2.1}), ORDER) == []


def test_a_lost_job_is_found() -> None:
    assert list(lost(History([FIRST]), ORDER)) == ["lost: job 2 of q was never done"]


def test_a_job_that_only_failed_is_lost() -> None:
    assert len(list(lost(History([FIRST, replace(SECOND, how="failed")]), ORDER))) == 1


def test_an_overlap_is_found() -> None:
    assert len(list(overlaps(History([FIRST, replace(SECOND, start=1.9)])))) == 1


def test_an_overlap_with_a_run_other_than_the_last_is_found() -> None:
    long, short = replace(FIRST, end=9.0), replace(SECOND, start=1.1, end=1.2)
    third = replace(SECOND, job=3, start=8.0, end=8.5)
    assert len(list(overlaps(History([long, short, third])))) == 2


def test_a_start_before_the_kill_of_the_node_that_runs_the_queue_is_an_overlap() -> None:
    assert len(list(overlaps(History([KILLED, SECOND], kills={"a": 3.5})))) == 1


def test_a_start_behind_a_run_that_never_ended_is_an_overlap() -> None:
    assert len(list(overlaps(History([KILLED, SECOND])))) == 1


def test_runs_of_two_queues_may_overlap() -> None:
    assert not list(overlaps(History([FIRST, replace(SECOND, queue="r", start=1.5)])))


def test_an_overtaking_is_found() -> None:
    late = replace(FIRST, start=5.0, end=6.0)
    assert len(list(overtakings(History([SECOND, late]), ORDER))) == 1


def test_a_job_that_starts_behind_one_that_failed_has_overtaken_it() -> None:
    assert len(list(overtakings(History([replace(FIRST, how="failed"), SECOND]), ORDER))) == 1


def test_a_job_of_no_known_queue_is_found() -> None:
    assert len(list(overtakings(History([replace(FIRST, job=7)]), ORDER))) == 1


def test_a_rerun_of_a_finished_job_is_found() -> None:
    again = replace(FIRST, claim=2, start=2.5, end=2.6)
    assert len(list(reruns(History([FIRST, again])))) == 1


def test_a_rerun_long_after_its_end_is_found_though_its_node_was_killed() -> None:
    again = replace(FIRST, claim=2, node="b", start=9.0)
    assert len(list(reruns(History([FIRST, again], kills={"a": 8.0})))) == 1


def test_a_rerun_of_a_job_whose_node_went_on_with_the_next_is_found() -> None:
    went_on = replace(SECOND, node=FIRST.node)
    again = replace(FIRST, claim=2, node="b", start=4.2, end=4.4)
    assert len(list(reruns(History([FIRST, went_on, again], kills={"a": 3.5})))) == 1


def test_a_claim_that_came_twice_is_found() -> None:
    again = replace(FIRST, node="b", start=1.6)
    assert len(list(reruns(History([KILLED, again], kills={"a": 1.5})))) == 1


def test_a_start_while_suspended_is_found() -> None:
    assert len(list(starts_while_suspended(History([FIRST, SECOND], pauses=[(2.5, 3.5)])))) == 1


def test_what_was_written_is_read_with_its_unfinished_runs(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    path.write_text(
        '{"queue": "q", "job": 1, "attempt": 1, "claim": 1, "node": "a", "start": 1.0}\n'
        '{"job": 1, "claim": 1, "end": 2.0, "how": "done"}\n'
        '{"queue": "q", "job": 2, "attempt": 1, "claim": 1, "node": "a", "start": 3.0}\n'
        '{"job": 2, "cla'
    )
    assert read([path]) == [FIRST, replace(SECOND, node="a", end=None, how=None)]


def test_a_claim_that_was_started_twice_is_refused(tmp_path: Path) -> None:
    line = '{"queue": "q", "job": 1, "attempt": 1, "claim": 1, "node": "a", "start": 1.0}\n'
    path = tmp_path / "node.jsonl"
    path.write_text(line * 2)
    with pytest.raises(AssertionError, match="started twice"):
        read([path])
