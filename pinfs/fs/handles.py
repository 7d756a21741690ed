"""Open handles: what the kernel's file handle numbers stand for."""

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pinfs.core.owners import HandleId
from pinfs.fs.inode import Inode
from pinfs.fs.types import CallerLike, os_error
from pinfs.journal.records import POLLED_WORD, HandleKind

if TYPE_CHECKING:
    from pinfs.fs.control import ControlHandle
    from pinfs.fs.recorder import Recorder
    from pinfs.fs.streamrecords import StreamRecords

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4

H = TypeVar("H", bound="Handle")


NO_NUMBER: Final = HandleId(0)


class Handle:
    """An open file description, as the kernel sees it: one for each open(2), shared by fork and SCM_RIGHTS.

    `flags` are those of open(2). `number` is the file handle in requests: `HandleTable.add` gives it. `slot`: of its
    record in the journal; 0: it has none.
    """

    __slots__ = ("__weakref__", "flags", "inode", "number", "slot")
    record_kind = HandleKind.FILE
    """As which it is written down."""

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode
        self.flags = flags
        self.number: HandleId = NO_NUMBER
        self.slot = 0

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def nonblocking(self) -> bool:
        return bool(self.flags & os.O_NONBLOCK)


class ByteHandle(Handle):
    """A handle that read(2), write(2) and poll(2) work on."""

    __slots__ = ()


class FileHandle(ByteHandle):
    """A handle of a regular file. `wakes` tell the kernel that the result of a poll(2) may have changed."""

    __slots__ = ("wakes",)

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode  # without super(), because each open makes one
        self.flags = flags
        self.slot = 0
        self.wakes: list[Wake] = []


class Wake(Protocol):
    """Makes the programs that poll a handle look again."""

    def __call__(self) -> None: ...


class HandleTable:
    """File handle numbers, counted from 1 and never used again: a number names one handle for the life of a mount."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        """Writes down which handles are open; None: the mount does not outlive the daemon."""
        self.streams: StreamRecords | None = None
        """The same for control files, with what their readers have been given."""
        self._handles: dict[int, Handle] = {}
        self.last = 0
        """The number that was given last."""

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle, caller: CallerLike) -> int:
        """The number that the handle has from now on."""
        number: HandleId = self.last + 1  # type: ignore[assignment]  # HandleId() would be one more call for each open
        self.last = handle.number = number
        self._handles[number] = handle
        if self.recorder is not None:
            self.recorder.handle(handle, caller)
        return number

    def add_control(self, handle: "ControlHandle", caller: CallerLike) -> int:
        """The same for a control file."""
        handle.number = HandleId(self.last + 1)
        self.last = handle.number
        self._handles[handle.number] = handle
        if self.streams is not None:
            self.streams.opened(handle, caller)
        return handle.number

    def polled(self, handle: Handle, wake: Wake) -> None:
        """A poll(2) waits for `wake`: the next daemon has to wake it, as the kernel does not ask again by itself."""
        if self.streams is not None:
            self.streams.set_word(handle.slot, POLLED_WORD, getattr(wake, "kh", 0))

    def restore(self, handle: Handle, number: int) -> None:
        """A handle that the daemon before had opened."""
        handle.number = HandleId(number)
        self._handles[number] = handle

    def count_on(self, last: int) -> None:
        """Numbers up to `last` have been given."""
        self.last = max(self.last, last)

    def get(self, fh: int, kind: type[H]) -> H:
        """EBADF: no such handle, or not of this kind."""
        handle = self._handles.get(fh)
        if handle is None or not isinstance(handle, kind):
            raise os_error(errno.EBADF)
        return handle

    def all(self) -> Iterable[Handle]:
        """Every open handle."""
        return self._handles.values()

    def find(self, fh: int) -> Handle | None:
        """The handle of a number; None: it is closed."""
        return self._handles.get(fh)

    def pop(self, fh: int) -> Handle:
        """EBADF: no such handle."""
        try:
            handle = self._handles.pop(fh)
        except KeyError:
            raise os_error(errno.EBADF) from None
        if handle.slot and self.recorder is not None:
            self.recorder.handle_closed(handle)
        return handle
