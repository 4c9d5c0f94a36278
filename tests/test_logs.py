import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import pgqueuetopia
from pgqueuetopia import logs

ROOT = Path(pgqueuetopia.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [known for known in root.handlers if known.name == logs.HANDLER]:
        root.removeHandler(handler)


def documents(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_one_json_document_a_line() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger("pgqueuetopia").bind(scope="Mails").info("node_started", node="n\n1")
    [line] = documents(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "node_started",
        "level": "info",
        "logger": "pgqueuetopia",
        "node": "n\n1",
        "scope": "Mails",
    }


def test_an_exception_is_part_of_its_line() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    try:
        raise ValueError("no")
    except ValueError:
        structlog.get_logger("pgqueuetopia").exception("backoff_raised")
        logging.getLogger("users").exception("theirs")
    ours, theirs = documents(stream)
    assert "ValueError: no" in str(ours["exception"])
    assert "ValueError: no" in str(theirs["exception"])


def test_what_is_not_json_is_logged_all_the_same() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger("pgqueuetopia").info("node_started", where=Path("/x"))
    assert documents(stream)[0]["where"] == "/x"


def test_the_standard_librarys_logging_takes_the_same_way() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logging.getLogger("users").warning("hello %s", "you")
    [line] = documents(stream)
    assert (line["event"], line["level"], line["logger"]) == ("hello you", "warning", "users")


def test_a_terminal_gets_readable_lines_without_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    logs.configure(stream=stream)
    try:
        hidden = "secret"
        raise ValueError(len(hidden))
    except ValueError:
        structlog.get_logger("pgqueuetopia").exception("backoff_raised", job=7)
    text = stream.getvalue()
    assert "backoff_raised" in text
    assert "job=7" in text
    assert "ValueError: 6" in text
    assert "= 'secret'" not in text
    assert "\x1b" not in text


def test_a_level_silences_what_is_below_it() -> None:
    stream = io.StringIO()
    logs.configure("warning", stream)
    structlog.get_logger("pgqueuetopia").info("node_started")
    logging.getLogger("users").info("hello")
    structlog.get_logger("pgqueuetopia").warning("session_lost")
    assert [line["event"] for line in documents(stream)] == ["session_lost"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("loud")


def test_a_later_call_replaces_an_earlier_one() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first)
    logs.configure(stream=second)
    logging.getLogger("users").warning("hello")
    assert not first.getvalue()
    assert len(documents(second)) == 1


def test_the_library_never_configures_logging() -> None:
    callers = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if "logs.configure(" in path.read_text(encoding="utf-8")
    }
    assert callers == {"cli/app.py"}


def test_every_event_is_in_the_operators_page() -> None:
    page = (ROOT.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = {event for event in events() if f"`{event}`" not in page}
    assert missing == set()


def events() -> Iterator[str]:
    """What the package logs: the first argument of log.info() and the like, where it is a literal."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id="log") | ast.Attribute(attr="_log"),
                        attr="debug" | "info" | "warning" | "error" | "exception",
                    ),
                    args=[ast.Constant(value=str(event)), *_],
                ):
                    yield event
