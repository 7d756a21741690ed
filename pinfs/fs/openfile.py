"""The backing file of an open inode."""

import os
from collections.abc import Callable


class OpenFile:
    """The backing file of an inode that is open: one for all its handles.

    The kernel does O_APPEND, O_DIRECT and positions itself, so handles differ only in what they may do. `reader` and
    `writer` are descriptors (-1: not opened so far), often the same one; `any_fd` is one of them. `opens` counts the
    handles. `backing_id` is None until the first open decides it for all (0: no passthrough).
    """

    __slots__ = ("any_fd", "backing_id", "opens", "reader", "writer")

    def __init__(self) -> None:
        self.opens = 0
        self.reader = self.writer = self.any_fd = -1
        self.backing_id: int | None = None

    @classmethod
    def over(cls, fd: int, flags: int) -> "OpenFile":
        """A file that `fd` has open with open(2) `flags`."""
        file = cls()
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY:
            file.write_by(fd)
        if access != os.O_WRONLY:
            file.read_by(fd)
        return file

    def read_by(self, fd: int) -> None:
        self.reader = self.any_fd = fd

    def write_by(self, fd: int) -> None:
        self.writer = fd
        if self.reader < 0:
            self.any_fd = fd

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """`close` closes a descriptor."""
        if self.writer >= 0 and self.writer != self.reader:
            close(self.writer)
        if self.reader >= 0:
            close(self.reader)
        self.reader = self.writer = self.any_fd = -1
