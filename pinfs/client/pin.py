"""`pinfs.pin` and `pinfs.pins`: the calls by which programs pin, and see what is pinned."""

import errno
import fcntl
import os
from typing import Unpack

from pinfs.client import ioctl, xattrs
from pinfs.client.basepin import NoPin, Pin
from pinfs.client.callbacks import Callback
from pinfs.client.channel import all_pins
from pinfs.client.errors import NotPinfsError, advice
from pinfs.client.handlepin import HandlePin
from pinfs.client.inode import File, HasFileno, Inode, descriptor_of, inode_of
from pinfs.client.model import Mode, PinInfo
from pinfs.client.mounts import is_pinfs, require_pinfs
from pinfs.client.options import OwnerOptions, all_options
from pinfs.client.processpin import ProcessPin
from pinfs.client.xattrs import RequestedPin

__all__ = ["HandlePin", "NoPin", "Pin", "ProcessPin", "pin", "pins"]


def pin(
    file: File,
    start: int = 0,
    length: int = 0,
    *,
    mode: Mode = "deny",
    on_break: Callback | None = None,
    **options: Unpack[OwnerOptions],
) -> Pin:
    """Pin a byte range of a file: until it is released, no operation takes these bytes out of the file.

    `file`: a path, a descriptor, or an object with fileno(). `start`, `length`: bytes; length 0 is to the end of the
    file, wherever that moves. The pin stands when the call returns, `with` or not.

    `mode="deny"`: a truncate (or hole punch) of the range fails with EBUSY. `mode="lease"`: it waits, `on_break(event)`
    is called in a thread of its own, and when it returns the pin is released; let go of the memory in it. If it raises,
    the exception is logged and the pin stays: the holder has not let go, so the deadline decides. (Where the mount's
    policy says `conflict = "break"`, the holders of deny pins are notified in the same way.)

    Options, by keyword:
    `signal`: `"USR1"`, `"RTMIN+1"`, a number, or `"none"`; sent at a break, the id in si_value. Default: SIGIO for a
    lease of a program that handles or ignores SIGIO when it pins (signal.getsignal; elsewhere it would end it), and
    none with `on_break`, with `pid` of another process, or for a deny pin.
    `eventfd`: an eventfd(2) of this process, or an object with fileno(): 1 is added to its counter when a break begins;
    the mount keeps it open as long as the pin stands. A reader tells the mount's end from a break by `state()`.
    `dirty`: a device may write here; the range is flushed before a release is answered. `note`: shown in listings.
    `name`: the process's own name of the pin, by default a fresh one; used again on the same file it moves that pin.
    `pid`: register for another process of the same user. `owner="handle"`: the pin belongs to the open file
    description that `file` is (opened here, if it is a path) and goes with its last close; it takes ioctls, and so the
    bridge. So does, without `name` and `pid`, a pin by a descriptor that is open for writing where the process may not
    write to the file (one that it has inherited or been sent): the attribute of SPEC 5 is refused to it then.

    Raises NotPinfsError (not with `missing_ok`, which gives a pin that is not `active`), OSError: ENXIO (the range does
    not lie inside the file), EAGAIN (a removal of an overlapping range is under way), EDQUOT (limits), EACCES or EPERM
    (not allowed), ESRCH (`pid` names no process), EINVAL (not a regular file, not an eventfd), EBADF (not open), ENOTTY
    (`owner="handle"` on a mount without its bridge); ValueError for options that contradict each other, TypeError for a
    range that is not of ints, or for an unknown option.
    """
    chosen = all_options(options)
    name, pid = chosen["name"], chosen["pid"]
    _check(mode, on_break, chosen)
    signal = "none" if on_break and chosen["signal"] is None else chosen["signal"]
    eventfd = _number_of(chosen["eventfd"])
    requested = RequestedPin(start, length, mode, signal, pid, chosen["dirty"], chosen["note"], eventfd)
    fd = descriptor_of(file)
    if fd is not None and chosen["owner"] == "handle" and ioctl.is_answered(fd):
        return _by_handle(fd, requested, on_break)
    inode = inode_of(file)
    if not is_pinfs(inode) and (fd is None or not ioctl.is_answered(fd)):
        if chosen["missing_ok"]:
            return NoPin(name or "", requested)
        raise NotPinfsError(inode.name, "missing_ok=True goes on without a pin")
    inode.require_regular()
    if chosen["owner"] == "handle":
        return _by_new_handle(inode, requested, on_break) if fd is None else _by_handle(fd, requested, on_break)
    try:
        return ProcessPin(inode, name or xattrs.fresh_name(), requested, on_break)
    except PermissionError as refused:
        if refused.errno != errno.EACCES or name or pid is not None or fd is None or not _is_open_for_writing(fd):
            raise
        return _by_handle_instead(fd, requested, on_break, refused)


def _check(mode: str, on_break: Callback | None, options: OwnerOptions) -> None:
    """ValueError: options that contradict each other."""
    pid, name, owner = options["pid"], options["name"], options["owner"]
    if mode not in ("deny", "lease") or owner not in ("process", "handle"):
        raise ValueError("mode is 'deny' or 'lease', owner is 'process' or 'handle'")
    if on_break and pid not in (None, os.getpid()):
        raise ValueError("on_break cannot be called for another process: its breaks are told to that process")
    if owner == "handle" and (pid is not None or name is not None):
        raise ValueError("a pin of a handle has neither pid nor name")


def _number_of(eventfd: int | HasFileno | None) -> int | None:
    return eventfd.fileno() if eventfd is not None and not isinstance(eventfd, int) else eventfd


def _by_handle(fd: int, requested: RequestedPin, on_break: Callback | None) -> HandlePin:
    return HandlePin(fd, requested, on_break, owned=False)


def _by_new_handle(inode: Inode, requested: RequestedPin, on_break: Callback | None) -> HandlePin:
    """Opens the inode, not the path once more: that may lead to another file by now, one that is not on pinfs."""
    with advice("open the file for writing", inode.name):
        fd = os.open(inode.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return HandlePin(fd, requested, on_break, owned=True)
    except BaseException:
        os.close(fd)
        raise


def _by_handle_instead(fd: int, requested: RequestedPin, on_break: Callback | None, refused: OSError) -> HandlePin:
    """A handle that is open for writing can pin, whichever process has opened it (SPEC 4)."""
    try:
        return _by_handle(fd, requested, on_break)
    except OSError as failure:
        if failure.errno == errno.ENOTTY:  # the mount does without ioctls: what the attribute said is the answer
            raise refused from failure
        raise


def _is_open_for_writing(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def pins(file: File) -> list[PinInfo]:
    """The pins of a file. Raises NotPinfsError, and OSError as open(2) does.

    Other users' pins show the range, not the holder (SPEC 4). All pins are listed, even where the 64 KiB of an
    attribute are too small: then they are taken from the list of the whole mount (`.pinfs/pins`).
    """
    inode = inode_of(file)
    require_pinfs(inode)
    found, more = xattrs.pins_of(inode)
    if not more:
        return found
    return [info for info in all_pins(inode) if info.inode == inode.ino]
