"""The page for users of the Ecto Poll Queue: every example of it is run, and every function in one."""

import re
from pathlib import Path
from typing import Any

import pytest

from pgqueuetopia import Queuetopia, testing
from tests.conftest import execute
from tests.support import DEADLINE
from tests.test_from_honeydew import BLOCK, Example, Section, examples

PAGE = Path(__file__).parent.parent / "docs" / "from-ecto-poll-queue.md"
TEXT = PAGE.read_text(encoding="utf-8")
PARTS = [part.split("\n", 1) for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)]
START, *SECTIONS = [Section(part[0], BLOCK.findall(part[1])) for part in PARTS if BLOCK.findall(part[1])]
TABLES = "drop table if exists photos, pages cascade"
FUNCTIONS = """
select format('drop function %s', oid::regprocedure) from pg_proc where proname like 'pgqueuetopia_%photos%'
  or proname like 'pgqueuetopia_%pages%'
"""


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=[section.heading for section in SECTIONS])
async def test_what_a_section_says_is_so(dsn: str, monkeypatch: pytest.MonkeyPatch, section: Section) -> None:
    monkeypatch.setenv("PGQUEUETOPIA_DSN", dsn)
    monkeypatch.delenv("PGQUEUETOPIA_SESSION_DSN", raising=False)
    # What the page waits for takes as long as it takes on a machine that is busy.
    monkeypatch.setattr(testing.eventually, "__kwdefaults__", {"within": DEADLINE, "every": 0.01})
    names: dict[str, Any] = {"__name__": "from_ecto_poll_queue", "_called": set()}
    begun, own = examples(START), examples(section)
    try:
        for example in [*begun, *own]:
            await example.run(names)
        assert not functions_of(own, begun, section) - names["_called"], "these are never called"
    finally:
        for app in [value for value in names.values() if isinstance(value, Queuetopia)]:
            await app.close()
        await names["db"].execute(TABLES)
        for row in await names["db"].fetch(FUNCTIONS):
            await names["db"].execute(row[0])
        await names["db"].close()
        await execute(dsn, "delete from pgqueuetopia.job_configs where scope <> '*'")


def functions_of(own: list[Example], begun: list[Example], section: Section) -> set[str]:
    """The functions that the examples define; the first section calls what the start of the page defines."""
    wanted = own if section is not SECTIONS[0] else [*begun, *own]
    return {function for example in wanted for function in example.functions}


def test_no_example_is_left_out() -> None:
    fences = re.findall(r"^[ >]*(?:```|~~~)", TEXT, re.MULTILINE)
    assert len(fences) == 2 * sum(len(section.blocks) for section in (START, *SECTIONS))
    assert len(START.blocks) == 1
