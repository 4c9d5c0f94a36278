from datetime import timedelta

from pgqueuetopia.backoff import doubling


def test_the_default_backoff_is_2_3_5_9_17_33_seconds() -> None:
    day = timedelta(days=1)
    assert [doubling(n, day).total_seconds() for n in range(6)] == [2, 3, 5, 9, 17, 33]


def test_backoff_is_capped() -> None:
    assert doubling(10, timedelta(seconds=7)) == timedelta(seconds=7)
    assert doubling(1_000_000, timedelta(days=1)) == timedelta(days=1)


def test_a_cap_of_zero_means_at_once() -> None:
    assert doubling(3, timedelta(0)) == timedelta(0)
