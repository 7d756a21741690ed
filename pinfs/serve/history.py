"""What a mount tells of the daemons that have served it (SPEC 13): whether it outlives this one, and each take-over."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import pinfs
from pinfs.journal.slots import SLOT, VERSION, Slots
from pinfs.runtime.stats import Histogram

log = logging.getLogger("pinfs.daemon")

PAUSE_SECONDS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
REMEMBERED: Final = 16
MAX_NOT_RESTORED: Final = 64
MAX_REASON: Final = 512  # characters of what was not restored, each


@dataclass(frozen=True)
class Takeover:
    """One daemon after another.

    `at`: Unix seconds. `why` the daemon before ended: died, handed over, hung; `how`: the same in the keeper's words,
    empty where only systemd knows. `pause_ms`: from its end to the first request that this one served. `restored`: how
    many of what. `not_restored`: what is lost, and why. `pid`, `version`: of the daemon that took over.
    """

    at: float
    why: str
    pause_ms: float
    restored: Mapping[str, int]
    not_restored: tuple[str, ...]
    pid: int
    version: str
    how: str = ""

    @property
    def words(self) -> str:
        """For the log."""
        restored = ", ".join(f"{what} {count}" for what, count in self.restored.items())
        lost = f"; {len(self.not_restored)} not restored: {', '.join(self.not_restored)}" if self.not_restored else ""
        ended = self.how or f"the daemon before {_ENDED.get(self.why, self.why)}"
        return f"taken over, as {ended}: {self.pause_ms:.0f} ms; {restored}{lost}"


_ENDED: Final = {"died": "died", "handed over": "has handed over", "hung": "did not answer"}


@dataclass
class History:
    """All take-overs of a mount, and the latest of them, oldest first."""

    takeovers: int = 0
    latest: list[Takeover] = field(default_factory=list)
    pauses: Histogram = field(default_factory=lambda: Histogram(PAUSE_SECONDS))

    def add(self, takeover: Takeover) -> None:
        """Count it, and say so in the log."""
        self.takeovers += 1
        self.latest = [*self.latest[1 - REMEMBERED :], takeover]
        self.pauses.add(takeover.pause_ms / 1000)
        log.log(logging.WARNING if takeover.not_restored else logging.INFO, "%s", takeover.words)

    def shown(self) -> dict[str, Any]:
        """For `.pinfs/status`."""
        last = asdict(self.latest[-1]) if self.latest else None
        return {"takeovers": self.takeovers, "last_takeover": last}

    def to_json(self) -> bytes:
        """For the journal."""
        latest = [asdict(takeover) for takeover in self.latest]
        return json.dumps({"takeovers": self.takeovers, "latest": latest, "pauses": self.pauses.state()}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "History":
        """As the daemon before has written it; empty where that cannot be read, which must not end the mount."""
        history = cls()
        try:
            state = json.loads(text)
            history.latest = [
                Takeover(**{**one, "not_restored": tuple(one["not_restored"])}) for one in state["latest"]
            ]
            history.takeovers = int(state["takeovers"])
            history.pauses.restore(state["pauses"])
        except (ValueError, TypeError, KeyError) as e:
            log.warning("the history of the mount cannot be read: %s", e)
        return history


class End(NamedTuple):
    """Of the daemon before: `why` and `how` as in Takeover, `at_s` in seconds of CLOCK_MONOTONIC."""

    why: str
    at_s: float
    how: str = ""


def takeover(end: End, restored: Mapping[str, int], not_restored: Iterable[str]) -> Takeover:
    """One that is done now."""
    pause_ms = round(max(0.0, time.monotonic() - end.at_s) * 1000, 1)
    lost = tuple(text[:MAX_REASON] for text in not_restored)[:MAX_NOT_RESTORED]
    at = round(time.time(), 3)
    return Takeover(at, end.why, pause_ms, dict(restored), lost, os.getpid(), pinfs.__version__, end.how)


@dataclass(frozen=True)
class Survival:
    """Whether the mount outlives its daemon. `keeper`: pinfs, systemd; None: none. `unavailable_because`: why it does
    not; empty: it does."""

    keeper: str | None
    unavailable_because: str
    slots: Slots | None
    store: Mapping[str, Any] = field(default_factory=dict)
    """What the keeper's side tells besides."""

    def shown(self) -> dict[str, Any]:
        """For `.pinfs/status`. `journal_bytes`: memory that the journal takes; `records`: slots in use."""
        return {
            **self.store,
            "keeper": self.keeper,
            "unavailable_because": self.unavailable_because or None,
            "journal_version": VERSION,
            "journal_bytes": 0 if self.slots is None else self.slots.reserved * SLOT,
            "records": 0 if self.slots is None else len(self.slots),
        }

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """For the metrics: name, what it is, value."""
        shown = self.shown()
        yield "survives", "1 where the mount outlives its daemon", float(not self.unavailable_because)
        yield "journal_records", "Slots of the journal in use", shown["records"]
        yield "journal_bytes", "Memory that the journal takes", shown["journal_bytes"]


@dataclass
class Life:
    """Of one mount, through all its daemons."""

    history: History = field(default_factory=History)
    survival: Callable[[], Survival] = lambda: Survival(None, "nothing is written down", None)

    def shown(self) -> dict[str, Any]:
        """For `.pinfs/status`."""
        return {"survives": self.survival().shown(), **self.history.shown()}
