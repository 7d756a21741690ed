"""What a backend does that is handed a descriptor of the mount, such as one of vhost-user. Runs inside an actor."""

from __future__ import annotations

import socket
from typing import Any

from support import acts

import pinfs

_listening: list[socket.socket] = []
_pins: list[pinfs.Pin] = []
_breaks: list[pinfs.Event] = []


def listen(name: str) -> None:
    """Where `take` is handed a descriptor: an abstract socket (unix(7)), in reach whatever root and mounts one has."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\0{name}")
    server.listen()
    _listening.append(server)


def hand_over(fd: int, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{name}")
        socket.send_fds(client, [b"ram"], [fd])


def take() -> int:
    """The descriptor that was handed over."""
    with _listening.pop() as server, server.accept()[0] as connection:
        _, fds, _, _ = socket.recv_fds(connection, 3, 1)
    return fds[0]


def pin(fd: int, **options: Any) -> int:
    """Pins by that descriptor. Returns the id."""
    _pins.append(pinfs.pin(fd, **options))
    return _pins[-1].id


def lease(fd: int, length: int) -> None:
    """Maps the file, and unmaps it when the lease is broken."""
    address = acts.map_fd(fd, length)

    def let_go(event: pinfs.Event) -> None:
        acts.unmap(address, length)
        _breaks.append(event)

    pin(fd, mode="lease", owner="handle", on_break=let_go)


def breaks() -> list[int]:
    """From which byte on each break wanted the file."""
    return [event.from_ for event in _breaks]


def release() -> None:
    _pins.pop().release()
