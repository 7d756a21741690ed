"""The findings of `pinfs doctor`, each with a level and a fix."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # works, but a feature or speed is lost
    FAIL = "fail"  # pinfs cannot mount, or a pin could not keep its promise


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. `fix` is empty for level OK."""

    check: str
    level: Level
    text: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, fix: str) -> Finding:
    return Finding(check, Level.WARN, text, fix)


def bad(check: str, text: str, fix: str) -> Finding:
    return Finding(check, Level.FAIL, text, fix)


def has_failures(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)
