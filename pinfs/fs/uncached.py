"""Files whose attributes the kernel must not cache."""

import fcntl
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from pinfs.fs.inode import Inode


class UncachedFiles(set[int]):
    """Node ids of files that change without a request.

    With passthrough, a store through a shared mapping goes straight to the pages of the backing file: its mtime, its
    ctime and its blocks change, and neither FUSE nor the daemon is told. So:

    - A file enters when it is opened for reading and writing with a registered backing file: a shared mapping that can
      be stored to needs such a handle (mmap(2)).
    - While it is in here, replies carry its attributes with the shortest timeout there is (`wire.A_TICK`: the kernel's
      clock for the times of files does not move within it). Not with none: each pin of a file that is open for writing
      would then be two requests, because the kernel wants the attributes to see whether the caller may write. The reply
      to an open carries no attributes, so `on_entered` invalidates those that the kernel has cached.
    - A mapping may outlive all handles, and then only the kernel knows of it. The file leaves as soon as `recheck`
      finds that no handle and no mapping can store to it, or when the inode table drops it.
    """

    def __init__(self, open_inode: Callable[[Inode, int], int]) -> None:
        super().__init__()
        self.on_entered: Callable[[int], None] = lambda nodeid: None
        """Called with the node id of a file of which the kernel may have cached attributes."""
        self._open_inode = open_inode

    def enter(self, nodeid: int, with_attributes: bool) -> None:
        """The file was opened as said above. `with_attributes`: the reply carries those that it has now."""
        self.add(nodeid)
        if not with_attributes:
            self.on_entered(nodeid)

    def recheck(self, inode: Inode) -> None:
        """Let the kernel cache the attributes of `inode` again if nothing can store to it any more.

        The kernel grants a read lease on no file that is open for writing (fcntl(2), F_SETLEASE), and a mapping keeps
        its file open. On a backing without leases the file stays uncached.
        """
        if inode.file is not None and inode.file.writer >= 0:
            return
        with suppress(OSError):
            fd = self._open_inode(inode, os.O_RDONLY | os.O_NONBLOCK)
            try:
                # A program that opens the file right now breaks this lease: of its signals SIGIO would end the daemon.
                fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                self.discard(inode.nodeid)
            finally:
                os.close(fd)
