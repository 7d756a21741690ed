"""What the log and the counters say of the book's events."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from pinfs.core.events import BookEvent, Mapper
from pinfs.core.pins import Break, Pin
from pinfs.core.ranges import END
from pinfs.core.removals import RemovalRequest
from pinfs.runtime.stats import Stats

HOLDERS_IN_A_LOG_LINE: Final = 3


def removal_text(request: RemovalRequest) -> str:
    """A removal, for the log."""
    where = f"{_file(request)} {_range(request.start, request.end)}"
    breaker = f"pid {request.pid} uid {request.uid}" if request.host is None else f"host {request.host}"
    return f"{request.op} of {where} by {breaker}"


def bytes_text(request: RemovalRequest, start: int, end: int) -> str:
    """Bytes [start, end) of the file of a removal, for the log."""
    return f"{_range(start, end)} of {_file(request)}"


def _file(request: RemovalRequest) -> str:
    return f"{request.path!r}" if request.path is not None else f"inode {request.inode}"


def pins_text(pins: Iterable[Pin]) -> str:
    """Some of the pins in the way, for the log."""
    named = []
    for pin in islice(pins, HOLDERS_IN_A_LOG_LINE + 1):
        pid = None if pin.process is None else pin.process.pid
        named.append(f"pin {pin.id} {_range(pin.start, pin.end)} of pid {pid} uid {pin.uid}")
    return ", ".join([*named[:HOLDERS_IN_A_LOG_LINE], *["and others"] * (len(named) > HOLDERS_IN_A_LOG_LINE)])


def mappers_text(mappers: Iterable[Mapper]) -> str:
    """The processes that map what a removal waits for in the kernel, for the log."""
    named = [f"pid {pid} ({comm}, {pinned >> 10} KiB pinned) maps it" for pid, comm, pinned in mappers]
    return ", ".join(named) or "no process that can be seen maps it"


def break_text(breaking: Break | None) -> str:
    """Why a pin is broken, for the log."""
    if breaking is None:
        return ""
    by = "" if breaking.host is None else f" by host {breaking.host}"
    return f": for {breaking.op} of {_range(breaking.start, breaking.end)}{by}"


def _range(start: int, end: int) -> str:
    return f"[{start}, {'end' if end >= END else end})"


def count(stats: Stats, event: BookEvent) -> None:
    """Count an event."""
    match event.kind:
        case "break":
            stats.breaks_started += 1
        case "refused" if event.removal is not None:
            stats.refusals[event.removal.request.op, event.why or ""] += 1
        case "limit":
            stats.limit_reached[event.why or ""] += 1
    if event.breaking is not None:
        _count_end_of_break(stats, event, event.breaking)


def _count_end_of_break(stats: Stats, event: BookEvent, breaking: Break) -> None:
    match event.kind:
        case "released" | "answered":
            stats.breaks_answered += 1
            stats.break_seconds.add(event.now - breaking.since)
        case "withdrawn" if event.why == "timeout" and not breaking.killed:
            stats.breaks_timed_out["deny"] += 1
        case "revoked" if event.by == "policy":
            stats.breaks_timed_out["revoke"] += 1
        case "kill":
            stats.breaks_timed_out["kill"] += 1
