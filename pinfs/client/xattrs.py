"""The verbs of SPEC 5: extended attributes that act, and are never stored."""

import errno
import json
import os
import secrets
from dataclasses import dataclass

from pinfs.client.errors import BY_EVENTFD, advice
from pinfs.client.inode import Inode
from pinfs.client.model import Mode, PinInfo, parse_pin, pin_info
from pinfs.interface.attributes import PIN, PINS, RELEASE

NAME_MAX = 255 - len(RELEASE)  # XATTR_NAME_MAX of the kernel counts the prefix


@dataclass(frozen=True)
class RequestedPin:
    """A pin as its holder asks for it. Bytes; length 0: to the end of the file.

    `signal` None: the mode's default (SIGIO for a lease, none for a deny pin). `eventfd`: a descriptor of this process.
    """

    start: int
    length: int
    mode: Mode = "deny"
    signal: str | int | None = None
    pid: int | None = None
    dirty: bool = False
    note: str = ""
    eventfd: int | None = None

    def __post_init__(self) -> None:
        check_range(self.start, self.length)


def check_range(start: object, length: object) -> None:
    """TypeError for what would only look like a number of bytes in the attribute (True), or be cut to one (1.5)."""
    for what, value in (("start", start), ("length", length)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{what} is a number of bytes, an int, not {value!r}")


def encode(requested: RequestedPin) -> bytes:
    """`START:LENGTH[,key=value]...`. Raises ValueError for what this form cannot carry."""
    words = [f"{requested.start}:{requested.length}", f"mode={requested.mode}"]
    if requested.signal is not None:
        words.append(f"signal={requested.signal}")
    if requested.pid is not None:
        words.append(f"pid={requested.pid}")
    if requested.dirty:
        words.append("dirty=yes")
    if requested.eventfd is not None:
        words.append(f"eventfd={requested.eventfd}")
    if requested.note:
        words.append(f"note={requested.note}")
    if any("," in word or not word.isprintable() for word in words):
        raise ValueError("a note is printable text without a comma")
    return ",".join(words).encode()


def fresh_name() -> str:
    """A name that no other pin has, in this process or another one."""
    return f"py-{secrets.token_hex(8)}"


def check_name(name: str) -> bytes:
    """The bytes of a name that fits both verbs. Raises ValueError."""
    raw = name.encode()
    if not 0 < len(raw) <= NAME_MAX or b"\0" in raw:
        raise ValueError(f"the name of a pin has 1 to {NAME_MAX} bytes, none of them NUL")
    return raw


def register(inode: Inode, name: str, requested: RequestedPin) -> PinInfo:
    """Register pin NAME, or replace it in one step. Waits while a removal of the same file waits (the inode's lock).

    Raises OSError: EINVAL, ENXIO, EAGAIN, EDQUOT, EACCES, EPERM, ESRCH, EBADF (SPEC 5); ValueError as `encode`.
    """
    key = PIN + check_name(name)
    special = None if requested.eventfd is None else BY_EVENTFD
    with advice(f"pin {requested.start}:{requested.length}", inode.name, special):
        _set(inode, key, encode(requested))
        return parse_pin(os.getxattr(inode.path, key))


def change(inode: Inode, name: str, requested: RequestedPin) -> None:
    """Replace pin NAME in one step, if it still stands. Waits as `register` does; raises OSError ENODATA when it is
    gone by then, as a pin that was revoked meanwhile must not come back unasked."""
    with advice(f"change pin {name}", inode.name):
        _set(inode, PIN + check_name(name), encode(requested), os.XATTR_REPLACE)


def _set(inode: Inode, key: bytes, value: bytes, flags: int = 0) -> None:
    """Turns EOPNOTSUPP back into EAGAIN, of which the kernel makes it in setxattr(2) (__vfs_setxattr_noperm)."""
    try:
        os.setxattr(inode.path, key, value, flags)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), inode.name) from exc


def query(inode: Inode, name: str) -> PinInfo:
    """Raises OSError ENODATA when there is no such pin (any more)."""
    with advice(f"query pin {name}", inode.name):
        return parse_pin(os.getxattr(inode.path, PIN + check_name(name)))


def release(inode: Inode, name: str) -> None:
    """Release by getxattr, the one form that also works while a truncate of the same file waits (SPEC 5)."""
    with advice(f"release pin {name}", inode.name):
        os.getxattr(inode.path, RELEASE + check_name(name))


def pins_of(inode: Inode) -> tuple[list[PinInfo], int]:
    """The pins of a file, as many as an attribute holds, and the number of those that did not fit."""
    value = json.loads(os.getxattr(inode.path, PINS))
    return [pin_info(pin) for pin in value["pins"]], value["more"]
