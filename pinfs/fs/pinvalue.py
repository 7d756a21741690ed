"""The text form of a pin: `START:LENGTH[,key=value]...` (SPEC 5)."""

import errno
import re
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

from pinfs.core.pins import Mode, PinSpec
from pinfs.linux.signals import parse_signal

MAX_NOTE_BYTES: Final = 256
MAX_VALUE_BYTES: Final = 1024
MAX_OFFSET: Final = (1 << 63) - 1
DEFAULT_SIGNAL: Final = {Mode.DENY: None, Mode.LEASE: parse_signal("IO")}

_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,19}):([0-9]{1,19})", re.ASCII)


class PinValue(NamedTuple):
    """A parsed value. pid None: the caller itself. eventfd: the caller's descriptor; the spec has none yet."""

    spec: PinSpec
    pid: int | None
    eventfd: int | None = None


def _malformed(why: str) -> NoReturn:
    raise OSError(errno.EINVAL, why)


@lru_cache(maxsize=1024)  # programs say the same again and again
def parse_pin_value(value: bytes) -> PinValue:
    """EINVAL: malformed, unknown key, a key given twice, a number beyond 2**63 - 1."""
    if len(value) > MAX_VALUE_BYTES:
        _malformed("value too long")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        _malformed("not UTF-8")
    place, _, rest = text.partition(",")
    start, length = _parse_range(place)
    keys = _parse_keys(rest) if "," in text else {}
    mode = _parse_mode(keys.pop("mode", "deny"))
    signal = _parse_signal(keys.pop("signal", None), mode)
    dirty = _parse_dirty(keys.pop("dirty", "no"))
    note = _parse_note(keys.pop("note", ""))
    pid = _parse_pid(keys.pop("pid", None))
    eventfd = _parse_descriptor(keys.pop("eventfd", None))
    if keys:
        _malformed(f"unknown key {next(iter(keys))!r}")
    return PinValue(PinSpec(start, length, mode, signal, dirty, note), pid, eventfd)


def _parse_range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        _malformed("not START:LENGTH")
    start, length = int(match[1]), int(match[2])
    if start > MAX_OFFSET or start + length > MAX_OFFSET:
        _malformed("range beyond the largest file")
    return start, length


def _parse_keys(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for item in text.split(","):
        key, found, value = item.partition("=")
        if not found or not key:
            _malformed("not key=value")
        if key in keys:
            _malformed(f"{key!r} given twice")
        keys[key] = value
    return keys


def _parse_mode(text: str) -> Mode:
    try:
        return {"deny": Mode.DENY, "lease": Mode.LEASE}[text]
    except KeyError:
        _malformed(f"mode {text!r}")


def _parse_signal(text: str | None, mode: Mode) -> int | None:
    if text is None:
        return DEFAULT_SIGNAL[mode]
    try:
        return parse_signal(text)
    except ValueError as e:
        _malformed(str(e))


def _parse_dirty(text: str) -> bool:
    if text not in ("yes", "no"):
        _malformed(f"dirty {text!r}")
    return text == "yes"


def _parse_note(text: str) -> str:
    if len(text.encode()) > MAX_NOTE_BYTES or "\0" in text:
        _malformed("note too long")
    return text


def _parse_descriptor(text: str | None) -> int | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) >= 1 << 31:
        _malformed(f"eventfd {text!r}")
    return int(text)


def _parse_pid(text: str | None) -> int | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or not 0 < int(text) < 1 << 31:
        _malformed(f"pid {text!r}")
    return int(text)
