"""A reader of SQL that knows what CockroachDB v24.3 has of what we use, and refuses everything else.

What is listed is that release as far as we know it: some was checked against its documentation, none
against a server.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

RELEASE = "v24.3"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of the grammar.
KEYWORDS = _words(
    """
    add alter and as asc between by case column conflict create default delete desc distinct do drop else end
    excluded exists filter for from if in index insert into is join key like limit locked materialized not
    null of on or order primary returning schema select set skip table then update values when where with
    """
)
# Of PostgreSQL's, and not there, or not as they are in PostgreSQL.
LACKING = {
    "listen": "there are no notifications",
    "notify": "there are no notifications",
    "unlisten": "there are no notifications",
    "concurrently": "every index is made online; the word is accepted, and means nothing",
    "referencing": "triggers have no transition tables",
    "statement": "triggers are for rows alone",
    "trigger": "v24.3 has them, and not with the syntax of PostgreSQL's functions",
    "language": "functions in PL/pgSQL differ",
    "vacuum": "there is nothing to be vacuumed",
}
FUNCTIONS = _words(
    """
    abs any clock_timestamp coalesce count exists extract format_type greatest jsonb_build_object least lower
    min now statement_timestamp trim unnest
    """
)
TYPES = _words("bigint boolean integer int8 jsonb text timestamptz uuid")
# What our own statements call what they hand on, and the names of the tables and columns that they read.
OURS = _words(
    """
    a again at c claim consistency due e epoch found given_up held held_up inserted_at key_1 key_2 n name node
    outcome private progress scope t type until updated_at value wait was ready delayed in_progress stale
    abandoned job_configs pgqueuetopia nspname relname attname atttypid attnum attisdropped attrelid oid
    relnamespace true false deleted
    """
)
OPERATORS = frozenset(["=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "||", "->>", "?", "::", ","])
CATALOGS = frozenset(["pg_attribute", "pg_class", "pg_namespace"])

TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<parameter>\$\d+)
    | (?P<word>[a-z_][a-z0-9_$]*)
    | (?P<brackets>\[\])
    | (?P<mark>[().;])
    | (?P<operator>::|,|[-+*/<>=~!@\#%^&|?]+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
MODIFIES = ("insert", "update", "delete")


class Lacks(Exception):
    """CockroachDB does not have this."""


@dataclass
class Group:
    """What stands between two parentheses, as words and groups."""

    parts: "list[str | Group]" = field(default_factory=list)

    def words(self) -> Iterator[str]:
        """The words of this level, without those in parentheses."""
        return (part for part in self.parts if isinstance(part, str))

    def groups(self, depth: int = 0) -> "Iterator[tuple[Group, int]]":
        """This one and all within it, each with its depth."""
        yield self, depth
        for part in self.parts:
            if isinstance(part, Group):
                yield from part.groups(depth + 1)


def check(statement: str) -> None:
    """Read a statement; raises Lacks with what is wrong with it."""
    tokens = list(_tokens(statement))
    if tokens[0][1] == "do":
        raise Lacks("there are no anonymous blocks")
    tree = _tree(tokens)
    _check_words(tokens)
    for group, depth in tree.groups():
        _check_group(group, depth)


def _tokens(statement: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(statement):
        found = TOKEN.match(statement, place)
        if found is None:
            raise Lacks(f"what is {statement[place : place + 20]!r}?")
        place = found.end()
        if found.lastgroup != "space":
            yield str(found.lastgroup), found.group().lower() if found.lastgroup == "word" else found.group()


def _tree(tokens: Sequence[tuple[str, str]]) -> Group:
    stack = [Group()]
    for _, text in tokens:
        if text == "(":
            stack[-1].parts.append(inner := Group())
            stack.append(inner)
        elif text == ")":
            stack.pop()
        else:
            stack[-1].parts.append(text)
    if len(stack) != 1:
        raise Lacks("parentheses do not match")
    return stack[0]


def _check_words(tokens: Sequence[tuple[str, str]]) -> None:
    before, after = [("", ""), *tokens[:-1]], [*tokens[1:], ("", "")]
    ours = OURS | set(_aliases(tokens))
    for (kind, text), (_, last), (_, following) in zip(tokens, before, after, strict=True):
        if kind == "operator" and text not in OPERATORS:
            raise Lacks(f"operator {text}" + (": of integers it is a decimal there" if text == "/" else ""))
        if kind == "word" and (fault := _fault(last, text, following, ours)):
            raise Lacks(fault)


def _fault(last: str, text: str, following: str, ours: frozenset[str]) -> str | None:
    """What is wrong with a word between two others."""
    if text in LACKING:
        return f"{text}: {LACKING[text]}"
    if last == "::" and text not in TYPES:
        return f"type {text}"
    if following == "(" and text not in FUNCTIONS | KEYWORDS | ours:
        return f"function {text}"
    if text not in KEYWORDS | FUNCTIONS | TYPES | CATALOGS | ours:
        return f"word {text}"
    return None


def _aliases(tokens: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What the statement itself names: what follows `as`, and what stands before it."""
    for (_, first), (kind, second) in pairwise(tokens):
        if kind == "word" and first == "as":
            yield second
        if second == "as":
            yield first


def _check_group(group: Group, depth: int) -> None:
    words = list(group.words())
    if words[:1] == ["with"] and depth and any(_modifies(part) for part in group.parts):
        raise Lacks("a WITH that modifies must be at the top level")
    changed = [_target(part) for part in group.parts if isinstance(part, Group) and _modifies(part)]
    changed += [_target(group)] if any(word in MODIFIES for word in words) else []
    if len([one for one in changed if one]) != len({one for one in changed if one}):
        raise Lacks("one statement modifies a table twice")
    if "fetch" in words or "cursor" in words:
        raise Lacks("a portal is left open")


def _modifies(part: "str | Group") -> bool:
    return isinstance(part, Group) and bool(part.parts) and part.parts[0] in MODIFIES


def _target(group: Group) -> str:
    """The table that a group modifies."""
    words = list(group.words())
    for n, word in enumerate(words):
        if word == "update" and (n == 0 or words[n - 1] != "for"):
            return "".join(words[n + 1 : n + 4])
        if word in ("into", "from") and n and words[n - 1] in ("insert", "delete"):
            return "".join(words[n + 1 : n + 4])
    return ""
