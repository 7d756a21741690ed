"""What a mount is doing, from two readings of its control directory: rates, holders, breaks under way. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

Json = dict[str, Any]
Holder = tuple[int | None, str | None, int | None]
"""Number and program of a process, and the user that its pins belong to; None where the reader may not see it, or where
a handle holds."""

RATES: Final = {
    "requests": "pinfs_requests_total",
    "pins": "pinfs_pins_registered_total",
    "releases": "pinfs_pins_released_total",
    "refusals": "pinfs_refusals_total",
    "breaks": "pinfs_breaks_started_total",
    "timeouts": "pinfs_breaks_timed_out_total",
}
"""What is told per second, and the counters of `.pinfs/metrics` that it is taken from."""
ORDERS: Final = ("breaks", "pins", "bytes", "age")
"""What holders may be sorted by, the most first."""


def rates(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What happened per second between two readings of the counters."""
    passed = max(seconds, 1e-9)
    return {
        name: round(max(0.0, now.get(counter, 0.0) - before.get(counter, 0.0)) / passed, 2)
        for name, counter in RATES.items()
    }


def holder_of(pin: Json) -> Holder:
    """Who holds a pin, as far as the reader may see it."""
    return pin.get("pid"), pin.get("comm"), pin.get("uid")


def holders(pins: Iterable[Json], now_s: float, order: str = "breaks") -> list[Json]:
    """Each holder with its number of pins, how many of them break, its bytes, its files, and its oldest pin's age.

    `bytes` counts each pin alone, and leaves out the `open_ended`, which reach to the end of their file. `now_s`: Unix
    seconds.
    """
    found: dict[Holder, Json] = {}
    inodes: dict[Holder, set[int]] = {}
    for pin in pins:
        key = holder_of(pin)
        holder = found.get(key)
        if holder is None:
            holder = found[key] = dict(zip(("pid", "comm", "uid"), key, strict=True))
            holder |= {"pins": 0, "breaking": 0, "bytes": 0, "open_ended": 0, "files": 0, "oldest_s": 0.0}
            inodes[key] = set()
        holder["pins"] += 1
        holder["breaking"] += pin["state"] == "breaking"
        holder["bytes"] += pin["length"]
        holder["open_ended"] += not pin["length"]
        holder["oldest_s"] = max(holder["oldest_s"], round(now_s - pin.get("since", now_s), 3))
        inodes[key].add(pin["inode"])
    for key, holder in found.items():
        holder["files"] = len(inodes[key])
    return sorted(found.values(), key=_SORTED_BY[order], reverse=True)


_SORTED_BY: Final[dict[str, Callable[[Json], Any]]] = {
    "breaks": lambda holder: (holder["breaking"], holder["pins"]),
    "pins": lambda holder: (holder["pins"], holder["breaking"]),
    "bytes": lambda holder: (holder["bytes"], holder["open_ended"]),
    "age": lambda holder: holder["oldest_s"],
}


def breaks(status: Json, pins: Iterable[Json]) -> list[Json]:
    """The removals that wait (`breakers` of the status), the one with the least time left first, each with the
    `holders` of the pins that it waits for, as far as these are among `pins`."""
    by_id = {pin["id"]: pin for pin in pins if pin["state"] == "breaking"}
    shown = []
    for breaker in status.get("breakers", ()):
        waited_for = [by_id[number] for number in breaker["waits_for"] if number in by_id]
        seen = {(pin.get("pid"), pin.get("comm")): None for pin in waited_for}
        shown.append(breaker | {"holders": [{"pid": pid, "comm": comm} for pid, comm in seen]})
    return sorted(shown, key=lambda one: (one["remaining_s"] is None, one["remaining_s"] or 0.0))


def hosts(cluster: Json | None) -> list[Json]:
    """The hosts of the cluster of a mount, each once: `silent_s` of the incarnation that was heard last."""
    found: dict[str, Json] = {}
    for member in (cluster or {}).get("members", ()):
        known = found.get(member["host"])
        if known is None or (member.get("silent_s") or 0.0) < (known.get("silent_s") or 0.0):
            found[member["host"]] = member
    return [found[name] for name in sorted(found)]
