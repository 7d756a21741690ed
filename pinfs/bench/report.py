"""Results as JSON and as a table."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pinfs.bench import processes
from pinfs.bench.places import Place
from pinfs.bench.run import Measured, Outcome
from pinfs.bench.seals import SEALED, UNSEALED, row_name
from pinfs.bench.verdict import closing, rivals, verdict

Json = dict[str, object]

VERDICT: Final = "verdict"
"""The heading of the last column, where there is one."""


def base_of(places: Sequence[Place]) -> Place:
    """The place that ratios refer to: the backing directory, or the first one where the backing is unknown."""
    return next((place for place in places if place.role == "backing"), places[0])


def machine() -> Json:
    """The machine that was measured."""
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
            {
                "path": p.path,
                "label": p.label,
                "role": p.role,
                "fstype": p.fstype,
                "pinfs": p.pinfs,
                "cluster": _cluster(p),
            }
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
        "to_unsealed": {path: _rounded(to_unsealed(one, outcome.measured, path)) for path in paths},
        "per_second": {path: _rounded(per_second(one, path)) for path in paths},
        "verdict": _verdict(one, outcome),
        "notes": one.notes,
    }


def _cluster(place: Place) -> Json | None:
    return asdict(place.cluster) if place.cluster is not None else None


def _verdict(one: Measured, outcome: Outcome) -> Json | None:
    found = verdict(one, outcome.places)
    return found and {"to": found.place.path, "ratio": _rounded(found.ratio), "word": found.word}


def per_second(one: Measured, path: str) -> float | None:
    """For a row of several processes: operations a second of all together; None for other rows."""
    us = one.median(path)
    return 1_000_000 / us if us and one.row.group == processes.GROUP else None


def to_fewest(one: Measured, measured: Sequence[Measured], path: str) -> float | None:
    """For a row beside N other pins: its median by that of the same row beside the fewest; None for other rows."""
    what, _, _ = one.row.name.partition(",")
    same = [other for other in measured if other.row.group == "crowd" and other.row.name.startswith(f"{what},")]
    ours, fewest = one.median(path), same[0].median(path) if same else None
    return ours / fewest if one in same[1:] and ours and fewest else None


def to_unsealed(one: Measured, measured: Sequence[Measured], path: str) -> float | None:
    """For a row on a sealed file: its best time by that of the same row without the seal; None for other rows."""
    what, _, how = one.row.name.rpartition(", ")
    if one.row.group != "seal" or how != SEALED:
        return None
    other = next((row for row in measured if row.row.name == row_name(what, UNSEALED)), None)
    ours, unsealed = one.best(path), other.best(path) if other else None
    return ours / unsealed if ours and unsealed else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def as_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: medians of all directories, the ratios of the first one's time to each of the others', and the
    verdict where there are rivals."""
    first, *others = outcome.places
    headings = ["us", *(place.label for place in outcome.places)]
    headings += [f"{first.label}/{place.label}" for place in others]
    judged = bool(rivals(outcome.places))
    headings += [VERDICT] * judged
    rows: list[list[str]] = []
    for at, one in enumerate(outcome.measured):
        if at and one.row.group != outcome.measured[at - 1].row.group:
            rows.append([""] * len(headings))
        times = [_number(one.median(place.path)) for place in outcome.places]
        ratios = [_number(one.ratio(first.path, place.path)) for place in others]
        rows.append([one.row.name, *times, *ratios, *[_judgement(one, outcome.places)] * judged])
    return headings, rows


def _judgement(one: Measured, places: Sequence[Place]) -> str:
    found = verdict(one, places)
    return f"{found.word} {_number(found.ratio)} {found.place.label}" if found else "-"


def remarks(outcome: Outcome) -> list[str]:
    """Notes below the table: why cells are empty, how long crowds took to register, what they cost, what several
    processes get done, and the count of verdicts."""
    labels = {place.path: place.label for place in outcome.places}
    how = f"Microseconds per operation, median of {outcome.plan.rounds} rounds. A ratio above 1: the first is slower."
    missing: dict[str, list[str]] = {}
    for one in outcome.measured:
        for path, why in one.notes.items():
            missing.setdefault(f"{labels[path]}: {why}", []).append(one.row.name)
    notes = [f"{why}: {'; '.join(names)}" for why, names in missing.items()]
    grown = [f"{labels[c.path]}: {c.pins} pins registered in {c.seconds:.1f} s" for c in outcome.crowds]
    hosts = [_host(place) for place in outcome.places if place.cluster is not None]
    return [how, *notes, *hosts, *grown, *_within(outcome), *_together(outcome), *closing(outcome)]


def _host(place: Place) -> str:
    assert place.cluster is not None
    return f"{place.label}: host {place.cluster.host} of its cluster, etcd at {', '.join(place.cluster.endpoints)}"


def _within(outcome: Outcome) -> Iterator[str]:
    """Ratios of two rows in the first directory."""
    first = outcome.places[0].path
    for one in outcome.measured:
        if ratio := to_fewest(one, outcome.measured, first):
            yield f"{one.row.name}: {ratio:.2f} of the fewest"
        if ratio := to_unsealed(one, outcome.measured, first):
            yield f"{one.row.name}: {ratio:.2f} of the time without"


def _together(outcome: Outcome) -> Iterator[str]:
    """What several processes get done."""
    for one in outcome.measured:
        rates = [(place.label, per_second(one, place.path)) for place in outcome.places]
        if texts := [f"{label} {rate:.0f}" for label, rate in rates if rate]:
            yield f"{one.row.name}: {', '.join(texts)} a second"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
