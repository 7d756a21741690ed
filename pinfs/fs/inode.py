"""An inode of the table, and how it is named: by number, by key, by its names."""

import errno
import os
import stat
from typing import Final

from pinfs.fs.openfile import OpenFile
from pinfs.fs.types import os_error

ROOT_ID: Final = 1
FOREIGN_IDS: Final = 1 << 63  # node ids of files on other devices below the source
O_PATH_NOFOLLOW: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
KIND_BITS: Final = stat.S_IFMT(0xFFFF)  # of st_mode

Key = int | tuple[int, int]  # st_ino on the source's own device, (st_dev, st_ino) elsewhere
Name = tuple["Inode", bytes]  # the directory, and the name in it


def stale() -> OSError:
    return os_error(errno.ESTALE)


class Inode:
    """One file, directory or other thing below the source.

    `lookups` is the kernel's lookup count. `children` counts the names in this directory by which inodes of the table
    are reached: it stays in the table for them. `links` holds further names (hard links), None for nearly every inode.
    `life` tells it from another inode with its number (`life_of`; `Exports` notes all). None: the daemon has a
    descriptor, so there is no other, or never had one, and the kernel caches neither data nor names of it. With the
    time of change `ctime_ns` it is the same inode; with `data_ctime_ns` the pages that the kernel caches are right.
    `slot`: of its record in the journal; 0: it has none.
    """

    __slots__ = (
        *("children", "ctime_ns", "data_ctime_ns", "fd", "file", "key", "kind"),
        *("life", "links", "lookups", "name", "nodeid", "parent", "slot"),
    )

    def __init__(self, nodeid: int, key: Key, kind: int) -> None:
        self.nodeid = nodeid
        self.key = key
        self.kind = kind  # S_IFMT
        self.lookups = self.slot = 0
        self.children = 0
        self.parent: Inode | None = None
        self.name: bytes | None = None
        self.links: set[Name] | None = None
        self.fd = -1
        self.file: OpenFile | None = None
        self.life: bytes | None = None
        self.ctime_ns = self.data_ctime_ns = 0

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG

    def path(self) -> str | None:
        """The path from the root of the mount, for listings and policy rules; None where the inode has no name."""
        names: list[bytes] = []
        at: Inode | None = self
        while at is not None and at.nodeid != ROOT_ID:
            if at.name is None:
                return None
            names.append(at.name)
            at = at.parent
        return os.fsdecode(b"/".join(reversed(names)))


def is_or_lies_in(directory: Inode, other: Inode) -> bool:
    """Whether a name in `directory` would make a loop of `other`.

    A directory that was moved behind pinfs may be found before its new parent is (`b` was in `a`, and now `a` is in
    `b`), and a bind mount may show a directory below itself. The kernel refuses either (ELOOP, d_splice_alias()).
    """
    at: Inode | None = directory
    while at is not None and at is not other:
        at = at.parent
    return at is not None


def component(name: bytes) -> bytes:
    """One component of a path, as the kernel sends it. EINVAL: anything else, which could lead out of the source."""
    if b"/" in name or name in (b"", b".", b".."):
        raise os_error(errno.EINVAL)
    return name
