"""The O_PATH descriptors by which inodes are reached: kept for few of them, least recently used go first."""

from collections import OrderedDict
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from pinfs.linux.calls import close_fd

if TYPE_CHECKING:
    from pinfs.fs.inode import Inode


class InodeDescriptors:
    """Which inodes keep their `Inode.fd`, and for how long.

    Inodes with a name may lose theirs, because they can be opened again; those without one keep it. `note_life(inode)`
    is called before a descriptor is closed, after which the number of the inode may be used again.
    """

    def __init__(self, max_descriptors: int, pinned: Container[int], note_life: Callable[["Inode"], None]) -> None:
        self.max_descriptors = max_descriptors
        self.closable: OrderedDict[Inode, None] = OrderedDict()
        """Inodes whose descriptor may be closed, least recently used first."""
        self.close_elsewhere: Callable[[int], None] | None = None
        """For the last descriptors of files, where closing that of one without a name can take long."""
        self.on_foreign: Callable[[], None] = lambda: None
        """Called when a descriptor on another device than the source's is kept: it keeps a submount busy."""
        self.by_handle: Container[Inode] = ()
        """Inodes without a known name that a handle opens again."""
        self._pinned: set[Inode] = set()
        """Pinned inodes whose descriptor is kept though its turn to go had come: what is removed behind pinfs lasts as
        long as the pin. Half of all descriptors at most."""
        self._pinned_files = pinned
        self._note_life = note_life

    def __len__(self) -> int:
        return len(self.closable) + len(self._pinned)

    def keep(self, inode: "Inode", fd: int) -> None:
        """Take over a new descriptor of an inode."""
        inode.fd = fd
        if inode.name is not None or inode in self.by_handle:
            self.closable[inode] = None
        while len(self) > self.max_descriptors:
            self._let_go(self.closable.popitem(last=False)[0])
        if not isinstance(inode.key, int):
            self.on_foreign()

    def named(self, inode: "Inode") -> None:
        """The inode has got a name to be opened by again."""
        if inode.fd >= 0:
            self.closable[inode] = None

    def nameless(self, inode: "Inode") -> None:
        """The inode has lost its last name."""
        self.closable.pop(inode, None)
        self._pinned.discard(inode)

    def unpinned(self, inode: "Inode") -> None:
        """The inode has lost its last pin."""
        if inode in self._pinned:
            self._pinned.discard(inode)
            self.closable[inode] = None

    def close(self, inode: "Inode") -> None:
        """Close the descriptor of an inode."""
        self.nameless(inode)
        if inode.fd >= 0:
            self.close_last(inode.fd)
            inode.fd = -1

    def close_last(self, fd: int) -> None:
        """Close what may be the last descriptor of a file."""
        if self.close_elsewhere is None:
            close_fd(fd)
        else:
            self.close_elsewhere(fd)

    def let_go_of_foreign(self) -> None:
        """Close what keeps submounts of the source busy, but for pinned and nameless inodes."""
        for inode in [inode for inode in self.closable if not isinstance(inode.key, int)]:
            del self.closable[inode]
            self._let_go(inode)

    def _let_go(self, inode: "Inode") -> None:
        if inode.nodeid in self._pinned_files and len(self._pinned) < self.max_descriptors // 2:
            self._pinned.add(inode)
            return
        self._note_life(inode)
        self.close(inode)
