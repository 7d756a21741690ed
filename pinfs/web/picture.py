"""Makes what the page shows from what the control directory says. Pure; bounded whatever the mount holds.

Names and notes are untrusted texts: here they become printable characters of bounded length, and the page puts them
into text nodes only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from pinfs.observe import activity
from pinfs.observe.wording import printable

Json = dict[str, Any]
SizeOf = Callable[[Json], int | None]

MAX_PINS: Final = 10_000  # read at once; reading must not slow the mount down
MAX_FILES: Final = 40
MAX_PINS_OF_A_FILE: Final = 12
MAX_HOLDERS: Final = 20
MAX_PINS_OF_A_HOLDER: Final = 12
MAX_OLDEST: Final = 100
MAX_BREAKS: Final = 20
MAX_HOSTS: Final = 50
MAX_RULES: Final = 20
MAX_FIND: Final = 100
"""Characters of what a viewer searches for."""
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


# What a viewer asks for

SHOWN: Final = ("all", "breaking", "lease", "deny")
GROUPINGS: Final = ("file", "holder", "age")


class Query(NamedTuple):
    """Which pins a viewer wants to see, and in which order."""

    find: str = ""
    """Words that must all occur: in the path, the program, the note, the name; or be the number of a pin, process or
    user."""
    show: str = "all"
    """One of SHOWN."""
    by: str = "file"
    """One of GROUPINGS."""

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> "Query":
        """From the address of a request; what is not known there is as if it were not said."""
        show, by = asked.get("show", ""), asked.get("by", "")
        find = " ".join(asked.get("find", "")[:MAX_FIND].casefold().split())
        return cls(find, show if show in SHOWN else "all", by if by in GROUPINGS else "file")

    def selects(self, pin: Json) -> bool:
        """Whether the viewer wants to see this pin."""
        if self.show != "all" and self.show != (pin["state"] if self.show == "breaking" else pin["mode"]):
            return False
        if not self.find:
            return True
        numbers = {str(pin.get(key)) for key in ("id", "pid", "uid")}
        texts = [str(pin[key]).casefold() for key in ("path", "comm", "note", "name") if pin.get(key)]
        return all(word in numbers or any(word in found for found in texts) for word in self.find.split())


def pins(found: Iterable[Json], query: Query, size_of: SizeOf, now_s: float) -> Json:
    """The pins that `query` selects, as it wants them; `selected` counts them all."""
    wanted = [pin for pin in found if query.selects(pin)]
    if query.by == "file":
        shown = files(wanted, size_of)
    elif query.by == "holder":
        shown = by_holder(wanted, now_s)
    else:
        oldest = sorted(wanted, key=lambda pin: pin.get("since", 0.0))
        shown = {"pins": [_pin_with_path(pin) for pin in oldest[:MAX_OLDEST]], "more": max(0, len(oldest) - MAX_OLDEST)}
    return {"by": query.by, "selected": len(wanted), **shown}


def by_holder(pins: Iterable[Json], now_s: float) -> Json:
    """The holders with the most urgent pins, each with its pins, the oldest first."""
    of_holder: dict[activity.Holder, list[Json]] = {}
    for pin in pins:
        of_holder.setdefault(activity.holder_of(pin), []).append(pin)
    ranked = sorted(of_holder.values(), key=lambda held: (all(pin["state"] != "breaking" for pin in held), -len(held)))
    groups = []
    for held in ranked[:MAX_HOLDERS]:
        (holder,) = activity.holders(held, now_s)
        held.sort(key=lambda pin: (pin["state"] != "breaking", pin.get("since", 0.0), pin["id"]))
        shown = [_pin_with_path(pin) for pin in held[:MAX_PINS_OF_A_HOLDER]]
        groups.append({"holder": _holder(holder), "pins": shown, "more": len(held) - len(shown)})
    return {"groups": groups, "more": max(0, len(ranked) - MAX_HOLDERS)}


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


def _pin_with_path(pin: Json) -> Json:
    path = pin["path"]
    return _pin(pin) | {"path": None if path is None else text(path), "inode": pin["inode"]}


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


def holders(pins: Iterable[Json], now_s: float = 0.0) -> Json:
    """Holders and their numbers of pins, those of breaking pins first. Only root sees holders of foreign pins."""
    ranked = activity.holders(pins, now_s)
    return {"holders": [_holder(one) for one in ranked[:MAX_HOLDERS]], "more": max(0, len(ranked) - MAX_HOLDERS)}


def _holder(one: Json) -> Json:
    return {**one, "comm": text(one["comm"] or "")}


def breaks(status: Json, pins: Iterable[Json]) -> Json:
    """The removals that wait, and for which holders; the least time left first."""
    waiting = activity.breaks(status, pins)
    return {"breaks": [_break(one) for one in waiting[:MAX_BREAKS]], "more": max(0, status["waiting"] - MAX_BREAKS)}


def _break(one: Json) -> Json:
    numbers = {key: one.get(key) for key in ("inode", "from", "to", "deadline", "waits_for", "more", "pid", "uid")}
    texts = {key: None if one.get(key) is None else text(one[key]) for key in ("op", "path", "comm", "host")}
    held = [{"pid": by["pid"], "comm": text(by["comm"] or "")} for by in one["holders"] if by["pid"] is not None]
    return {**numbers, **texts, "holders": held}


def hosts(cluster: Json | None) -> Json:
    """The hosts of the cluster, as this one hears them."""
    found = activity.hosts(cluster)
    shown = [{"host": text(one["host"]), "own": bool(one.get("own")), "silent_s": one.get("silent_s"),
              "pin_ttl_s": one.get("pin_ttl_s")} for one in found[:MAX_HOSTS]]  # fmt: skip
    return {"hosts": shown, "more": max(0, len(found) - MAX_HOSTS)}


def policy(values: Json) -> Json:
    """The policy in force: the mount's own values, and the rules."""
    rules = values.get("rule", [])
    shown = [
        {"path": text(rule.get("path")), "values": [(text(k), text(v)) for k, v in rule.items() if k != "path"]}
        for rule in rules[:MAX_RULES]
    ]
    own = [(text(key), text(value)) for key, value in values.items() if key != "rule"]
    return {"values": own, "rules": shown, "more": max(0, len(rules) - MAX_RULES)}
