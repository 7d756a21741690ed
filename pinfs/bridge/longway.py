"""The long way: requests that pyfuse3 answers, through a socket pair that it takes for /dev/fuse.

Replies come back unchanged, but for the one to INIT: libfuse is told what it has to know, the kernel what pinfs wants.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from pinfs.bridge import negotiate, wire

IN_FLIGHT: Final = 16  # requests at a time: what a user's socket buffer (wmem_max) holds in each direction


class LongWay:
    """One end is ours; `libfuse_fd` is the other, which belongs to libfuse from pyfuse3.init() on.

    `on_init` makes the reply's body from the body of an INIT, `on_ready` is called when the kernel has it.
    """

    def __init__(
        self,
        to_kernel: Callable[[bytes | memoryview], None],
        on_init: Callable[[memoryview], bytes],
        on_ready: Callable[[], None],
    ) -> None:
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setblocking(False)
        far.setblocking(False)
        self.libfuse_fd = far.detach()
        self.in_flight = 0
        self._queue: deque[bytes] = deque()
        self._to_kernel = to_kernel
        self._on_init = on_init
        self._on_ready = on_ready
        self._init_reply: tuple[int, bytes] | None = None

    def send(self, opcode: int, unique: int, request: memoryview) -> None:
        """Hand a request over; it waits while too many are under way."""
        if opcode == wire.INIT:
            self._init_reply = unique, self._on_init(request[wire.IN_SIZE :])
            copy = bytearray(request)
            negotiate.strip(copy)
            request = memoryview(copy)
        if self.in_flight < IN_FLIGHT:
            self.in_flight += 1
            self._near.send(request)
        else:
            self._queue.append(bytes(request))

    async def replies(self) -> None:
        """Carry replies to the kernel until pyfuse3 has closed its end."""
        buffer = bytearray(negotiate.BUFFER_SIZE)
        while True:
            await trio.lowlevel.wait_readable(self._near)
            try:
                size = self._near.recv_into(buffer)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return
            if not size:
                return
            self._replied(memoryview(buffer)[:size])

    def _replied(self, reply: memoryview) -> None:
        if self._queue:
            self._near.send(self._queue.popleft())
        else:
            self.in_flight -= 1
        _, error, unique = wire.OUT_HEADER.unpack_from(reply)
        if self._init_reply and self._init_reply[0] == unique:
            self._replied_init(unique, error, self._init_reply[1])
        else:
            self._to_kernel(reply)

    def _replied_init(self, unique: int, error: int, ours: bytes) -> None:
        self._init_reply = None
        if error:
            raise OSError(-error, f"libfuse refused to start: {os.strerror(-error)}")
        self._to_kernel(wire.OUT_HEADER.pack(wire.OUT_SIZE + len(ours), 0, unique) + ours)
        self._on_ready()

    def close(self) -> None:
        self._near.close()
