"""A pin as people and programs see it (docs/interfaces.md)."""

import json
import time
from collections.abc import Callable
from typing import Any, Final

import trio

from pinfs.core.owners import ProcessId
from pinfs.core.pins import Pin
from pinfs.linux.signals import signal_name

CLOCK_WAS_SET_S: Final = 0.01
"""What the two clocks may differ by before that of the system counts as set. Rounding and slewing are less."""
MAX_SHOWN_PATH: Final = 4096
"""Characters: no system call takes a longer path (PATH_MAX), but directories can be nested deeper than that."""


def shown_path(path: str | None) -> str | None:
    """The path, or the end of one that is longer than any that a program could use, behind `...`."""
    if path is None or len(path) <= MAX_SHOWN_PATH:
        return path
    return f".../{path[-MAX_SHOWN_PATH:].partition('/')[2] or path[-MAX_SHOWN_PATH:]}"


KEPT_TEXTS: Final = 256

_since_epoch_s = 0.0


def unix_time(moment: float) -> float:
    """A moment of trio's clock as Unix seconds: the same each time, as long as the system's clock is not set."""
    global _since_epoch_s
    now_s = time.time() - trio.current_time()
    if abs(now_s - _since_epoch_s) > CLOCK_WAS_SET_S:
        _since_epoch_s = now_s
    return round(_since_epoch_s + moment, 3)


def describe(
    pin: Pin, path: str | None, comm_of: Callable[[ProcessId], str | None] | None, sealed: bool
) -> dict[str, Any]:
    """The JSON of a pin. `comm_of` names the program of a process. `sealed`: the kernel refuses to take its bytes.

    None in its place: the reader may not see the holder. Then the JSON says that a range is pinned, and how, but not by
    whom (SPEC 4).
    """
    deadline = pin.deadline
    shown: dict[str, Any] = {
        "v": 1,
        "id": pin.id,
        "owner": "process" if pin.owner == pin.process else "handle",
        "start": pin.start,
        "length": pin.length,
        "mode": pin.mode.value,
        "state": pin.state.value,
        "deadline": None if deadline is None else unix_time(deadline),
        "remaining_s": None if deadline is None else round(max(0.0, deadline - trio.current_time()), 3),
        "dirty": pin.dirty,
        "inode": pin.inode,
        "path": path if path is None or len(path) <= MAX_SHOWN_PATH else shown_path(path),
        "since": unix_time(pin.since),
        "sealed": sealed,
    }
    if comm_of is None:
        return shown
    process = pin.process
    return shown | {
        "name": None if pin.name is None else pin.name.decode(errors="replace"),
        "pid": None if process is None else process.pid,
        "uid": pin.uid,
        "comm": None if process is None else comm_of(process),
        "signal": "none" if pin.signal is None else signal_name(pin.signal),
        "note": pin.note,
        "eventfd": pin.spec.eventfd is not None,
    }


class PinTexts:
    """The JSON of pins that were read lately, for callers that ask again while nothing in it has changed."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[object, ...], bytes]] = {}
        """By id: what may change without the pin's being another one, and the text."""

    def of(self, pin: Pin, path: str | None, comm: str | None, sealed: bool) -> bytes:
        """`describe`, as bytes. `comm`: the name of the holder's program."""
        if pin.breaking is not None:
            return _to_json(pin, path, comm, sealed)
        facts = pin.spec, pin.process, pin.uid, path, comm, sealed, unix_time(pin.since)
        kept = self._kept.get(pin.id)
        if kept is not None and kept[0] == facts:
            return kept[1]
        text = _to_json(pin, path, comm, sealed)
        if len(self._kept) >= KEPT_TEXTS:
            self._kept.clear()
        self._kept[pin.id] = facts, text
        return text


def _to_json(pin: Pin, path: str | None, comm: str | None, sealed: bool) -> bytes:
    return json.dumps(describe(pin, path, lambda process: comm, sealed)).encode()
