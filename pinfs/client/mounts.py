"""From a file to the pinfs it lies on.

/proc/self/mountinfo (proc_pid_mountinfo(5)) names for each mount the device that stat(2) reports for its files, the
part of the file system that is mounted there ("/" unless it is a bind mount of a part), and the mount point.
"""

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pinfs.client.errors import NotPinfsError
from pinfs.client.inode import File, Inode, inode_of

MOUNTINFO = "/proc/self/mountinfo"
FSTYPE = "fuse.pinfs"
CONTROL = ".pinfs"


class MountEntry(NamedTuple):
    dev: int
    root: str
    point: str
    fstype: str


def unescape(field: bytes) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda digits: bytes([int(digits[1], 8) & 0xFF]), field))


def parse_entry(line: bytes) -> MountEntry:
    words = line.split(b" ")
    major, minor = words[2].split(b":")
    fstype = words[words.index(b"-", 6) + 1]  # the optional fields before the dash vary in number
    return MountEntry(os.makedev(int(major), int(minor)), unescape(words[3]), unescape(words[4]), unescape(fstype))


def entries_of(dev: int) -> list[MountEntry]:
    """The mounts of a device that this process can see, the latest first."""
    with open(MOUNTINFO, "rb") as file:
        entries = [parse_entry(line) for line in file.read().splitlines()]
    return [entry for entry in reversed(entries) if entry.dev == dev]


def is_pinfs(inode: Inode) -> bool:
    """Whether a file lies on pinfs.

    Looks before it asks, because elsewhere a setxattr would simply be stored. A mount that is not listed (a descriptor
    received from another mount namespace) is asked for an attribute that only pinfs has.
    """
    entries = entries_of(inode.dev)
    if any(entry.fstype == FSTYPE for entry in entries):
        return True
    if any(not entry.fstype.startswith("fuse") for entry in entries):
        return False
    try:
        os.getxattr(inode.path, b"user.pinfs.pins")
    except OSError:
        return False
    return True


def require_pinfs(inode: Inode) -> None:
    if not is_pinfs(inode):
        raise NotPinfsError(inode.name)


def _visible(entries: Iterable[MountEntry]) -> Iterable[Path]:
    """Where the root of the file system can be reached: not below a bind mount of a part, not under another mount."""
    for entry in entries:
        try:
            if entry.root == "/" and os.stat(entry.point).st_dev == entry.dev:
                yield Path(entry.point)
        except OSError:
            continue


def root_of(inode: Inode) -> Path:
    """The root of the mount that a file lies on.

    Raises NotPinfsError, and FileNotFoundError where only a part of the mount is visible (a container with `-v
    MOUNT/models:/data`): `.pinfs` is then out of reach, whatever path one tries.
    """
    require_pinfs(inode)
    entries = entries_of(inode.dev)
    for root in _visible(entries):
        return root
    parts = ", ".join(f"{entry.point} shows its {entry.root}" for entry in entries) or "none of it"
    raise FileNotFoundError(
        errno.ENOENT,
        f"the root of this pinfs, and so {CONTROL}, is not visible here (visible: {parts}); "
        "make the whole of it visible, or hear of breaks by a signal, or by poll(2) on the handle of a pin",
        inode.name,
    )


def control_file(mount: File, name: str) -> Path:
    """`.pinfs/NAME` of the mount that `mount` (its root, or any file on it) belongs to."""
    return root_of(inode_of(mount)) / CONTROL / name
