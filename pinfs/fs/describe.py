"""A pin as people and programs see it (docs/interfaces.md)."""

import time
from typing import Any

import trio

from pinfs.core.pins import Pin
from pinfs.enforce.holders import Process
from pinfs.linux.signals import signal_name


def unix_time(moment: float) -> float:
    """A moment of trio's clock as Unix seconds."""
    return round(time.time() + moment - trio.current_time(), 3)


def describe(pin: Pin, path: str | None, *, reveal: bool) -> dict[str, Any]:
    """The JSON of a pin. Without `reveal` it says that a range is pinned, and how, but not by whom (SPEC 4)."""
    deadline = pin.deadline
    shown: dict[str, Any] = {
        "v": 1,
        "id": pin.id,
        "owner": "process" if isinstance(pin.owner, Process) else "handle",
        "start": pin.start,
        "length": pin.length,
        "mode": pin.mode.value,
        "state": pin.state.value,
        "deadline": None if deadline is None else unix_time(deadline),
        "remaining_s": None if deadline is None else round(max(0.0, deadline - trio.current_time()), 3),
        "dirty": pin.dirty,
        "inode": pin.inode,
        "path": path,
        "since": unix_time(pin.since),
    }
    return shown | _holder(pin) if reveal else shown


def _holder(pin: Pin) -> dict[str, Any]:
    process = pin.process if isinstance(pin.process, Process) else None
    return {
        "name": None if pin.name is None else pin.name.decode(errors="replace"),
        "pid": None if process is None else process.pid,
        "uid": pin.uid,
        "comm": None if process is None else process.comm,
        "signal": "none" if pin.signal is None else signal_name(pin.signal),
        "note": pin.note,
    }
