"""A pin as people and programs see it (docs/interfaces.md)."""

import time
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Final

import trio

from pinfs.core.owners import ProcessId
from pinfs.core.pins import Pin
from pinfs.linux.signals import signal_name

CommOf = Callable[[ProcessId], str | None]
"""The name of a process's program; None: it is not known."""
HolderOf = Callable[[Pin], CommOf | None]
"""None: this reader may not see the holder of that pin (SPEC 4)."""
FileFacts = tuple[str | None, bool]
"""The path of a file from the root of the mount, None where it has no name (any more), and whether it is sealed."""

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


def pin_json(pin: Pin, path: str | None, comm_of: CommOf | None, sealed: bool) -> str:
    """A pin as a JSON object. `comm_of` names the program of a process. `sealed`: the kernel refuses to take its bytes.

    None in its place: the reader may not see the holder. Then the JSON says that a range is pinned, and how, but not by
    whom (SPEC 4).

    A list may hold a million pins. Written out, one takes a quarter of the time of a dict and json.dumps().
    """
    spec, deadline = pin.spec, pin.deadline
    at, left = "null", "null"
    if deadline is not None:
        at, left = repr(unix_time(deadline)), repr(round(max(0.0, deadline - trio.current_time()), 3))
    shown = path if path is None or len(path) <= MAX_SHOWN_PATH else shown_path(path)
    owner = "process" if pin.owner == pin.process else "handle"
    text = (
        f'{{"v": 1, "id": {pin.id}, "owner": "{owner}", "start": {spec.start}, "length": {spec.length}, '
        f'"mode": "{spec.mode.value}", "state": "{pin.state.value}", "deadline": {at}, "remaining_s": {left}, '
        f'"dirty": {_bool(spec.dirty)}, "inode": {pin.inode}, "path": {_text(shown)}, '
        f'"since": {unix_time(pin.since)!r}, "sealed": {_bool(sealed)}'
    )
    if comm_of is None:
        return text + "}"
    process = pin.process
    name = None if pin.name is None else pin.name.decode(errors="replace")
    comm = None if process is None else comm_of(process)
    return (
        f'{text}, "name": {_text(name)}, "pid": {"null" if process is None else process.pid}, "uid": {pin.uid}, '
        f'"comm": {_text(comm)}, "signal": "{signal_name(spec.signal)}", "note": {_text(spec.note)}, '
        f'"eventfd": {_bool(spec.eventfd is not None)}}}'
    )


def _text(value: str | None) -> str:
    """ASCII: whatever a name holds, the line stays one."""
    return "null" if value is None else encode_basestring_ascii(value)


def _bool(value: bool) -> str:
    return "true" if value else "false"


class PinLines:
    """The lines of `.pinfs/pins` that answer one read. What pins have in common is looked up once: the file's path, and
    the name of the holder's program, which takes four system calls."""

    def __init__(self, pins: Mapping[int, Pin], facts: Callable[[int], FileFacts], holder: HolderOf) -> None:
        self._pins = pins
        self._facts_of = facts
        self._holder_of = holder
        self._facts: dict[int, FileFacts] = {}
        self._comms: dict[ProcessId, str | None] = {}

    def of(self, pin_id: int) -> bytes:
        """Of the pin of this number; empty: it is no more."""
        pin = self._pins.get(pin_id)
        if pin is None:
            return b""
        facts = self._facts.get(pin.inode)
        if facts is None:
            facts = self._facts[pin.inode] = self._facts_of(pin.inode)
        comm_of = self._holder_of(pin)
        if comm_of is not None and pin.process is not None:
            comm_of = self._remembered(pin.process, comm_of)
        return pin_json(pin, facts[0], comm_of, facts[1]).encode() + b"\n"

    def _remembered(self, process: ProcessId, comm_of: CommOf) -> CommOf:
        if process not in self._comms:
            self._comms[process] = comm_of(process)
        return self._comms.__getitem__


class PinTexts:
    """The JSON of pins that were read lately, for callers that ask again while nothing in it has changed."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[object, ...], bytes]] = {}
        """By id: what may change without the pin's being another one, and the text."""

    def of(self, pin: Pin, path: str | None, comm: str | None, sealed: bool) -> bytes:
        """`pin_json`, as bytes. `comm`: the name of the holder's program."""
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
    return pin_json(pin, path, lambda process: comm, sealed).encode()
