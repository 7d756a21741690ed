"""Inodes that are found by file handle, which NFS servers and open_by_handle_at(2) live on (mount option `nfs_export`).

The kernel's handle of an inode is its node id and its generation. When it meets one whose inode it has forgotten, it
looks up "." of the node id, and compares the generation that comes with the answer (fuse_get_dentry()): so the table
has to find an inode by its number alone, and the generation has to tell two lives of a number apart. It is a checksum
of the backing's own handle, which is noted when the inode is interned (`Inode.life`).

A handle is what a client says: it never leads where no name leads. What the backing opens by number counts only if the
walk from the source's root, name by name as lookups go, arrives at the same inode; the path that the kernel has for it
is a hint, and so is the name by which it was last known, or which a search of the source finds. For an inode without
one the source has to be a whole file system: then all that has a name lies inside.
"""

import math
import os
import secrets
import stat
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

import trio

from pinfs.fs.control import CONTROL_ID, Control
from pinfs.fs.directories import SLICE
from pinfs.fs.inode import FOREIGN_IDS, ROOT_ID, Inode, stale
from pinfs.fs.inodes import InodeTable
from pinfs.fs.lives import LIVED_BEFORE, life_of, settled_ctime_ns
from pinfs.fs.nonblocking import AT_ONCE
from pinfs.fs.search import Found, names_below
from pinfs.fs.submounts import Submounts
from pinfs.fs.types import Entry, StatLike, make_entry
from pinfs.linux import filehandles, mountinfo
from pinfs.linux.calls import stat_of
from pinfs.linux.filesystems import BTRFS_MAGIC
from pinfs.linux.syscalls import file_system_magic
from pinfs.runtime.parking import park

DOTS: Final = frozenset({b".", b".."})
MAX_REMEMBERED: Final = 100_000
"""Inodes that were dropped or met by a search, with their last names; some 300 bytes each."""
SEARCH_EVERY_S: Final = 60.0
"""A search takes a second at most, of a thread."""
RENAMES: Final = 3
"""How often a path is read again that names were changed in meanwhile."""
BTRFS_FIRST_FREE_OBJECTID: Final = 256
"""The number of each subvolume's root."""
_OPENS: Final = trio.CapacityLimiter(4)
"""Threads: the kernel may search the directories above an inode for its name, and read them from a disk."""


def unavailable_because(source_fd: int) -> str:
    """Why no inode of this directory can be opened by handle; empty where they can."""
    directory_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
    try:
        handle = filehandles.handle_of(directory_fd)
    except OSError:
        os.close(directory_fd)
        return "the file system of the source has no file handles"
    try:
        os.close(filehandles.open_handle(directory_fd, handle, os.O_PATH))
    except PermissionError:
        return "opening files by handle needs CAP_DAC_READ_SEARCH, as root outside of containers has it"
    except OSError as e:
        return f"the file system of the source opens no file by handle ({e.strerror})"
    finally:
        os.close(directory_fd)
    return ""


class _Last(NamedTuple):
    """What is remembered of an inode that was dropped: its handle where the number is not enough, its name."""

    handle: bytes | None
    parent: int
    name: bytes | None


class Exports:
    """Finds inodes by node id, and has their generations. For a source of which `unavailable_because` says nothing."""

    def __init__(self, inodes: InodeTable, control: Control, submounts: Submounts) -> None:
        self._inodes = inodes
        self._control = control
        self._slow_names = submounts.names
        self._directory_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inodes.root.fd)
        self._handle_by_number = filehandles.by_number(self._directory_fd)
        self._is_whole = _is_whole_file_system(inodes.root.fd)
        self.own_generation = secrets.randbits(32)
        """Of all whose node ids are of this mount only: `.pinfs`, and from FOREIGN_IDS up. A daemon that takes over
        keeps it, as the kernel drops an inode that comes with another one."""
        self._last: dict[int, _Last] = {}
        """By node id, the latest last."""
        self._nameless: set[Inode] = set()
        """Found by handle; no name is known."""
        self._searching = trio.Lock()
        self._searched = -SEARCH_EVERY_S
        """When the last search ended."""
        inodes.exports = self
        inodes.descriptors.by_handle = self._nameless

    @property
    def handles_last(self) -> bool:
        """Whether handles are good beyond the daemon's end, because the number alone leads to an inode."""
        return self._handle_by_number is not None

    def close(self) -> None:
        os.close(self._directory_fd)

    # What the inode table tells

    def named(self, inode: Inode, st: StatLike, fd: int, name: bytes = b"") -> None:
        """Note the life of an inode that has just come into the table, behind `name` in the directory `fd`, or as `fd`
        itself. It never changes after that, because the generation must not."""
        if inode.life is not None:
            return
        try:
            inode.life = filehandles.handle_of(fd, name)
        except OSError:  # it has gone again, or lies on a submount without handles
            inode.life = b"" if inode.nodeid < FOREIGN_IDS else None
        inode.ctime_ns = settled_ctime_ns(st)

    def dropped(self, inode: Inode) -> None:
        """Remember an inode that the table forgets, if it was not removed."""
        handle = inode.life if self._handle_by_number is None else None
        is_nameless, parent = inode in self._nameless, inode.parent
        self._nameless.discard(inode)
        if inode.nodeid >= FOREIGN_IDS or (parent is None and not (is_nameless and handle)):
            return
        self._remember(inode.nodeid, _Last(handle, 0 if parent is None else parent.nodeid, inode.name))

    def _remember(self, nodeid: int, last: _Last) -> None:
        self._last.pop(nodeid, None)
        self._last[nodeid] = last
        if len(self._last) > MAX_REMEMBERED:
            del self._last[next(iter(self._last))]

    def open(self, inode: Inode, flags: int) -> int:
        """open(2) of an inode without a known name. ESTALE: it was removed, or was never found by handle."""
        if inode not in self._nameless or not inode.life:
            raise stale()
        return filehandles.open_handle(self._directory_fd, inode.life, flags | AT_ONCE)

    # What the bridge asks

    def generation(self, nodeid: int) -> int:
        """Of the inode with this node id, 32 bits; the same as long as the kernel knows it."""
        if nodeid == ROOT_ID:  # which the kernel has made itself (fuse_get_root_inode())
            return 0
        inode = self._inodes.known(nodeid)
        if inode is None or inode.life is None or nodeid >= FOREIGN_IDS:
            return self.own_generation
        return crc32(self._life_before(inode) if inode.life is LIVED_BEFORE else inode.life)

    def _life_before(self, inode: Inode) -> bytes:
        """Of an inode that the daemon before has named: as that one has noted it."""
        fd = self._inodes.fd(inode)
        if inode.life is LIVED_BEFORE:
            inode.life = life_of(fd)
        return inode.life or b""

    async def lookup(self, nodeid: int, name: bytes) -> Entry:
        """The entry of the inode itself (".") or of the directory above (".."). Adds one to its lookup count.

        ESTALE: there is none, or not below the source, or no way to tell (docs/nfs.md).
        """
        if self._control.is_control(nodeid):
            nodeid = nodeid if name == b"." else ROOT_ID if nodeid == CONTROL_ID else CONTROL_ID
            if nodeid != ROOT_ID:
                return Entry(nodeid, self._control.stat(nodeid))
            name = b"."
        inode = self._inodes.known(nodeid) or await self._find(nodeid)
        try:
            wanted = self._above(inode) if name == b".." else inode
            st = self._inodes.stat(wanted)
            self._inodes.looked_up(wanted)
        finally:
            self._inodes.drop_if_unreferenced(inode)
        return make_entry((wanted.nodeid, st))

    def _above(self, inode: Inode) -> Inode:
        """The directory that a directory lies in, also after it was moved behind pinfs."""
        if inode is self._inodes.root:
            return inode
        parent = (self._by_path(inode.nodeid, self._inodes.fd(inode)) or inode).parent
        if parent is None:
            raise stale()
        return parent

    async def _find(self, nodeid: int, *, as_directory: bool = False) -> Inode:
        if nodeid >= FOREIGN_IDS:
            raise stale()
        await park()
        fd = await trio.to_thread.run_sync(self._open_by_number, nodeid, limiter=_OPENS)
        try:
            inode = await self._inode_of(nodeid, fd, as_directory=as_directory)
        except BaseException:
            os.close(fd)
            raise
        if inode.fd < 0:
            self._inodes.descriptors.keep(inode, fd)
        else:
            os.close(fd)
        return inode

    async def _inode_of(self, nodeid: int, fd: int, *, as_directory: bool) -> Inode:
        """The inode that `fd` was opened for by its number, if it is reached from the source's root. ESTALE."""
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != (self._inodes.device, nodeid) or not st.st_nlink:
            raise stale()
        inode = self._inodes.known(nodeid) or self._by_path(nodeid, fd)
        if inode is None and not stat.S_ISDIR(st.st_mode) and not as_directory:
            inode = await self._by_last_name(nodeid, fd)
            if inode is None:
                await self._search()
                inode = await self._by_last_name(nodeid, fd) or self._by_handle(st, fd)
        if inode is None:
            raise stale()
        if inode.life != filehandles.handle_of(fd) or (as_directory and inode.kind != stat.S_IFDIR):
            self._inodes.drop_if_unreferenced(inode)
            raise stale()
        return inode

    def _open_by_number(self, nodeid: int) -> int:
        """An O_PATH descriptor of what the backing has under this number, wherever it lies. ESTALE."""
        if self._handle_by_number is not None:
            handle = self._handle_by_number(nodeid)
        elif (last := self._last.get(nodeid)) is not None and last.handle:
            handle = last.handle
        else:
            raise stale()
        return filehandles.open_handle(self._directory_fd, handle, os.O_PATH)

    def _by_path(self, nodeid: int, fd: int) -> Inode | None:
        """By the path that the kernel knows. It has one for each directory, and for what it has met by name."""
        source = os.readlink(b"/proc/self/fd/%d" % self._inodes.root.fd).rstrip(b"/") + b"/"
        for _ in range(RENAMES):
            with suppress(OSError):
                path = os.readlink(b"/proc/self/fd/%d" % fd)
                if not path.startswith(source):
                    return None
                *above, name = path[len(source) :].split(b"/")
                return self._walk(above, name, nodeid, fd)
        return None

    async def _by_last_name(self, nodeid: int, fd: int) -> Inode | None:
        """By the name that it was last known by, if the directory is known or can be found."""
        last = self._last.get(nodeid)
        if last is None or last.name is None:
            return None
        with suppress(OSError):
            directory = self._inodes.known(last.parent) or await self._find(last.parent, as_directory=True)
            return self._arrive(directory, last.name, nodeid, fd)
        return None

    async def _search(self) -> None:
        """Learn the names of the source, up to the limit, unless that was done a short time ago."""
        if self._handle_by_number is None:  # then a handle is known, and with it the last name
            return
        async with self._searching:
            if trio.current_time() < self._searched + SEARCH_EVERY_S:
                return
            names = await trio.to_thread.run_sync(self._names, limiter=_OPENS)
            for number, found in enumerate(names):
                parent = ROOT_ID if found.parent == self._inodes.root.key else found.parent
                self._remember(found.ino, _Last(None, parent, found.name))
                if not number % SLICE:
                    await trio.lowlevel.checkpoint()
            not_all_and_not_needed = self._is_whole and len(names) == MAX_REMEMBERED
            self._searched = math.inf if not_all_and_not_needed else trio.current_time()

    def _names(self) -> list[Found]:
        return list(names_below(self._directory_fd, MAX_REMEMBERED, frozenset(self._slow_names)))

    def _by_handle(self, st: os.stat_result, fd: int) -> Inode | None:
        """Without a name, where all of the file system lies below the source."""
        if not self._is_whole or self._inodes.find(stat_of(st)) is not None:
            return None
        inode = self._inodes.intern_nameless(stat_of(st), fd)
        self._nameless.add(inode)
        self._inodes.descriptors.keep(inode, inode.fd)
        return inode

    # The way from the root

    def _walk(self, above: list[bytes], name: bytes, nodeid: int, fd: int) -> Inode:
        """The inode behind a path of directories and a name, if it is the one of `fd`. ESTALE, ENOENT..."""
        directory = self._inodes.root
        try:
            for component in above:
                st = self._stat(directory, component)
                if not stat.S_ISDIR(st.st_mode):
                    raise stale()
                directory = self._inodes.intern(directory, component, stat_of(st))
        except OSError:
            self._inodes.drop_if_unreferenced(directory)
            raise
        return self._arrive(directory, name, nodeid, fd)

    def _arrive(self, directory: Inode, name: bytes, nodeid: int, fd: int) -> Inode:
        """The inode behind a name, if it is the one of `fd`, and has this node id. ESTALE, ENOENT..."""
        reached = directory
        try:
            st = self._stat(directory, name)
            here = filehandles.handle_of(self._inodes.fd(directory), name)
            if st.st_ino == nodeid and here == filehandles.handle_of(fd):
                reached = self._inodes.intern(directory, name, stat_of(st))
            if reached.nodeid != nodeid:
                raise stale()
            return reached
        except OSError:
            self._inodes.drop_if_unreferenced(reached)
            raise

    def _stat(self, directory: Inode, name: bytes) -> os.stat_result:
        """lstat(2) of a name that a lookup would find on the source's device. ESTALE, ENOENT..."""
        if name in self._slow_names or self._control.owns(directory.nodeid, name):
            raise stale()
        st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        if st.st_dev != self._inodes.device:
            raise stale()
        return st


def _is_whole_file_system(directory_fd: int) -> bool:
    """Whether a directory is the root of its file system, so that all of the file system lies below."""
    if file_system_magic(directory_fd) == BTRFS_MAGIC:  # or of its subvolume, which has a device of its own
        return os.fstat(directory_fd).st_ino == BTRFS_FIRST_FREE_OBJECTID
    mount = mountinfo.mount_of(directory_fd)
    return mount is not None and (mount.root, mount.point) == ("/", os.readlink(f"/proc/self/fd/{directory_fd}"))
