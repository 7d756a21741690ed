"""From a file to the pinfs mount that it lies on, and to its `.pinfs`."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from pinfs.client.errors import NotPinfsError
from pinfs.client.inode import File, Inode, inode_of
from pinfs.interface.attributes import PINS
from pinfs.interface.names import CONTROL, FSTYPE
from pinfs.linux import mountinfo
from pinfs.linux.mountinfo import MountEntry


def entries_of(dev: int) -> list[MountEntry]:
    """The mounts of a device (st_dev) that this process can see, the latest first."""
    return [entry for entry in reversed(mountinfo.mounts()) if entry.dev == dev]


def is_pinfs(inode: Inode) -> bool:
    """Whether a file lies on pinfs.

    The table of mounts is read before the file is asked, because elsewhere a setxattr would simply be stored. A mount
    that is not listed (a descriptor received from another mount namespace) is asked for an attribute that only pinfs
    has.
    """
    entries = entries_of(inode.dev)
    if any(entry.fstype == FSTYPE for entry in entries):
        return True
    if any(not entry.fstype.startswith("fuse") for entry in entries):
        return False
    try:
        os.getxattr(inode.path, PINS)
    except OSError:
        return False
    return True


def require_pinfs(inode: Inode) -> None:
    """Raises NotPinfsError (EOPNOTSUPP) for a file on anything else."""
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
        f"the root of this pinfs, and so {CONTROL}, is not visible here (visible: {parts}); make the whole of it "
        "visible, or have breaks told by a signal, or by poll(2) on the handle of a pin",
        inode.name,
    )


def control_file(mount: File, name: str) -> Path:
    """`.pinfs/NAME` of the mount that `mount` (its root, or any file on it) belongs to. Raises as `root_of`."""
    return root_of(inode_of(mount)) / CONTROL / name
