"""The page for users of JobQueue: every example of it is run, and every function that one defines."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgqueuetopia import Queuetopia, testing
from tests.support import DEADLINE
from tests.test_from_honeydew import BLOCK, Section, examples

PAGE = Path(__file__).parent.parent / "docs" / "from-jobqueue.md"
TEXT = PAGE.read_text(encoding="utf-8")


def sections() -> Iterator[Section]:
    for part in re.split(r"^## ", TEXT, flags=re.MULTILINE):
        yield Section(part.split("\n", 1)[0], BLOCK.findall(part))


START, *SECTIONS = (section for section in sections() if section.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=[section.heading for section in SECTIONS])
async def test_what_a_section_says_is_so(dsn: str, monkeypatch: pytest.MonkeyPatch, section: Section) -> None:
    monkeypatch.setenv("PGQUEUETOPIA_DSN", dsn)
    monkeypatch.delenv("PGQUEUETOPIA_SESSION_DSN", raising=False)
    # What the page waits for takes as long as it takes on a machine that is busy.
    monkeypatch.setattr(testing.eventually, "__kwdefaults__", {"within": DEADLINE, "every": 0.01})
    monkeypatch.setattr(Queuetopia.reply, "__kwdefaults__", {"timeout": DEADLINE})
    names: dict[str, Any] = {"__name__": "from_jobqueue", "_called": set()}
    begun, own = examples(START), examples(section)
    try:
        for example in [*begun, *own]:
            await example.run(names)
        # The first section calls what the start of the page defines.
        wanted = own if section is not SECTIONS[0] else [*begun, *own]
        functions = {function for example in wanted for function in example.functions}
        assert not functions - names["_called"], "these are never called"
    finally:
        for app in [value for value in names.values() if isinstance(value, Queuetopia)]:
            await app.close()


def test_no_example_is_left_out() -> None:
    """Nor one that is indented, or fenced with tildes, or with another word for Python."""
    fences = re.findall(r"^[ >]*(?:```|~~~)", TEXT, re.MULTILINE)
    assert len(fences) == 2 * sum(len(section.blocks) for section in (START, *SECTIONS))
    assert len(START.blocks) == 1
