"""A search through the names below a directory, for the thread of a caller that knows nothing but an inode's number."""

import os
from collections.abc import Container, Iterator
from contextlib import suppress
from typing import NamedTuple


class Found(NamedTuple):
    """A name below the directory: the inode's number, that of the directory it stands in, and the name."""

    ino: int
    parent: int
    name: bytes


def names_below(root_fd: int, limit: int, avoid: Container[bytes]) -> Iterator[Found]:
    """The names on the same device as `root_fd` (O_PATH will do), breadth first, `limit` at most.

    Directories that cannot be read, and those whose names are in `avoid`, are passed over. What changes meanwhile may
    be missed, and nothing that is found must still be there.
    """
    device = os.fstat(root_fd).st_dev
    pending, found = [b"."], 0
    for path in pending:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
            try:
                st = os.fstat(fd)
                if st.st_dev != device:
                    continue
                with os.scandir(fd) as entries:
                    for entry in entries:
                        found += 1
                        if found > limit:
                            return
                        name = os.fsencode(entry.name)
                        yield Found(entry.inode(), st.st_ino, name)
                        if entry.is_dir(follow_symlinks=False) and name not in avoid:
                            pending.append(path + b"/" + name)
            finally:
                os.close(fd)
