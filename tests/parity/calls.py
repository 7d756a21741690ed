"""The system calls of a parity run, and the worker process that makes them.

A worker makes each call twice, first under the native directory and then under the mount, and answers both results as
plain values that can be compared: it is one process with one set of credentials, one umask and two sets of open files.
Standard library only: replay scripts carry this file with them (see pair.py).
"""

import ast
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

PROGRAM = __file__
CAPABILITY_VERSION_3 = 0x20080522
CAP_FSETID = 4
CLOCK_REALTIME_COARSE = 5  # clock_gettime(2): the clock of time stamps
FALLOC = {
    "KEEP_SIZE": 1,
    "PUNCH_HOLE": 2,
    "COLLAPSE_RANGE": 8,
    "ZERO_RANGE": 16,
    "INSERT_RANGE": 32,
    "UNSHARE_RANGE": 64,
}
RENAME = {"NOREPLACE": 1, "EXCHANGE": 2, "WHITEOUT": 4}
AT = {"SYMLINK_NOFOLLOW": 0x100, "EACCESS": 0x200, "SYMLINK_FOLLOW": 0x400, "EMPTY_PATH": 0x1000}
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD = -100
PAGE = 4096
SET_IDS = stat.S_ISUID | stat.S_ISGID
ACCESS_ACL = "system.posix_acl_access"
NATIVE, MOUNTED = 0, 1
"""The places of the two sides in every list of both."""
# ns; other times were set on purpose and are compared as they are
NEAR_NOW = range(1_600_000_000_000_000_000, 4_000_000_000_000_000_000)

libc = ctypes.CDLL(None, use_errno=True)


def bits(names: str, table: dict[str, int] | None = None, prefix: str = "O_") -> int:
    """The value of flags written as "RDWR|CREAT", from a table or from os.O_* and the like."""
    known = [table[name] if table else getattr(os, prefix + name) for name in names.split("|") if name]
    value = 0
    for one in known:
        value |= one
    return value


def checked(result: int) -> int:
    """The result of a C function; raises what it left in errno."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


Fill = tuple[bytes, int]
"""Data: a letter and how often. Short in a script."""


def filled(*fills: Fill) -> bytes:
    return b"".join(letter * times for letter, times in fills)


Runs = list[tuple[int, bytes]]


def runs(data: bytes) -> Runs:
    """Data as a report shows it: each run of equal bytes as one."""
    found: Runs = []
    at = 0
    while at < len(data):
        rest = data[at:].lstrip(data[at : at + 1])
        found.append((len(data) - at - len(rest), data[at : at + 1]))
        at = len(data) - len(rest)
    return found


def long(value: int) -> ctypes.c_longlong:
    return ctypes.c_longlong(value)


def may_keep_set_ids() -> bool:
    """Whether this process has CAP_FSETID (capabilities(7)): its writes then leave set-id bits alone."""
    with open("/proc/self/status") as lines:
        status = dict(line.split(":", 1) for line in lines)
    return bool(int(status["CapEff"], 16) >> CAP_FSETID & 1)


class Flock:
    """struct flock of fcntl(2), 64-bit."""

    FORM = "hhqqi4x"

    @classmethod
    def pack(cls, kind: str, start: int, length: int) -> bytes:
        return struct.pack(cls.FORM, getattr(fcntl, "F_" + kind), os.SEEK_SET, start, length, 0)

    @classmethod
    def show(cls, raw: bytes) -> tuple[int, ...]:
        """Without the pid: it is a worker's on both sides, and -1 for OFD locks."""
        return struct.unpack(cls.FORM, raw)[:4]


class Side:
    """One of the two directories as one process sees it. Every public method is a call that a step can make.

    `unseen`: names of facts (atime, blocks, ...) that are not compared.
    """

    def __init__(self, root: bytes, unseen: Iterable[str]) -> None:
        self.root = root
        self.unseen = set(unseen)
        self.slots: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}
        self._times: dict[tuple[int, str], int] = {}
        self.may_keep_set_ids = may_keep_set_ids()

    def path(self, name: bytes) -> bytes:
        return self.root + b"/" + name

    def _put(self, slot: int, fd: int) -> None:
        if slot in self.slots:
            os.close(self.slots.pop(slot))
        self.slots[slot] = fd

    # --- what stat shows

    def _time(self, inode: int, which: str, ns: int) -> str | int:
        """Times near now are told as changed or not since this process last looked: the sides cannot agree on more."""
        if ns not in NEAR_NOW:
            return ns
        before = self._times.get((inode, which))
        self._times[inode, which] = ns
        return "same" if before == ns else "older" if before and ns < before else "changed"

    def _facts(self, st: os.stat_result) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "mode": stat.filemode(st.st_mode),
            "nlink": st.st_nlink,
            "uid": st.st_uid,
            "gid": st.st_gid,
            "rdev": st.st_rdev,
            "size": st.st_size,
            "blocks": st.st_blocks,
            "mtime": self._time(st.st_ino, "m", st.st_mtime_ns),
            "ctime": self._time(st.st_ino, "c", st.st_ctime_ns),
        }
        if stat.S_ISREG(st.st_mode):  # directories and links are cached: reading them may not touch atime (promises.md)
            facts["atime"] = self._time(st.st_ino, "a", st.st_atime_ns)
        return self._seen(facts)

    def _seen(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in facts.items() if name not in self.unseen}

    def stat(self, path: bytes) -> dict[str, Any]:
        return self._facts(os.stat(self.path(path)))

    def lstat(self, path: bytes) -> dict[str, Any]:
        return self._facts(os.lstat(self.path(path)))

    def fstat(self, slot: int) -> dict[str, Any]:
        return self._facts(os.fstat(self.slots[slot]))

    def statx(self, path: bytes, flags: str) -> dict[str, Any]:
        """The fields of statx(2) that stat does not have."""
        buffer = ctypes.create_string_buffer(256)
        checked(libc.statx(AT_FDCWD, self.path(path), bits(flags, AT), 0xFFF, buffer))
        mask, _block, attributes = struct.unpack_from("IIQ", buffer.raw)
        (inode,) = struct.unpack_from("Q", buffer.raw, 32)
        seconds, nanoseconds = struct.unpack_from("qI", buffer.raw, 80)
        btime = self._time(inode, "b", seconds * 10**9 + nanoseconds) if mask & 0x800 else None
        attributes &= 0x874  # compressed, immutable, append, nodump, encrypted
        return self._seen({"mask": mask & 0xFFF, "attributes": attributes, "btime": btime})

    # --- files

    def open(self, slot: int, path: bytes, flags: str, mode: int) -> None:
        self._put(slot, os.open(self.path(path), bits(flags) | os.O_NONBLOCK | os.O_NOCTTY, mode))

    def openat(self, slot: int, directory: int, path: bytes, flags: str, mode: int) -> None:
        fd = os.open(path, bits(flags) | os.O_NONBLOCK | os.O_NOCTTY, mode, dir_fd=self.slots[directory])
        self._put(slot, fd)

    def reopen(self, slot: int, old: int, flags: str) -> None:
        """Through the magic link of an open file: O_PATH handles become readable so.

        Never the link itself: it is procfs's, and its mode changes when the number of a descriptor is used again.
        """
        wanted = bits(flags) | os.O_NONBLOCK
        if wanted & os.O_PATH:
            wanted &= ~os.O_NOFOLLOW
        self._put(slot, os.open(f"/proc/self/fd/{self.slots[old]}", wanted))

    def dup(self, slot: int, old: int) -> None:
        self._put(slot, os.dup(self.slots[old]))

    def close(self, slot: int) -> None:
        os.close(self.slots.pop(slot))

    def read(self, slot: int, length: int) -> Runs:
        return runs(os.read(self.slots[slot], length))

    def pread(self, slot: int, length: int, offset: int) -> Runs:
        return runs(os.pread(self.slots[slot], length, offset))

    def direct_read(self, slot: int, length: int, offset: int) -> Runs:
        """Into aligned memory, as O_DIRECT wants it."""
        with mmap.mmap(-1, max(length, 1)) as memory:
            with memoryview(memory)[:length] as target:
                done = os.preadv(self.slots[slot], [target], offset)
            return runs(memory[:done])

    def direct_write(self, slot: int, data: Fill, offset: int) -> int:
        with mmap.mmap(-1, max(data[1], 1)) as memory:
            memory.write(filled(data))
            return os.pwritev(self.slots[slot], [memoryview(memory)[: data[1]]], offset)

    def write(self, slot: int, data: Fill) -> int:
        return os.write(self.slots[slot], filled(data))

    def pwrite(self, slot: int, data: Fill, offset: int) -> int:
        return os.pwrite(self.slots[slot], filled(data), offset)

    def pwritev(self, slot: int, pieces: list[Fill], offset: int, flags: str) -> int:
        return os.pwritev(self.slots[slot], [filled(piece) for piece in pieces], offset, bits(flags, prefix="RWF_"))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.path(path), size)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def fallocate(self, slot: int, mode: str, offset: int, length: int) -> None:
        checked(libc.fallocate(self.slots[slot], bits(mode, FALLOC), long(offset), long(length)))

    def lseek(self, slot: int, offset: int, whence: str) -> int | None:
        """Not in directories: positions there are cookies of the file system."""
        if stat.S_ISDIR(os.fstat(self.slots[slot]).st_mode):
            return None
        return os.lseek(self.slots[slot], offset, bits(whence, prefix="SEEK_"))

    def copy_file_range(self, source: int, target: int, length: int, offset_in: int, offset_out: int) -> int | None:
        """Not with O_DIRECT: the mount copies what some file systems refuse as not aligned."""
        fds = self.slots[source], self.slots[target]
        if any(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT for fd in fds):
            return None
        return os.copy_file_range(*fds, length, offset_in, offset_out)

    def sendfile(self, slot: int, length: int, offset: int) -> Runs:
        """Into a pipe: the splice way of reading."""
        reader, writer = os.pipe()
        try:
            done = os.sendfile(writer, self.slots[slot], offset, length)
            return runs(os.read(reader, done))
        finally:
            os.close(reader)
            os.close(writer)

    def fsync(self, slot: int) -> None:
        os.fsync(self.slots[slot])

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self.slots[slot])

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.slots[slot], mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.slots[slot], uid, gid)

    def append_from_now(self, slot: int) -> None:
        """F_SETFL. The other way is no promise: a passed-through file keeps the O_APPEND of its open (promises.md)."""
        flags = fcntl.fcntl(self.slots[slot], fcntl.F_GETFL)
        fcntl.fcntl(self.slots[slot], fcntl.F_SETFL, flags | os.O_APPEND)

    # --- locks

    def flock(self, slot: int, how: str) -> None:
        fcntl.flock(self.slots[slot], bits(how, {"SH": 1, "EX": 2, "UN": 8}) | fcntl.LOCK_NB)

    def setlk(self, slot: int, kind: str, start: int, length: int) -> None:
        fcntl.fcntl(self.slots[slot], fcntl.F_SETLK, Flock.pack(kind, start, length))

    def getlk(self, slot: int, kind: str, start: int, length: int) -> tuple[int, ...]:
        return Flock.show(fcntl.fcntl(self.slots[slot], fcntl.F_GETLK, Flock.pack(kind, start, length)))

    def ofd_setlk(self, slot: int, kind: str, start: int, length: int) -> None:
        fcntl.fcntl(self.slots[slot], fcntl.F_OFD_SETLK, Flock.pack(kind, start, length))

    # --- mappings. Loads and stores go through the kernel, so that what would be SIGBUS is EFAULT

    def mmap(self, slot: int, length: int, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if slot in self.maps:
            self.maps.pop(slot).close()
        fd = self.slots[slot]
        # Python's own check of the length against the file's would hide the kernel's answer: map first, grow never
        self.maps[slot] = mmap.mmap(fd, min(length, max(os.fstat(fd).st_size, 1)), mmap.MAP_SHARED, protection)

    def load(self, slot: int, offset: int, length: int) -> Runs:
        reader, writer = os.pipe()
        try:
            done = os.write(writer, memoryview(self.maps[slot])[offset : offset + length])
            return runs(os.read(reader, done) if done else b"")
        finally:
            os.close(reader)
            os.close(writer)

    def store(self, slot: int, offset: int, data: Fill) -> int:
        reader, writer = os.pipe()
        try:
            os.write(writer, filled(data))
            target = memoryview(self.maps[slot])[offset : offset + data[1]]
            return os.readv(reader, [target]) if not target.readonly and len(target) else 0
        finally:
            os.close(reader)
            os.close(writer)

    def msync(self, slot: int) -> None:
        self.maps[slot].flush()

    def munmap(self, slot: int) -> None:
        self.maps.pop(slot).close()

    # --- names

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.path(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.path(path))

    def rename(self, old: bytes, new: bytes, flags: str) -> None:
        value = bits(flags, RENAME)
        checked(libc.renameat2(AT_FDCWD, self.path(old), AT_FDCWD, self.path(new), value))

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        flags = AT["SYMLINK_FOLLOW"] if follow else 0
        checked(libc.linkat(AT_FDCWD, self.path(old), AT_FDCWD, self.path(new), flags))

    def link_slot(self, slot: int, new: bytes, through_proc: bool) -> None:
        """Gives an open file a name: by AT_EMPTY_PATH (privileged), or through /proc (what O_TMPFILE users do)."""
        if through_proc:
            magic = b"/proc/self/fd/%d" % self.slots[slot]
            checked(libc.linkat(AT_FDCWD, magic, AT_FDCWD, self.path(new), AT["SYMLINK_FOLLOW"]))
        else:
            checked(libc.linkat(self.slots[slot], b"", AT_FDCWD, self.path(new), AT["EMPTY_PATH"]))

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.path(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.path(path))

    def mknod(self, path: bytes, kind: str, mode: int, device: int) -> None:
        os.mknod(self.path(path), getattr(stat, "S_IF" + kind) | mode, device)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.path(path)))

    def access(self, path: bytes, mode: int, flags: str) -> None:
        checked(libc.faccessat(AT_FDCWD, self.path(path), mode, bits(flags, AT)))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.path(path), uid, gid, follow_symlinks=follow)

    def utimens(self, path: bytes, atime: tuple[int, int], mtime: tuple[int, int], flags: str) -> None:
        times = struct.pack("qqqq", *atime, *mtime)
        checked(libc.utimensat(AT_FDCWD, self.path(path), times, bits(flags, AT)))

    def utimens_now(self, path: bytes, flags: str) -> None:
        """The null form: it needs less permission than explicit times."""
        checked(libc.utimensat(AT_FDCWD, self.path(path), None, bits(flags, AT)))

    def futimens(self, slot: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        checked(libc.futimens(self.slots[slot], struct.pack("qqqq", *atime, *mtime)))

    def umask(self, mask: int) -> None:
        os.umask(mask)

    # --- attributes

    def setxattr(self, path: bytes, attribute: tuple[str, bytes], flags: str, follow: bool) -> None:
        os.setxattr(self.path(path), *attribute, bits(flags, prefix="XATTR_"), follow_symlinks=follow)

    def getxattr(self, path: bytes, name: str, follow: bool) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        return sorted(os.listxattr(self.path(path), follow_symlinks=follow))

    def removexattr(self, path: bytes, name: str, follow: bool) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=follow)

    def fsetxattr(self, slot: int, attribute: tuple[str, bytes]) -> None:
        os.setxattr(self.slots[slot], *attribute)

    # --- everything at once

    def tree(self, reach: str = "") -> list[tuple[bytes, dict[str, Any]]]:
        """All that can be seen of every file, by path; `reach` "above": from the parent of the root."""
        top = self.root if not reach else os.path.dirname(self.root)
        paths = sorted(walk(top))
        facts = [self._facts(os.lstat(path)) for path in paths]  # of all, before anything is read: reading moves atimes
        first_name: dict[int, bytes] = {}
        for path, whole in zip(paths, facts, strict=True):
            whole["same file as"] = first_name.setdefault(os.lstat(path).st_ino, path[len(top) :])
            whole.update(self._seen(_inside(path)))
        return [(path[len(top) :], whole) for path, whole in zip(paths, facts, strict=True)]

    def reset(self) -> None:
        """Forgets everything: all files closed, all mappings gone, umask 0o022."""
        for mapped in self.maps.values():
            mapped.close()
        for fd in self.slots.values():
            os.close(fd)
        self.maps.clear()
        self.slots.clear()
        self._times.clear()
        os.umask(0o022)


def walk(top: bytes) -> list[bytes]:
    below = [os.path.join(where, name) for where, dirs, files in os.walk(top) for name in dirs + files]
    return [top, *below]


def _inside(path: bytes) -> dict[str, Any]:
    mode = os.lstat(path).st_mode
    inside: dict[str, Any] = {"xattrs": [(x, os.getxattr(path, x, follow_symlinks=False)) for x in _xattrs(path)]}
    if stat.S_ISLNK(mode):
        inside["target"] = os.readlink(path)
    if stat.S_ISDIR(mode):
        inside["entries"] = sorted(_entry(entry) for entry in os.scandir(path))
    if stat.S_ISREG(mode):
        inside.update(_content(path))
    return inside


def _xattrs(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _entry(entry: "os.DirEntry[bytes]") -> tuple[bytes, bool, bool]:
    """Name, and whether type and inode number of the entry are those of the file."""
    mode = entry.stat(follow_symlinks=False).st_mode
    type_fits = entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(mode) and entry.is_symlink() == stat.S_ISLNK(mode)
    return entry.name, type_fits, entry.inode() == os.lstat(entry.path).st_ino


def _content(path: bytes) -> dict[str, Any]:
    """Data and holes."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        data = [(start, runs(os.pread(fd, min(end - start, 1 << 20), start))) for start, end in _data_ranges(fd)]
        return {"data": data, "data ranges": _data_ranges(fd)}
    finally:
        os.close(fd)


def _data_ranges(fd: int) -> list[tuple[int, int]]:
    end = os.fstat(fd).st_size
    ranges, at = [], 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as failure:
            if failure.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


def outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """What a call gives, as something that can be compared."""
    try:
        return "ok", call(*arguments)
    except OSError as failure:
        return "error", errno.errorcode[failure.errno or 0]
    except KeyError as missing:
        return "nothing in slot", missing.args[0]
    except (ValueError, OverflowError) as refused:  # by Python, before the kernel was asked
        return "refused", str(refused)


def next_tick() -> None:
    """Waits until the clock of time stamps moves: two steps never share one.

    So "changed" can be told, and relatime comes to the same decision on both sides.
    """
    before = time.clock_gettime(CLOCK_REALTIME_COARSE)
    while time.clock_gettime(CLOCK_REALTIME_COARSE) == before:
        time.sleep(0.0002)


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Takes on credentials; as an ordinary user there is only one choice, and no capability."""
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    else:
        checked(libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)))


# --- known differences in set-id bits


class KnownDifference(NamedTuple):
    """One row of docs/promises.md: after certain calls one side keeps set-id bits of a file that the other drops."""

    keeper: int
    """NATIVE or MOUNTED."""
    file: Callable[[Side, str, tuple[Any, ...]], bytes | int | None]
    """The file that a call changes, as stat(2) takes it; None for calls to which the row does not apply."""
    bits: Callable[[Side, bytes | int], int]
    """The bits that the keeper keeps, from the caller's rights and the file as it is before the call."""


def _written(side: Side, call: str, arguments: tuple[Any, ...]) -> int | None:
    if call in ("write", "pwrite", "pwritev", "direct_write"):
        return side.slots.get(arguments[0])
    return side.slots.get(arguments[1]) if call == "copy_file_range" else None


def _allocated(side: Side, call: str, arguments: tuple[Any, ...]) -> int | None:
    return side.slots.get(arguments[0]) if call == "fallocate" else None


def _cut(side: Side, call: str, arguments: tuple[Any, ...]) -> bytes | int | None:
    if call in ("ftruncate", "fallocate"):
        return side.slots.get(arguments[0])
    if call == "truncate":
        return side.path(arguments[0])
    if call == "reopen" and "TRUNC" in arguments[2]:
        return side.slots.get(arguments[1])
    if call == "openat" and "TRUNC" in arguments[3] and arguments[1] in side.slots:
        return b"/proc/%d/fd/%d/%s" % (os.getpid(), side.slots[arguments[1]], arguments[2])
    return side.path(arguments[1]) if call == "open" and "TRUNC" in arguments[2] else None


def _given_an_acl(side: Side, call: str, arguments: tuple[Any, ...]) -> bytes | int | None:
    if call not in ("setxattr", "fsetxattr") or arguments[1][0] != ACCESS_ACL:
        return None
    return side.slots.get(arguments[0]) if call == "fsetxattr" else side.path(arguments[0])


def _is_in_group(st: os.stat_result) -> bool:
    return st.st_gid in {os.getegid(), *os.getgroups()}


def _all_by_capability(side: Side, file: bytes | int) -> int:
    return SET_IDS if side.may_keep_set_ids else 0


def _all_beside_a_file_capability(side: Side, file: bytes | int) -> int:
    return SET_IDS if side.may_keep_set_ids and "security.capability" in os.listxattr(file) else 0


def _sgid_by_membership(side: Side, file: bytes | int) -> int:
    """setattr_should_drop_sgid(): without S_IXGRP the bit falls only when a stranger to the group changes the file."""
    st = os.stat(file)
    return stat.S_ISGID if _is_in_group(st) and not st.st_mode & stat.S_IXGRP else 0


def _sgid_of_strangers(side: Side, file: bytes | int) -> int:
    st = os.stat(file)
    return 0 if side.may_keep_set_ids or _is_in_group(st) or st.st_mode & stat.S_IXGRP else stat.S_ISGID


def _sgid_of_an_owner(side: Side, file: bytes | int) -> int:
    return 0 if side.may_keep_set_ids or _is_in_group(os.stat(file)) else stat.S_ISGID


KNOWN = {
    "root writes": KnownDifference(NATIVE, _written, _all_by_capability),
    "a member of the group writes": KnownDifference(NATIVE, _written, _sgid_by_membership),
    "root allocates": KnownDifference(NATIVE, _allocated, _all_beside_a_file_capability),
    "a stranger to the group cuts": KnownDifference(MOUNTED, _cut, _sgid_of_strangers),
    "an owner sets an ACL": KnownDifference(MOUNTED, _given_an_acl, _sgid_of_an_owner),
}
"""By what happens to a file with set-id bits."""

Change = tuple[bytes, int]
"""A file by its path, and the mode that it is to get."""


class Leveller:
    """Takes from one side's file the set-id bits that a known difference has taken from the other's.

    Later steps need no excuse then, and whatever else differs stays as it is, to be found. For calls that succeed on
    both sides and change the file's ctime, so that one change more does not show.
    """

    def __init__(self, known: Iterable[str], sides: list[Side], call: str, arguments: tuple[Any, ...]) -> None:
        """Before the call."""
        self._step = call, arguments
        self._sides = sides
        self._known = [(KNOWN[name], self._bits(KNOWN[name])) for name in known]

    def _bits(self, known: KnownDifference) -> int:
        """As the native side says: the mount is not asked for what the kernel may remember of the answer."""
        side = self._sides[NATIVE]
        try:
            file = known.file(side, *self._step)
            return 0 if file is None else known.bits(side, file)
        except OSError:
            return 0  # not there, or no way to it

    def changes(self) -> list[Change]:
        """After the call: what is to be done."""
        return [change for known, bits in self._known if bits for change in self._change(known, bits)]

    def _change(self, known: KnownDifference, bits: int) -> list[Change]:
        keeper, dropper = self._sides[known.keeper], self._sides[1 - known.keeper]
        file, other = known.file(keeper, *self._step), known.file(dropper, *self._step)
        assert file is not None and other is not None
        mode, left = os.stat(file).st_mode, os.stat(other).st_mode
        lost = mode & ~left
        if not stat.S_ISREG(mode) or not lost or mode ^ left != lost or lost & ~bits:
            return []
        path = b"/proc/%d/fd/%d" % (os.getpid(), file) if isinstance(file, int) else file
        return [(path, stat.S_IMODE(left))]


def serve(who: tuple[int, int, list[int]], roots: list[bytes], unseen: list[str], known: list[str]) -> None:
    """Answers one line for each line (call, arguments): the outcomes on all roots, and what levels the files."""
    become(*who)
    sides = [Side(root, unseen) for root in roots]
    for line in sys.stdin.buffer:
        name, arguments = ast.literal_eval(line.decode())
        next_tick()
        leveller = Leveller(known, sides, name, arguments)
        answers = [outcome(getattr(side, name), arguments) for side in sides]
        done = all(kind == "ok" and value != 0 for kind, value in answers)
        sys.stdout.buffer.write(repr((answers, leveller.changes() if done else [])).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(*ast.literal_eval(sys.argv[2]))
    sys.exit()
