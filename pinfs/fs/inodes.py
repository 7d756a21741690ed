"""The inode table: what the kernel knows by number, and how to reach it in the source directory.

An inode is reached through its parent's descriptor and its name, never through a path: renaming a directory or planting
a symlink redirects nothing. What is found is checked against the inode number before it is used, so that a name that
leads to another file since something changed the source behind pinfs gives ESTALE, never the other file's data. That
holds for a number which the backing has used again, too (`fs/lives.py`).
Descriptors are kept for few inodes only (`fs/inodefds.py`). An inode that has lost its last name keeps its descriptor,
because nothing else leads to it. Directories may be nested as deep as the backing allows: nothing here recurses.
"""

import os
import stat
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from os import O_NOFOLLOW, O_PATH
from typing import TYPE_CHECKING

from pinfs.core.files import Files
from pinfs.fs.inode import FOREIGN_IDS, KIND_BITS, O_PATH_NOFOLLOW, ROOT_ID, Inode, Key, Name, is_or_lies_in, stale
from pinfs.fs.inodefds import InodeDescriptors
from pinfs.fs.lives import LIVED_BEFORE, life_of, settled_ctime_ns, was_born_after
from pinfs.fs.nonblocking import AT_ONCE, open_error
from pinfs.fs.types import os_error
from pinfs.linux.calls import Stat, close_fd, open_at, stat_at, stat_fd, stat_of
from pinfs.linux.filesystems import IN_MEMORY, ON_DISK
from pinfs.linux.syscalls import file_system_magic

if TYPE_CHECKING:
    from pinfs.fs.exports import Exports
    from pinfs.fs.recorder import Recorder


class InodeTable:
    """All inodes that the kernel, a handle or a pin refers to, and the directories that lead to these.

    Takes over the descriptor `root_fd`.
    """

    def __init__(self, root_fd: int, max_descriptors: int, pinned: Files) -> None:
        """`pinned`: the files with pins."""
        st = os.fstat(root_fd)
        self.device = st.st_dev
        self.first_spare = sys.maxsize
        """The descriptor number from which on none is kept for an inode without a name (see Budget.files)."""
        self.root = Inode(ROOT_ID, st.st_ino, stat.S_IFDIR)
        self.root.fd = root_fd
        self.root.lookups = 1  # of the kernel, which never forgets the root
        self._root_ino = st.st_ino
        self._has_our_clock = file_system_magic(root_fd) in IN_MEMORY | ON_DISK
        self._pinned = pinned
        self.sealed: Container[int] = ()
        """Node ids of files whose seals are to be lifted: they stay in the table."""
        self.recorder: Recorder | None = None
        """Writes down what changes here; None: the mount does not outlive the daemon."""
        self.taken_over_ns = 0
        """When this daemon took over, since the epoch; 0: it mounted."""
        self.by_id: dict[int, Inode] = {ROOT_ID: self.root}
        """All of them, by node id; only the table itself changes it."""
        self.known = self.by_id.get
        """The inode of a node id, or None."""
        self._reserved_inos: set[Key] = {ROOT_ID, st.st_ino}
        """Inode numbers of the source's device that are no node ids, or not their own: the root's, and those that the
        backing has used again."""
        self._foreign: dict[Key, int] = {}
        self._next_foreign = FOREIGN_IDS
        self.on_forgotten: Callable[[Inode], None] = lambda inode: None
        """Called with an inode that has an open backing file, but that the kernel does not know any more."""
        self.on_dropped: Callable[[int], None] = lambda nodeid: None
        """Called with the node id of an inode that the table no longer holds."""
        self.exports: Exports | None = None
        self.descriptors = InodeDescriptors(max_descriptors, pinned, self._note_life)
        self._closable = self.descriptors.closable
        self._st = Stat()

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self.by_id.values())

    def get(self, nodeid: int) -> Inode:
        """The inode of a node id. ESTALE: the kernel knows more than we do."""
        try:
            return self.by_id[nodeid]
        except KeyError:
            raise stale() from None

    def find(self, st: Stat) -> Inode | None:
        """The inode with the number in a stat result, if one is known. Whether it is the same: `is_same`."""
        ino = st.st_ino
        if st.st_dev == self.device and ino not in self._reserved_inos:
            return self.by_id.get(ino)
        key = self.key_of(st)
        if key == self._root_ino:
            return self.root
        nodeid = self._foreign.get(key)
        return None if nodeid is None else self.by_id[nodeid]

    def find_key(self, device: int, ino: int) -> Inode | None:
        """The inode with these numbers, if one is known."""
        key: Key = ino if device == self.device else (device, ino)
        nodeid = self._foreign.get(key, ino if isinstance(key, int) else 0)
        return self.by_id.get(nodeid)

    def find_name(self, name: Name) -> Inode | None:
        """The inode that a name leads to, if it is known."""
        directory, component = name
        try:
            st = os.stat(component, dir_fd=self.fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self.behind(name, stat_of(st))

    def behind(self, name: Name, st: Stat) -> Inode | None:
        """The inode that stat(2) has found behind a name, if it is known."""
        inode = self.find(st)
        return inode if inode is None or self._is_same(inode, st, name) else None

    def intern(self, parent: Inode, name: bytes, st: Stat) -> Inode:
        """The inode that stat(2) found behind `name` in `parent`, new or known. Does not count as a lookup."""
        inode = self.find(st)
        if inode is None:
            inode = self.add(st)
        elif inode.life is not None and not self._is_same(inode, st, (parent, name)):
            inode = self.add_again(inode, st)
        if inode.name != name or inode.parent is not parent:
            if self.exports is not None:
                self.exports.named(inode, st, self.fd(parent), name)
            self.add_name(inode, parent, name, st.st_nlink)
        return inode

    def intern_nameless(self, st: Stat, fd: int) -> Inode:
        """The inode of an O_TMPFILE (or one that was found by handle), reached by a duplicate of `fd`. EMFILE.

        The kernel may still know its number from a file that was removed behind pinfs.
        """
        kept_fd = os.dup(fd)
        old = self.find(st)
        inode = self.add(st) if old is None else self.add_again(old, st)
        inode.fd = kept_fd
        if self.recorder is not None:
            self.recorder.inode(inode)
        if self.exports is not None:
            self.exports.named(inode, st, fd)
        return inode

    def key_of(self, st: Stat) -> Key:
        if st.st_dev == self.device:
            return st.st_ino
        return st.st_dev, st.st_ino

    def add(self, st: Stat) -> Inode:
        key = self.key_of(st)
        nodeid = key if isinstance(key, int) and key not in self._reserved_inos else self._foreign_id(key)
        inode = self.by_id[nodeid] = Inode(nodeid, key, st.st_mode & KIND_BITS)
        return inode

    def restore(self, nodeid: int, key: Key, kind: int) -> Inode:
        """An inode of the daemon before, without a name so far. `kind`: S_IFMT."""
        inode = self.by_id[nodeid] = Inode(nodeid, key, kind)
        inode.life = LIVED_BEFORE
        if nodeid >= FOREIGN_IDS:
            self._foreign[key] = max(nodeid, self._foreign.get(key, 0))
            self._next_foreign = max(self._next_foreign, nodeid + 1)
            if isinstance(key, int):
                self._reserved_inos.add(key)
        return inode

    def restore_name(self, inode: Inode, parent: Inode, name: bytes, *, is_first: bool) -> None:
        """A name of it; `is_first`: that by which it is reached, else a further one."""
        parent.children += 1
        if is_first:
            inode.parent, inode.name = parent, name
        else:
            inode.links = inode.links if inode.links is not None else set()
            inode.links.add((parent, name))

    # Numbers that were used again

    def _is_same(self, inode: Inode, st: Stat, name: Name) -> bool:
        """Whether stat(2) of `name` found this inode, and not another one that has got its number since."""
        if inode.life is None or inode.ctime_ns == st.st_ctime_ns or inode.fd >= 0 or inode.file is not None:
            return True
        fd = os.open(name[1], O_PATH_NOFOLLOW, dir_fd=self.fd(name[0]))
        if not self._is_open_as(inode, fd):
            close_fd(fd)
            return False
        self.descriptors.keep(inode, fd)
        return True

    def _is_open_as(self, inode: Inode, fd: int) -> bool:
        """Whether `fd` is a descriptor of this inode."""
        st = self._st
        if error := stat_fd(fd, st):
            raise os_error(error)
        return self._is_found(inode, fd, st)

    def _is_found(self, inode: Inode, fd: int, st: Stat) -> bool:
        """The same, where fstat(2) of `fd` has told `st`."""
        if self.key_of(st) != inode.key or st.st_mode & KIND_BITS != inode.kind:
            return False
        if inode.life is None or inode.ctime_ns == st.st_ctime_ns:
            return True
        if inode.life is LIVED_BEFORE:
            if was_born_after(fd, self._last_seen_ns(inode)):
                return False
            inode.life = life_of(fd)
        elif life_of(fd) != inode.life:
            return False
        inode.ctime_ns = settled_ctime_ns(st)
        return True

    def _last_seen_ns(self, inode: Inode) -> int:
        """When the daemon before knew it. Other machines have clocks of their own: there, when it was taken over."""
        if self.recorder is None or not inode.slot or not self._has_our_clock:
            return self.taken_over_ns
        return self.recorder.seen_ns(inode)

    def prepare_close(self, inode: Inode, may_be_cached: bool) -> None:
        """Before the backing file of an inode is closed: keep a descriptor of it, or else note its life.

        The number of an inode without descriptors may be used again. `may_be_cached`: the kernel has its data.
        """
        if inode.fd >= 0:
            return
        if inode.name is None or inode.nodeid in self.sealed or inode.nodeid in self._pinned:
            self.fd(inode)  # the kernel may still know it, and no name leads to it; or what is removed lasts for a pin
        elif may_be_cached:
            self._note_life(inode)

    def _note_life(self, inode: Inode) -> None:
        if inode.life is None:
            fd = inode.fd if inode.file is None else inode.file.any_fd
            inode.life = life_of(fd)
            inode.ctime_ns = settled_ctime_ns(os.fstat(fd))

    def add_again(self, old: Inode, st: Stat) -> Inode:
        """The number of `old` was used again: the new inode gets its own node id, and no name leads to `old` now."""
        for parent, name in tuple(self.names_of(old)):
            self.drop_name(old, parent, name)
        if isinstance(old.key, int):
            self._reserved_inos.add(old.key)
        return self.add(st)

    def _foreign_id(self, key: Key) -> int:
        nodeid = self._foreign[key] = self._next_foreign
        self._next_foreign += 1
        return nodeid

    # Names: each name of an inode keeps its directory in the table.

    def add_name(self, inode: Inode, parent: Inode, name: bytes, nlink: int) -> None:
        if inode is self.root or (inode.name == name and inode.parent is parent):
            return
        if inode.name is not None and nlink > 1 and inode.kind != stat.S_IFDIR:
            self._add_link(inode, parent, name)
            return
        if (inode.children or inode is parent) and is_or_lies_in(parent, inode):
            return
        old_parent = inode.parent  # unless None, the inode was renamed behind pinfs
        inode.parent, inode.name = parent, name
        parent.children += 1
        if old_parent is not None:
            self._leave(old_parent)
        elif inode.fd >= 0:
            self.descriptors.named(inode)
        if self.recorder is not None:
            self.recorder.inode(inode)

    def _add_link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        links = inode.links = inode.links if inode.links is not None else set()
        if (parent, name) not in links:
            links.add((parent, name))
            parent.children += 1
            if self.recorder is not None:
                self.recorder.link(inode, parent, name)

    def _leave(self, parent: Inode) -> None:
        parent.children -= 1
        self.drop_if_unreferenced(parent)

    def hold_for_unlink(self, parent: Inode, name: bytes, st: Stat | None = None) -> Inode | None:
        """The known inode behind a name that is about to go, made reachable without it; None where it is not known.

        `st` is filled with what is there; a number of 0: nothing.
        """
        st = self._st if st is None else st
        try:
            fd = open_at(self.fd(parent), name, O_PATH_NOFOLLOW, 0)
        except FileNotFoundError:
            st.st_ino = 0
            return None
        if error := stat_fd(fd, st):
            close_fd(fd)
            raise os_error(error)
        inode = self.find(st)
        if inode is None or inode.fd >= 0 or inode.file is not None:
            close_fd(fd)
        elif not self._is_found(inode, fd, st):
            close_fd(fd)
            return None
        elif self._only_name(inode, parent, name) and fd < self.first_spare:
            self.descriptors.keep(inode, fd)
        else:
            close_fd(fd)  # without one left for it, an inode without a name is ESTALE from now on
        return inode

    def keep_reachable(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Before `name` in `parent` goes: make sure that the inode can be reached without it."""
        if inode.fd < 0 and inode.file is None and self._only_name(inode, parent, name):
            self.fd(inode)
        self.keep_for_the_next(inode, parent, name)

    def keep_for_the_next(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """The same for the daemon that takes over when this one is killed as soon as the name has gone."""
        if self.recorder is not None and inode.kind == stat.S_IFREG and self._only_name(inode, parent, name):
            self.recorder.nameless(inode)

    def _only_name(self, inode: Inode, parent: Inode, name: bytes) -> bool:
        return not inode.links and inode.name == name and inode.parent is parent

    def drop_name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """`name` in `parent` no longer leads to the inode."""
        if inode.links and (parent, name) in inode.links:
            inode.links.discard((parent, name))
            if self.recorder is not None:
                self.recorder.unlink(inode, parent, name)
            self._leave(parent)
        elif inode.name == name and inode.parent is parent:
            other = inode.links.pop() if inode.links else None
            inode.parent, inode.name = other or (None, None)
            if other is None:
                self.descriptors.nameless(inode)
            if self.recorder is not None:
                self.recorder.renamed(inode)  # first: what is said twice is found
                if other is not None:
                    self.recorder.unlink(inode, *other)
            self._leave(parent)

    def move(self, inode: Inode, old: Name, new: Name) -> None:
        """The inode was renamed."""
        if inode.name == old[1] and inode.parent is old[0]:
            self.add_name(inode, *new, 1)  # in one step, so that no record ever says that it has no name
            return
        target = new[0]
        target.children += 1  # first, so that a directory that is left and entered again is not dropped between
        self.drop_name(inode, *old)
        self.add_name(inode, *new, 1 if inode.name is None else 2)
        self._leave(target)

    # Lookup counts

    def looked_up(self, inode: Inode, unique: int = 0) -> None:
        """The kernel gets one more reference, with an entry. Written down before the entry goes out: with a count that
        is too low the kernel would have an inode that the next daemon does not know. `unique`: see the recorder's."""
        inode.lookups += 1
        if inode.slot and self.recorder is not None:
            self.recorder.looked_up(inode, unique)

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The kernel drops `nlookup` of the references that it got with entries."""
        inode = self.by_id.get(nodeid)
        if inode is not None and inode is not self.root:
            inode.lookups = max(0, inode.lookups - nlookup)
            if inode.slot and self.recorder is not None:
                self.recorder.lookups(inode)
            self.drop_if_unreferenced(inode)

    def drop_if_unreferenced(self, inode: Inode) -> None:
        """Drop an inode that nothing refers to any more, and then the directories that only led to it."""
        if inode.lookups:
            return
        pending = [inode]
        while pending:
            inode = pending.pop()
            if inode.lookups:
                continue
            if inode.file is not None:
                self.on_forgotten(inode)
            if inode.children or inode.file is not None or inode.nodeid in self.sealed or inode.nodeid in self._pinned:
                continue
            if self.by_id.get(inode.nodeid) is inode:
                pending += self._drop(inode)

    def _drop(self, inode: Inode) -> list[Inode]:
        """Take an inode out of the table. Returns the directories that have one child fewer now."""
        del self.by_id[inode.nodeid]
        if inode.slot and self.recorder is not None:
            self.recorder.inode_dropped(inode)
        self.on_dropped(inode.nodeid)
        if self.exports is not None:
            self.exports.dropped(inode)
        if self._foreign.get(inode.key) == inode.nodeid:
            del self._foreign[inode.key]
        if inode.key in self._reserved_inos and inode.key not in (ROOT_ID, self._root_ino):
            self._unreserve(inode.key)
        self.descriptors.close(inode)
        directories = [] if inode.parent is None else [inode.parent]
        if inode.links:
            directories += [directory for directory, _ in inode.links]
        inode.parent = inode.name = inode.links = None
        for directory in directories:
            directory.children -= 1
        return directories

    def _unreserve(self, key: Key) -> None:
        """After an inode whose number was used again has been dropped."""
        if key not in self._foreign and key not in self.by_id:
            self._reserved_inos.discard(key)

    def drop_id_if_unreferenced(self, nodeid: int) -> None:
        """As `drop_if_unreferenced`, for an inode that has just lost its last pin."""
        inode = self.by_id.get(nodeid)
        if inode is not None:
            self.descriptors.unpinned(inode)
            self.drop_if_unreferenced(inode)

    def path_of(self, nodeid: int) -> str | None:
        """The path of an inode below the root of the mount; None where it has no name (any more)."""
        inode = self.by_id.get(nodeid)
        return None if inode is None else inode.path()

    # Descriptors

    def fd(self, inode: Inode) -> int:
        """An O_PATH descriptor of the inode; the table's own, valid until the next call of fd()."""
        if inode.fd >= 0:
            if inode in self._closable:
                self._closable.move_to_end(inode)
            return inode.fd
        unopened = [inode]
        while (parent := unopened[-1].parent) is not None and parent.fd < 0:
            unopened.append(parent)
        while unopened:
            self._open_descriptor(unopened.pop())
        return inode.fd

    def _open_descriptor(self, inode: Inode) -> None:
        if inode.file is not None:
            fd = os.open(b"/proc/self/fd/%d" % inode.file.any_fd, os.O_PATH | os.O_CLOEXEC)
        else:
            fd = self.open(inode, O_PATH_NOFOLLOW)
        self.descriptors.keep(inode, fd)

    def open(self, inode: Inode, flags: int) -> int:
        """A new descriptor with open(2) flags, checked to be of this inode; it belongs to the caller.

        ESTALE: none of its names leads to the inode any more (the source changed behind pinfs). EAGAIN: a lease.
        """
        if inode.fd >= 0:
            if flags & O_PATH:
                return os.dup(inode.fd)
            try:
                return os.open(b"/proc/self/fd/%d" % inode.fd, flags & ~os.O_NOFOLLOW | AT_ONCE)
            except OSError as e:
                raise open_error(e) from e
        for parent, name in self.names_of(inode):
            try:
                fd = open_at(self.fd(parent), name, flags | O_NOFOLLOW | AT_ONCE, 0)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as e:
                raise open_error(e) from e
            if self._is_open_as(inode, fd):
                return fd
            close_fd(fd)
        if inode.name is None and self.exports is not None:
            return self.exports.open(inode, flags)
        raise stale()

    @staticmethod
    def names_of(inode: Inode) -> Iterable[Name]:
        if inode.parent is None or inode.name is None:
            return inode.links or ()
        return ((inode.parent, inode.name), *(inode.links or ()))

    def stat(self, inode: Inode) -> os.stat_result:
        """lstat(2) of the inode. ESTALE: as open()."""
        if inode.file is not None:
            return os.fstat(inode.file.any_fd)
        if inode.fd >= 0:
            return os.fstat(inode.fd)
        st = self._stat_by_name(inode)
        if st is not None:
            return st
        if inode.name is None:
            return os.fstat(self.fd(inode))
        raise stale()

    def stat_into(self, inode: Inode, st: Stat) -> bool:
        """The usual case of `stat`. False: it takes more to reach this one."""
        if inode.file is not None:
            return stat_fd(inode.file.any_fd, st) == 0
        if inode.fd >= 0:
            return stat_fd(inode.fd, st) == 0
        return self._is_at_first_name(inode, st)

    def _is_at_first_name(self, inode: Inode, st: Stat) -> bool:
        """The usual case of `_stat_by_name`. False: it takes more to tell."""
        parent, name = inode.parent, inode.name
        if parent is None or name is None or inode.life is not None or stat_at(self.fd(parent), name, st):
            return False
        return st.st_ino == inode.nodeid < FOREIGN_IDS and st.st_dev == self.device

    def size(self, inode: Inode) -> int:
        """st_size, in bytes, of an inode that is about to be pinned, which keeps a descriptor from now on.

        For an open file by lseek(2), at a third of what making a stat_result costs.
        """
        if inode.file is not None:
            return os.lseek(inode.file.any_fd, 0, os.SEEK_END)  # the position of this descriptor is not used
        if error := stat_fd(self.fd(inode), self._st):
            raise os_error(error)
        return self._st.st_size

    def leads_to(self, inode: Inode) -> bool:
        """Whether a name still leads to the inode."""
        return self._is_at_first_name(inode, self._st) or self._stat_by_name(inode) is not None

    def _stat_by_name(self, inode: Inode) -> os.stat_result | None:
        for name in self.names_of(inode):
            try:
                st = os.stat(name[1], dir_fd=self.fd(name[0]), follow_symlinks=False)
                found = stat_of(st)
                if self.key_of(found) == inode.key and (inode.life is None or self._is_same(inode, found, name)):
                    return st
            except (FileNotFoundError, NotADirectoryError):
                continue
        return None

    def handle(self, inode: Inode) -> int | bytes:
        """For calls that take a descriptor or a path: the open backing file, else a path to exactly this inode."""
        return self.magic_path(inode) if inode.file is None else inode.file.any_fd

    def any_fd(self, inode: Inode) -> int:
        """A descriptor of the inode, whatever for: that of the open backing file, else as fd()."""
        return self.fd(inode) if inode.file is None else inode.file.any_fd

    def magic_path(self, inode: Inode) -> bytes:
        """A path that leads to exactly this inode, for calls that take no O_PATH descriptor."""
        return b"/proc/self/fd/%d" % self.fd(inode)

    def close(self) -> None:
        """Close everything; the table is of no use afterwards."""
        for inode in self.by_id.values():
            if inode.file is not None:
                inode.file.close(self.descriptors.close_last)
            self.descriptors.close(inode)
        self.by_id.clear()
