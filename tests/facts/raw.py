"""The other end of /dev/fuse, by hand: a file system of one file, whose requests a test sees and answers one by one.

Nothing of pinfs is used, so that these tests tell about the kernel alone. The file `f` (node 2) lies on tmpfs; what a
test does not want to see is answered from that file by `_default`. Layouts: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from support.actor import Actors, Pending
from support.mounts import force_umount

T = TypeVar("T")

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE = 1, 2, 3, 4, 14, 15, 16
RELEASE, SETXATTR, GETXATTR, FLUSH, INIT, OPENDIR, ACCESS = 18, 21, 22, 25, 26, 27, 34
INTERRUPT, IOCTL, POLL, FALLOCATE = 36, 39, 40, 43
FATTR_SIZE, FATTR_FH = 1 << 3, 1 << 6
ATOMIC_O_TRUNC, WANTED = 1 << 3, (1 << 3) | (1 << 5)  # what INIT asks for: atomic O_TRUNC, big writes
INIT_EXT, PASSTHROUGH2 = 1 << 30, 1 << 5  # bit 37 of the flags is bit 5 of flags2
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH = 1 << 0, 1 << 1, 1 << 7
BACKING_OPEN = (1 << 30) | (16 << 16) | (229 << 8) | 1  # _IOW(229, 1, struct fuse_backing_map)
HEADER, REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
LIMIT_S = 20.0
BUFFER = (1 << 20) + 4096  # what libfuse negotiates at most

_libc = ctypes.CDLL(None, use_errno=True)


class Request(NamedTuple):
    """A request as the kernel sent it."""

    opcode: int
    unique: int
    node: int
    pid: int
    body: bytes


class RawFuse(Actors):
    """A mounted connection. With `passthrough` every open of `f` goes to the backing file."""

    def __init__(
        self, base: Path, *, passthrough: bool = False, init_flags: int = WANTED, answer_init: bool = True
    ) -> None:
        super().__init__()
        self.path, self.backing = base / "mnt", base / "backing"
        self.path.mkdir()
        self.file = os.open(self.backing, os.O_RDWR | os.O_CREAT, 0o666)
        os.pwrite(self.file, b"x" * 8192, 0)
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"raw", os.fsencode(self.path), b"fuse.raw", 6, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self.seen: list[int] = []
        self.backing_id = 0
        self._passthrough, self._init_flags = passthrough, init_flags
        if answer_init:
            self._init()
        if passthrough:
            self.backing_id = self.backing_open(self.file)
        self.name = str(self.path / "f")

    def __enter__(self) -> RawFuse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)  # ends the connection: whoever waits gets ENOTCONN
        self.dismiss()
        force_umount(self.path)
        os.close(self.file)

    def _init(self) -> None:
        request = self.next()
        assert request.opcode == INIT
        major, minor, readahead, offered, offered2 = struct.unpack_from("<5I", request.body)
        flags, flags2, depth = self._init_flags & offered, 0, 0
        if self._passthrough:
            assert offered & INIT_EXT and offered2 & PASSTHROUGH2, "this kernel has no FUSE passthrough (6.9)"
            flags, flags2, depth = flags | INIT_EXT, PASSTHROUGH2, 1
        out = struct.pack(
            "<4I2H2I2H2IH22x", major, minor, readahead, flags, 16, 12, 1 << 17, 1, 32, 0, flags2, depth, 0
        )
        self.reply(request, out)

    def backing_open(self, fd: int) -> int:
        """FUSE_DEV_IOC_BACKING_OPEN: registers `fd`, returns the backing id."""
        number: int = fcntl.ioctl(self.fd, BACKING_OPEN, bytearray(struct.pack("<iIQ", fd, 0, 0)))
        return number

    # --- requests and replies

    def next(self) -> Request:
        """The next request; fails when none comes."""
        assert select.select([self.fd], [], [], LIMIT_S)[0], f"no request came; seen: {self.seen}"
        data = os.read(self.fd, BUFFER)
        _, opcode, unique, node, _, _, pid, _, _ = HEADER.unpack_from(data)
        self.seen.append(opcode)
        return Request(opcode, unique, node, pid, data[HEADER.size :])

    def until(self, *opcodes: int) -> Request:
        """Answers what comes from the backing file until one of `opcodes` comes: that one the test answers."""
        while (request := self.next()).opcode not in opcodes:
            self.default(request)
        return request

    def result(self, pending: Pending[T]) -> T:
        """Answers what comes until the actor's call has returned."""
        self._serve(pending)
        return pending.result()

    def error(self, pending: Pending[T]) -> int | None:
        """As result; the errno of the call."""
        self._serve(pending)
        return pending.error()

    def _serve(self, pending: Pending[T]) -> None:
        while ready := select.select([self.fd, pending.fileno()], [], [], LIMIT_S)[0]:
            if pending.fileno() in ready:
                return
            self.default(self.next())

    def reply(self, request: Request, *parts: bytes) -> None:
        """Answers with success."""
        data = b"".join(parts)
        os.write(self.fd, REPLY.pack(REPLY.size + len(data), 0, request.unique) + data)

    def fail(self, request: Request, code: int) -> None:
        """Answers with an errno."""
        os.write(self.fd, REPLY.pack(REPLY.size, -code, request.unique))

    def opened(self, request: Request, flags: int = 0, backing_id: int = 0) -> None:
        """Answers an OPEN."""
        self.reply(request, struct.pack("<QIi", request.unique, flags, backing_id))

    def attr_out(self, node: int) -> bytes:
        """struct fuse_attr_out, valid for no time at all: every look is a request."""
        return bytes(16) + self._attr(node)

    def _attr(self, node: int) -> bytes:
        st = os.fstat(self.file)
        mode, size = (0o40777, 0) if node == 1 else (0o100666, st.st_size)
        return ATTR.pack(node, size, st.st_blocks, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def default(self, request: Request) -> None:
        """Answers from the backing file."""
        match request.opcode:
            case 2 | 36 | 42:  # FORGET, INTERRUPT, BATCH_FORGET: no reply
                return
            case 1 if request.body == b"f\0":
                self.reply(request, struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0), self._attr(2))
            case 1:
                self.fail(request, errno.ENOENT)
            case 3:
                self.reply(request, self.attr_out(request.node))
            case 4:
                self._setattr(request)
            case 14:
                self.opened(request, FOPEN_PASSTHROUGH if self.backing_id else 0, self.backing_id)
            case 15:
                _, offset, size = struct.unpack_from("<QQI", request.body)
                self.reply(request, os.pread(self.file, size, offset))
            case 16:
                _, offset, size = struct.unpack_from("<QQI", request.body)
                os.pwrite(self.file, request.body[40 : 40 + size], offset)
                self.reply(request, struct.pack("<II", size, 0))
            case 18 | 20 | 25 | 34:  # RELEASE, FSYNC, FLUSH, ACCESS
                self.reply(request)
            case 22:  # GETXATTR
                self.fail(request, errno.ENODATA)
            case _:
                self.fail(request, errno.ENOSYS)

    def _setattr(self, request: Request) -> None:
        valid, _, _, size = struct.unpack_from("<IIQQ", request.body)
        if valid & FATTR_SIZE:
            os.ftruncate(self.file, size)
        self.reply(request, self.attr_out(request.node))
