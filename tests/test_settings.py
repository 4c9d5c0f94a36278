import pytest

from pgqueuetopia import Misconfigured, Settings


class MailSettings(Settings):
    rate: int = 10
    names: tuple[str, ...] = ()
    greeting: str = "hello"


def test_values_are_parsed_from_text() -> None:
    settings, faults = MailSettings().updated(
        {"rate": "20", "suspended": "yes", "names": '["a", "b"]', "greeting": "1", "other": "x"}
    )
    assert settings == MailSettings(rate=20, suspended=True, names=("a", "b"), greeting="1")
    assert faults == {}


def test_a_value_that_does_not_validate_keeps_the_last_good_one() -> None:
    settings, _ = MailSettings().updated({"rate": "20"})
    settings, faults = settings.updated({"rate": "many", "greeting": "hi"})
    assert (settings.rate, settings.greeting) == (20, "hi")
    assert "valid integer" in faults["rate"]


def test_a_config_that_is_gone_gives_the_default_back() -> None:
    settings, _ = MailSettings().updated({"rate": "20"})
    assert settings.updated({})[0].rate == 10


def test_a_field_without_a_default_is_refused() -> None:
    with pytest.raises(Misconfigured, match="needs a default for: rate"):

        class Bad(Settings):
            rate: int
