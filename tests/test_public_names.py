import pgqueuetopia

PUBLIC = """
Queuetopia Performer Repo Job NewJob Ok Err Snooze action
Abandon Move Retry ExponentialRetry Log Retrying Moved Worker Workers LRU MRU LRUNode progress
TableQueue TableStatus TableOperations
"""


def test_the_public_names_are_pinned() -> None:
    assert len(pgqueuetopia.__all__) == len(set(pgqueuetopia.__all__))
    assert set(PUBLIC.split()) <= set(pgqueuetopia.__all__)


def test_every_public_name_is_there_and_documented() -> None:
    for name in pgqueuetopia.__all__:
        assert getattr(pgqueuetopia, name).__doc__, name
