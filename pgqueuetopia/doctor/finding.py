"""What one check found."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    check: str
    level: Level
    what: str
    advice: str = ""


def worst(findings: Sequence[Finding]) -> Level:
    """The level of the worst finding."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index)
