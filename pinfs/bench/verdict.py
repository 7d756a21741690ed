"""How the first directory stands, row by row, against the best of the others that are not its backing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from pinfs.bench.places import Place
from pinfs.bench.run import Measured, Outcome

AHEAD: Final = "ahead"
EVEN: Final = "even"
BEHIND: Final = "behind"
EVEN_FROM: Final = 0.95
EVEN_TO: Final = 1.05


class Verdict(NamedTuple):
    """`ratio`: the first directory's time by that of `place`, the fastest of the others."""

    place: Place
    ratio: float

    @property
    def word(self) -> str:
        """AHEAD, EVEN or BEHIND."""
        return AHEAD if self.ratio < EVEN_FROM else EVEN if self.ratio <= EVEN_TO else BEHIND


def rivals(places: Sequence[Place]) -> list[Place]:
    """The directories that the first one is compared with: its backing, below it, is none."""
    return [place for place in places[1:] if place.role != "backing"]


def verdict(one: Measured, places: Sequence[Place]) -> Verdict | None:
    """None where the first directory has no result, or none of its rivals has. The fastest rival is the one with the
    highest ratio, so that the verdict is never better than a ratio that stands beside it."""
    ratios = [(place, one.ratio(places[0].path, place.path)) for place in rivals(places)]
    found = [Verdict(place, ratio) for place, ratio in ratios if ratio is not None]
    return max(found, key=lambda verdict: verdict.ratio, default=None)


def closing(outcome: Outcome) -> Iterator[str]:
    """One line that counts the verdicts; none where there are none."""
    found = [(one.row.name, verdict(one, outcome.places)) for one in outcome.measured]
    verdicts = [(name, one) for name, one in found if one]
    if not verdicts:
        return
    count = Counter(one.word for _, one in verdicts)
    rows = "row" if count[AHEAD] == 1 else "rows"
    text = f"{AHEAD} in {count[AHEAD]} {rows}, {EVEN} in {count[EVEN]}, {BEHIND} in {count[BEHIND]}"
    row, worst = max(verdicts, key=lambda named: named[1].ratio)
    farthest = f"; farthest {BEHIND}: {row} {worst.ratio:.2f}" if worst.word == BEHIND else ""
    yield f"{outcome.places[0].label} against the fastest of the others: {text}{farthest}"
