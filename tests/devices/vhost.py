"""A backend of vhost-user (QEMU: docs/interop/vhost-user.rst), for a network card: it writes into the guest's RAM, and
knows as much of the protocol as that takes. Runs inside an actor.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from support import acts

GET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_KICK, GET_PROTOCOL_FEATURES = 1, 5, 9, 12, 15
FEATURES = {GET_FEATURES: 1 << 30, GET_PROTOCOL_FEATURES: 0}
"""VHOST_USER_F_PROTOCOL_FEATURES, and none of them. (Without the bit qemu 7.2 does not start the backend.)"""
HEADER = struct.Struct("<III")  # request, flags, size of what follows
VERSION, REPLY = 1, 1 << 2
MAX_FDS = 8


class Region(NamedTuple):
    """A part of the guest's RAM: addresses in the guest and in the monitor, where it lies in its file, and the file."""

    guest: int
    size: int
    monitor: int
    offset: int
    fd: int


_listening: list[socket.socket] = []
_connections: list[socket.socket] = []
_page: list[int] = []


def listen(path: str) -> None:
    """The monitor connects to `path`."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    _listening.append(server)


def take_memory() -> int:
    """Answers the monitor until its guest has a buffer for us. The descriptor of the RAM; all others are closed."""
    with _listening.pop() as server:
        connection = server.accept()[0]
    _connections.append(connection)
    regions: list[Region] = []
    descriptors = kick = -1
    while kick < 0:
        request, body, fds = _receive(connection)
        if request in FEATURES:
            connection.sendall(HEADER.pack(request, VERSION | REPLY, 8) + struct.pack("<Q", FEATURES[request]))
        elif request == SET_MEM_TABLE:
            places = struct.iter_unpack("<4Q", body[8:])
            regions = [Region._make((*place, fd)) for place, fd in zip(places, fds, strict=True)]
        elif request == SET_VRING_ADDR:
            _, _, descriptors, _used, _available, _log = struct.unpack("<II4Q", body)
        elif request == SET_VRING_KICK:
            (kick,) = fds
        else:
            for fd in fds:
                os.close(fd)
    os.eventfd_read(kick)
    os.close(kick)
    return _map_buffer(regions, descriptors)


def _receive(connection: socket.socket) -> tuple[int, bytes, list[int]]:
    head, fds, _, _ = socket.recv_fds(connection, HEADER.size, MAX_FDS)
    request, _, size = HEADER.unpack(head)
    return request, connection.recv(size, socket.MSG_WAITALL) if size else b"", fds


def _map_buffer(regions: list[Region], descriptors: int) -> int:
    """`descriptors`: where the first descriptor of the queue lies, in the monitor's memory."""
    ram = next(region for region in regions if 0 <= descriptors - region.monitor < region.size)
    for region in regions:
        if region != ram:
            os.close(region.fd)
    address = acts.map_fd(ram.fd, ram.size, ram.offset)
    buffer, _length = struct.unpack("<QI", acts.peek(address + descriptors - ram.monitor, 12))
    _page.append(address + buffer - ram.guest)
    return ram.fd


def write(data: bytes) -> None:
    """Into the guest's buffer."""
    acts.poke(_page[-1], data)
