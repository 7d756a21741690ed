"""The mounts that this process can see, as /proc/self/mountinfo lists them (proc_pid_mountinfo(5)).

A line names the device that stat(2) reports for the files of the mount, the part of the file system that is mounted
there ("/" unless it is a bind mount of a part), the mount point, and after a dash the type, the source, and the options
of the file system. Reading the table never waits for a mount, dead ones included.
"""

import os
import re
from typing import Final, NamedTuple

PATH: Final = "/proc/self/mountinfo"

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


class MountEntry(NamedTuple):
    """One line of the table. Text is decoded as file names are (os.fsdecode)."""

    dev: int
    """As st_dev, see os.makedev. On btrfs stat(2) shows another number."""
    root: str
    point: str
    fstype: str
    source: str
    """The first argument of mount(2); for most file systems a device or a directory."""
    options: str
    """Options of the file system, not of this mount of it; of FUSE with `user_id=`, the user who mounted."""


def unescape(field: bytes) -> str:
    """A field as it was before the kernel wrote space, tab, newline, backslash and # as octal digits (mangle_path)."""
    if b"\\" in field:
        field = _ESCAPE.sub(lambda digits: bytes([int(digits[1], 8)]), field)
    return os.fsdecode(field)


def parse_entry(line: bytes) -> MountEntry:
    """One line, without its newline. Raises ValueError or IndexError for what is no line of this table."""
    before, _, after = line.partition(b" - ")  # the optional fields before the dash vary in number
    _mount_id, _parent_id, device, root, point, *_rest = before.split(b" ")
    fstype, source, options = after.split(b" ", 2)
    major, _, minor = device.partition(b":")
    return MountEntry(os.makedev(int(major), int(minor)), *map(unescape, (root, point, fstype, source, options)))


def mounts() -> list[MountEntry]:
    """All mounts, in the order in which they were made: the last one on a mount point is on top."""
    with open(PATH, "rb") as file:
        return [parse_entry(line) for line in file.read().split(b"\n") if line]


def mount_of(fd: int) -> MountEntry | None:
    """The mount that `fd` (O_PATH will do) was opened on; None: it is not in the table of this process."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info, open(PATH, "rb") as table:
        number = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
        return next((parse_entry(line.rstrip(b"\n")) for line in table if line.split(b" ", 1)[0] == number), None)


def mount_at(path: str) -> MountEntry | None:
    """The mount that `path`, a real path, lies on: of those with the longest mount point above it, the last."""
    above = [entry for entry in mounts() if _is_below(path, entry.point)]
    return max(reversed(above), key=lambda entry: len(entry.point), default=None)


def _is_below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")
