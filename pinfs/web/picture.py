"""Makes what the page shows from what the control directory says. Pure; bounded whatever the mount holds.

Names and notes are untrusted texts: here they become printable characters of bounded length, and the page puts them
into text nodes only.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any, Final

from pinfs.observe.wording import printable

Json = dict[str, Any]
SizeOf = Callable[[Json], int | None]

MAX_PINS: Final = 10_000  # read at once; reading must not slow the mount down
MAX_FILES: Final = 40
MAX_PINS_OF_A_FILE: Final = 12
MAX_HOLDERS: Final = 20
MAX_RULES: Final = 20
MAX_CHARACTERS: Final = 240
CELLS: Final = 1000  # of the bar of a file

KINDS: Final = ("lease", "deny", "breaking")  # on the bar, a later kind hides an earlier one
_SHOWN: Final = ("id", "name", "start", "length", "mode", "state", "deadline", "owner", "dirty", "since", "pid", "uid")


def text(value: object) -> str:
    """An untrusted text, printable and of bounded length."""
    shown = printable(str(value)[: MAX_CHARACTERS + 1])
    return shown if len(shown) <= MAX_CHARACTERS else shown[: MAX_CHARACTERS - 1] + "…"


def kind_of(pin: Json) -> str:
    return "breaking" if pin["state"] == "breaking" else str(pin["mode"])


def _urgency(pin: Json) -> tuple[bool, int, int]:
    return pin["state"] != "breaking", pin["start"], pin["id"]


# Files


def files(pins: Iterable[Json], size_of: SizeOf) -> Json:
    """The files with the most urgent pins, each with its bar; `more` counts those left out."""
    by_inode: dict[int, list[Json]] = {}
    for pin in pins:
        by_inode.setdefault(pin["inode"], []).append(pin)
    groups = sorted(by_inode.values(), key=_urgency_of_file)
    return {"files": [_file(group, size_of) for group in groups[:MAX_FILES]], "more": max(0, len(groups) - MAX_FILES)}


def _urgency_of_file(pins: list[Json]) -> tuple[bool, str]:
    return all(pin["state"] != "breaking" for pin in pins), pins[0]["path"] or ""


def _file(pins: list[Json], size_of: SizeOf) -> Json:
    first = pins[0]
    size = size_of(first) if first["path"] is not None else None
    extent = max([size or 0, *(pin["start"] + max(pin["length"], 1) for pin in pins)])
    shown = sorted(pins, key=_urgency)[:MAX_PINS_OF_A_FILE]
    return {
        "path": None if first["path"] is None else text(first["path"]),
        "inode": first["inode"],
        "size": size,
        "extent": extent,
        "sealed": bool(first.get("sealed")),
        "bar": list(bar(pins, extent)),
        "pins": [_pin(pin) for pin in shown],
        "count": len(pins),
        "more": len(pins) - len(shown),
    }


def _pin(pin: Json) -> Json:
    known = {key: pin[key] for key in _SHOWN if pin.get(key) is not None}
    return known | {key: text(pin[key]) for key in ("name", "comm", "note") if pin.get(key)}


def bar(pins: Iterable[Json], extent: int) -> Iterator[tuple[int, int, str]]:
    """(first cell, cell after the last, kind) of each stretch of the file that is pinned, at most CELLS of them."""
    steps = {kind: [0] * (CELLS + 1) for kind in KINDS}
    for pin in pins:
        end = min(pin["start"] + pin["length"], extent) if pin["length"] else extent
        first = min(pin["start"] * CELLS // extent, CELLS - 1)
        steps[kind_of(pin)][first] += 1
        steps[kind_of(pin)][max(first + 1, -(-end * CELLS // extent))] -= 1
    cells: list[str | None] = [None] * CELLS
    for kind, changes in steps.items():
        for cell, count in enumerate(accumulate(changes[:CELLS])):
            if count:
                cells[cell] = kind
    for kind_or_none, stretch in groupby(enumerate(cells), key=itemgetter(1)):
        numbers = [cell for cell, _ in stretch]
        if kind_or_none is not None:
            yield numbers[0], numbers[-1] + 1, kind_or_none


# Holders, policy


def holders(pins: Iterable[Json]) -> Json:
    """Holders and their numbers of pins, those of breaking pins first. Only root sees holders of foreign pins."""
    found: dict[tuple[Any, ...], Json] = {}
    for pin in pins:
        pid, uid, comm = process = (pin.get("pid"), pin.get("uid"), pin.get("comm"))
        shown = {"pid": pid, "uid": uid, "comm": text(comm or ""), "pins": 0, "breaking": 0}
        holder = found.setdefault(process, shown)
        holder["pins"] += 1
        holder["breaking"] += pin["state"] == "breaking"
    ranked = sorted(found.values(), key=lambda holder: (-holder["breaking"], -holder["pins"]))
    return {"holders": ranked[:MAX_HOLDERS], "more": max(0, len(ranked) - MAX_HOLDERS)}


def policy(values: Json) -> Json:
    """The policy in force: the mount's own values, and the rules."""
    rules = values.get("rule", [])
    shown = [
        {"path": text(rule.get("path")), "values": [(text(k), text(v)) for k, v in rule.items() if k != "path"]}
        for rule in rules[:MAX_RULES]
    ]
    own = [(text(key), text(value)) for key, value in values.items() if key != "rule"]
    return {"values": own, "rules": shown, "more": max(0, len(rules) - MAX_RULES)}
