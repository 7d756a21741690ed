"""What has happened since the mount began, as plain numbers; docs/interfaces.md has their names outside."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

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

    def state(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "total": self.total}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting, if the bounds are the same."""
        if list(state["bounds"]) == list(self.bounds):
            self.counts, self.total = list(state["counts"]), float(state["total"])


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

    def state(self) -> dict[str, Any]:
        """All of them, as JSON values."""
        return {
            "breaks_started": self.breaks_started,
            "breaks_answered": self.breaks_answered,
            "breaks_timed_out": dict(self.breaks_timed_out),
            "break_seconds": self.break_seconds.state(),
            "refusals": [[*key, count] for key, count in self.refusals.items()],
            "limit_reached": dict(self.limit_reached),
            "requests": dict(self.requests),
            "events_lost": self.events_lost,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting where another daemon has ended."""
        self.breaks_started, self.breaks_answered = state["breaks_started"], state["breaks_answered"]
        self.events_lost = state["events_lost"]
        for counts, kept in (
            (self.breaks_timed_out, state["breaks_timed_out"]),
            (self.limit_reached, state["limit_reached"]),
            (self.requests, state["requests"]),
        ):
            counts.update(kept)
        self.refusals.update({(op, why): count for op, why, count in state["refusals"]})
        self.break_seconds.restore(state["break_seconds"])
