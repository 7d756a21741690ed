"""What has happened since the mount began, as plain numbers; docs/interfaces.md has their names outside."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

BREAK_SECONDS: Final = (0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0)


@dataclass(slots=True)
class Histogram:
    """`counts[i]` values were at most `bounds[i]` and above the bound before it, the last count above all of them."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Stats:
    """Counters that only rise. What can be counted at any time (pins, waiting...) is not kept here."""

    breaks_started: int = 0
    breaks_answered: int = 0
    breaks_timed_out: Counter[str] = field(default_factory=Counter)
    """By what was done: deny, revoke, kill."""
    break_seconds: Histogram = field(default_factory=lambda: Histogram(BREAK_SECONDS))
    """From the notice to the answer."""
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (operation, why)."""
    limit_reached: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    """By the path they took: fast, parked."""
    events_lost: int = 0
