import pgqueuetopia


def test_the_public_names_are_pinned() -> None:
    assert pgqueuetopia.__all__ == sorted(pgqueuetopia.__all__)
    assert {"Queuetopia", "Performer", "Repo", "Job", "Ok", "Err", "Snooze", "NewJob", "action"} <= set(
        pgqueuetopia.__all__
    )


def test_every_public_name_is_there_and_documented() -> None:
    for name in pgqueuetopia.__all__:
        assert getattr(pgqueuetopia, name).__doc__, name
