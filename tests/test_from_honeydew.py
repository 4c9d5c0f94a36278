"""The page for users of Honeydew: every example of it is run, and every function that one defines."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pgqueuetopia import Queuetopia, testing
from tests.conftest import execute
from tests.support import DEADLINE

PAGE = Path(__file__).parent.parent / "docs" / "from-honeydew.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Section(NamedTuple):
    """A heading, and the examples that stand under it."""

    heading: str
    blocks: list[str]


def sections() -> Iterator[Section]:
    for part in re.split(r"^## ", TEXT, flags=re.MULTILINE):
        yield Section(part.split("\n", 1)[0], BLOCK.findall(part))


START, *SECTIONS = (section for section in sections() if section.blocks)


class Example(ast.NodeTransformer):
    """A block as it is run: each function tells when it is called."""

    def __init__(self, name: str, block: str) -> None:
        self.name = name
        self.functions: set[str] = set()
        self.tree = self.visit(ast.parse(block, name))

    def visit_FunctionDef(self, function: ast.FunctionDef) -> ast.FunctionDef:
        self._have_told(function)
        return function

    def visit_AsyncFunctionDef(self, function: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        self._have_told(function)
        return function

    def _have_told(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.generic_visit(function)
        called = f"{self.name}, line {function.lineno}: {function.name}"
        self.functions.add(called)
        function.body = [*ast.parse(f"_called.add({called!r})").body, *function.body]

    async def run(self, names: dict[str, Any]) -> None:
        tree = ast.fix_missing_locations(self.tree)
        code = compile(tree, self.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, names)
        if inspect.isawaitable(waiting):
            await waiting


def examples(section: Section) -> list[Example]:
    return [Example(f"{section.heading} {n}", block) for n, block in enumerate(section.blocks, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=[section.heading for section in SECTIONS])
async def test_what_a_section_says_is_so(dsn: str, monkeypatch: pytest.MonkeyPatch, section: Section) -> None:
    monkeypatch.setenv("PGQUEUETOPIA_DSN", dsn)
    monkeypatch.delenv("PGQUEUETOPIA_SESSION_DSN", raising=False)
    # What the page waits for takes as long as it takes on a machine that is busy.
    monkeypatch.setattr(testing.eventually, "__kwdefaults__", {"within": DEADLINE, "every": 0.01})
    monkeypatch.setattr(Queuetopia.reply, "__kwdefaults__", {"timeout": DEADLINE})
    names: dict[str, Any] = {"__name__": "from_honeydew", "_called": set()}
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
        await execute(dsn, "drop schema if exists shop cascade")


def test_no_example_is_left_out() -> None:
    """Nor one that is indented, or fenced with tildes, or with another word for Python."""
    fences = re.findall(r"^[ >]*(?:```|~~~)", TEXT, re.MULTILINE)
    assert len(fences) == 2 * sum(len(section.blocks) for section in (START, *SECTIONS))
    assert len(START.blocks) == 1
