"""Results as JSON and as a table."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pinfs.bench.places import Place
from pinfs.bench.run import Measured, Outcome

Json = dict[str, object]


def base_of(places: Sequence[Place]) -> Place:
    """What ratios are to: the backing directory, or the first one where there is none to be seen."""
    return next((place for place in places if place.role == "backing"), places[0])


def machine() -> Json:
    """Where this was measured."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def as_json(outcome: Outcome) -> Json:
    """The whole result. Times in microseconds per operation; a ratio above 1 is slower than the base."""
    base = base_of(outcome.places)
    return {
        "v": 1,
        "machine": machine(),
        "base": base.path,
        "directories": [
            {"path": p.path, "label": p.label, "role": p.role, "fstype": p.fstype, "pinfs": p.pinfs}
            for p in outcome.places
        ],
        "rows": [_row(one, outcome, base) for one in outcome.measured],
        "crowds": [crowd._asdict() for crowd in outcome.crowds],
    }


def _row(one: Measured, outcome: Outcome, base: Place) -> Json:
    paths = [place.path for place in outcome.places]
    first = paths[0]
    return {
        "group": one.row.group,
        "name": one.row.name,
        "unit": "us",
        "rounds": outcome.plan.rounds,
        "median": {path: _rounded(one.median(path)) for path in paths},
        "best": {path: _rounded(one.best(path)) for path in paths},
        "ratio": {path: _rounded(one.ratio(path, base.path)) for path in paths},
        "first_to": {path: _rounded(one.ratio(first, path)) for path in paths[1:]},
        "to_fewest": {path: _rounded(to_fewest(one, outcome.measured, path)) for path in paths},
        "notes": one.notes,
    }


def to_fewest(one: Measured, measured: Sequence[Measured], path: str) -> float | None:
    """For a row beside N other pins: its median by that of the same row beside the fewest; None for other rows."""
    what, _, _ = one.row.name.partition(",")
    same = [other for other in measured if other.row.group == "crowd" and other.row.name.startswith(f"{what},")]
    ours, fewest = one.median(path), same[0].median(path) if same else None
    return ours / fewest if one in same[1:] and ours and fewest else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def as_table(outcome: Outcome) -> Table:
    """Medians of all directories, and what the first one's time is to each of the others'."""
    places, measured = outcome.places, outcome.measured
    first, *others = places
    title = (
        f"us per operation, median of {outcome.plan.rounds} rounds; ratios of times: above 1, {first.label} is slower"
    )
    table = Table(title=title)
    table.add_column("")
    for place in places:
        table.add_column(place.label, justify="right")
    for place in others:
        table.add_column(f"{first.label}/{place.label}", justify="right", style="bold")
    for one, after in zip(measured, [*measured[1:], None], strict=True):
        cells = [_time(one.median(place.path)) for place in places]
        cells += [_times(one.ratio(first.path, place.path)) for place in others]
        table.add_row(one.row.name, *cells, end_section=after is None or after.row.group != one.row.group)
    return table


def remarks(outcome: Outcome) -> list[str]:
    """What the table has no room for: why cells are empty, how long a crowd took to register, and what it costs."""
    labels = {place.path: place.label for place in outcome.places}
    missing: dict[str, list[str]] = {}
    for one in outcome.measured:
        for path, why in one.notes.items():
            missing.setdefault(f"{labels[path]}: {why}", []).append(one.row.name)
    notes = [f"{why}: {'; '.join(names)}" for why, names in missing.items()]
    grown = [f"{labels[c.path]}: {c.pins} pins registered in {c.seconds:.1f} s" for c in outcome.crowds]
    ratios = [(one, to_fewest(one, outcome.measured, outcome.places[0].path)) for one in outcome.measured]
    return [*notes, *grown, *(f"{one.row.name}: {ratio:.2f} of the fewest" for one, ratio in ratios if ratio)]


def _time(us: float | None) -> str:
    return "-" if us is None else f"{us:.2f}" if us < 100 else f"{us:.0f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
