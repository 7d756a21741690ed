"""The connection to the kernel, as the fast path uses it: one request at a time, and its reply.

Where pinfs is compiled, `channel.pyx` is imported in place of this module; the two behave alike
(tests/bridge/test_channel.py).
"""

import errno
import os
import select
from typing import Final

from pinfs.bridge import wire
from pinfs.bridge.connection import send_reply
from pinfs.bridge.wire import IN_SIZE, OUT_SIZE
from pinfs.fs.types import make_entry
from pinfs.linux.calls import Stat, clock

_unpack_header: Final = wire.IN_HEADER.unpack_from
_pack_header: Final = wire.OUT_HEADER.pack

FULL_CREDIT: Final = 16
IN_VAIN: Final = 4
"""What a spin in vain costs; one that paid brings 1."""
PAUSE: Final = 64
"""How many times no spin is tried when the credit is used up."""


class Channel:
    """One request, its caller, and the means to answer it. `fd` must not block; it stays the caller's.

    `opcode` 0: what was read is not a request without extensions that is as long as it says. `size`: of all that was
    read, in bytes. `umask`: the caller's, where the handler has set it. What sends a reply returns True; `error` says
    why the kernel did not take it, 0: it did.

    `busy_poll_us`: how long to look for the next request before sleeping, in microseconds: a sleeping daemon takes
    longer to wake than a request takes. Each time in vain costs credit, and without credit it is tried now and then.
    """

    __slots__ = (
        *("_busy_poll_s", "_credit", "_into", "_poll", "buffer", "error", "fd", "gid", "nodeid", "opcode"),
        *("pid", "reply", "size", "uid", "umask", "unique"),
    )

    def __init__(self, fd: int, buffer: bytearray, busy_poll_us: int = 0) -> None:
        self.fd = fd
        self._busy_poll_s = busy_poll_us / 1e6
        self._credit = FULL_CREDIT
        self.opcode = self.unique = self.nodeid = self.uid = self.gid = self.pid = self.umask = self.size = 0
        self.error = 0
        self.reply = b""
        """The body of the last reply that the kernel did not take."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self.use(buffer)

    def use(self, buffer: bytearray) -> None:
        """Read into this buffer from now on."""
        self.buffer = buffer
        self._into = [buffer]

    # The request

    def take(self, wait_ms: int) -> int:
        """Read one request, waiting up to `wait_ms` milliseconds. 1: here it is; 0: none came; -1: see `error`."""
        if not (self._spin(wait_ms) or self._poll(wait_ms)):
            return 0
        try:
            size = self.size = os.readv(self.fd, self._into)
        except OSError as e:
            self.error = e.errno or 0
            return -1
        length, opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, extensions, _ = _unpack_header(
            self.buffer
        )
        self.opcode = opcode if length == size and size >= IN_SIZE and not extensions else 0
        self.umask = self.error = 0
        return 1

    def settle(self) -> None:
        """A turn of the loop has ended: the next one begins without waiting. (Compiled, reads block meanwhile, once
        requests come one after the other; a thread ends such a read when none has come for some 5 ms.)"""

    def _spin(self, wait_ms: int) -> bool:
        """Whether there is a request, looked for without sleeping where that is wanted."""
        if not self._busy_poll_s or not wait_ms:
            return False
        if self._poll(0):
            return True
        if self._credit <= 0:
            self._credit += 1
            if self._credit <= 0:
                return False
        until = clock() + self._busy_poll_s
        while clock() < until:
            if self._poll(0):
                self._credit = min(self._credit + 1, FULL_CREDIT)
                return True
        self._credit -= IN_VAIN
        if self._credit <= 0:
            self._credit = -PAUSE
        return False

    def u32(self, at: int) -> int:
        """The 32-bit number at byte `at` of the body."""
        at += IN_SIZE
        return int.from_bytes(self.buffer[at : at + 4], "little")

    def u64(self, at: int) -> int:
        """The 64-bit number at byte `at` of the body."""
        at += IN_SIZE
        return int.from_bytes(self.buffer[at : at + 8], "little")

    def name(self, at: int) -> bytes:
        """The one NUL-terminated name from byte `at` of the body to its end; empty: it is not one component of a
        path."""
        text = bytes(self.buffer[IN_SIZE + at : self.size - 1])
        if b"\0" in text or b"/" in text or self.buffer[self.size - 1]:
            return b""
        return text

    def i64(self, at: int) -> int:
        """The same, signed."""
        at += IN_SIZE
        return int.from_bytes(self.buffer[at : at + 8], "little", signed=True)

    def two(self, at: int) -> tuple[bytes, bytes]:
        """The two NUL-terminated names from byte `at` of the body to its end; both empty: they are not two."""
        names = bytes(self.buffer[IN_SIZE + at : self.size]).split(b"\0")
        return (names[0], names[1]) if len(names) == 3 and not names[2] else (b"", b"")

    def name_and_value(self, at: int, size: int) -> tuple[bytes, bytes]:
        """A NUL-terminated name from byte `at` of the body, and `size` bytes to its end. No name: they are not that."""
        name, end, value = bytes(self.buffer[IN_SIZE + at : self.size]).partition(b"\0")
        return (name, value) if end and len(value) == size else (b"", b"")

    def view(self, at: int) -> memoryview:
        """The body from byte `at` to its end, until the next request is taken."""
        return memoryview(self.buffer)[IN_SIZE + at : self.size]

    # The reply

    def data(self, body: bytes) -> bool:
        """Any body."""
        try:
            send_reply(self.fd, self.unique, body)
        except OSError as e:
            self.error, self.reply = e.errno or errno.EIO, body
        return True

    def done(self) -> bool:
        """A reply without a body."""
        return self.data(b"")

    def refuse(self, number: int) -> bool:
        """An errno."""
        try:
            os.write(self.fd, _pack_header(OUT_SIZE, -number, self.unique))
        except OSError as e:
            self.error, self.reply = e.errno or errno.EIO, b""
        return True

    def attributes(self, nodeid: int, st: Stat, valid_s: int, valid_ns: int) -> bool:
        """struct fuse_attr_out. `valid_*`: how long the kernel may keep them."""
        return self.data(wire.attr_out(nodeid, st.result, (valid_s, valid_ns)))

    def entry(
        self, nodeid: int, generation: int, st: Stat, entry_s: int, entry_ns: int, attr_s: int, attr_ns: int
    ) -> bool:
        """struct fuse_entry_out."""
        return self.data(_entry(nodeid, generation, st, entry_s, entry_ns, attr_s, attr_ns))

    def no_entry(self, entry_s: int, entry_ns: int) -> bool:
        """struct fuse_entry_out for a name that does not exist."""
        return self.data(wire.no_entry_out((entry_s, entry_ns)))

    def opened(self, fh: int, flags: int, backing_id: int) -> bool:
        """struct fuse_open_out."""
        return self.data(wire.OPEN_OUT.pack(fh, flags, backing_id))

    def created(
        self, nodeid: int, generation: int, st: Stat, entry_s: int, entry_ns: int, attr_s: int, attr_ns: int,
        fh: int, flags: int, backing_id: int,
    ) -> bool:  # fmt: skip
        """struct fuse_entry_out and struct fuse_open_out."""
        entry = _entry(nodeid, generation, st, entry_s, entry_ns, attr_s, attr_ns)
        return self.data(entry + wire.OPEN_OUT.pack(fh, flags, backing_id))

    def attribute(self, where: int | bytes, name: bytes, size: int) -> bool:
        """The reply to GETXATTR: the value, its size where the caller only asks for that (0), or an errno. `where`: a
        descriptor, or a path."""
        try:
            value = os.getxattr(where, name)
        except OSError as e:  # as pinfs.runtime.errors.errno_of has it
            return self.refuse(errno.EOPNOTSUPP if e.errno == errno.ENOSYS else e.errno or errno.EIO)
        if not size:
            return self.data(wire.GETXATTR_OUT.pack(len(value), 0))
        if len(value) > size:
            return self.refuse(errno.ERANGE)
        return self.data(value)


def _entry(nodeid: int, generation: int, st: Stat, entry_s: int, entry_ns: int, attr_s: int, attr_ns: int) -> bytes:
    entry = wire.entry_out(make_entry((nodeid, st.result)), (entry_s, entry_ns), (attr_s, attr_ns))
    return wire.with_generation(entry, generation) if generation else entry
