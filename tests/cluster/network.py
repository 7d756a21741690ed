"""Machines that can be cut off from each other: network namespaces on a bridge, which lies in a namespace of its own.

A namespace lives as long as the process that holds it, which dies with the test; nothing is left on this machine, and
nothing in its own network changes.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
BRIDGE = "bridge0"
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with a loopback interface."""

    def __init__(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"\n", "this machine makes no network namespaces"
        self.ip("link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command to run another one in it under."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net")

    def ip(self, *words: str) -> None:
        """ip(8)."""
        subprocess.run([*self.prefix, "ip", *words], check=True)

    def connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """A TCP connection from inside. OSError as of connect(2)."""
        found: list[socket.socket | OSError] = []

        def enter() -> None:
            try:
                found.append(self._connect(address, timeout_s))
            except OSError as e:
                found.append(e)

        thread = threading.Thread(target=enter)  # which stays in the namespace, and ends
        thread.start()
        thread.join()
        [connected] = found
        if isinstance(connected, OSError):
            raise connected
        return connected

    def _connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if _libc.setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)
        return socket.create_connection(address, timeout_s)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


class Machine(Namespace):
    """A namespace with an address, which `switch` joins with the others."""

    def __init__(self, switch: Namespace, number: int) -> None:
        super().__init__()
        self.address = f"10.0.0.{number}"
        self._switch = switch
        self._port = f"port{number}"
        switch.ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", f"{self.pid}")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.join()

    def join(self) -> None:
        """The others are reached again."""
        self._switch.ip("link", "set", self._port, "master", BRIDGE, "up")

    def cut_off(self, *, silently: bool) -> None:
        """No other machine is reached. `silently`: packets are lost; else the cable is pulled, which this end sees."""
        self._switch.ip("link", "set", self._port, *(["nomaster"] if silently else ["down"]))

    def http(self, port: int, timeout_s: float) -> http.client.HTTPConnection:
        """To a server on it, whether it is cut off or not."""
        return _Connection(self, port, timeout_s)


class _Connection(http.client.HTTPConnection):
    def __init__(self, machine: Machine, port: int, timeout_s: float) -> None:
        super().__init__(machine.address, port, timeout=timeout_s)
        self._machine = machine
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = self._machine.connect((self.host, self.port), self._timeout_s)


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """As many that reach each other."""
    switch = Namespace()
    made: list[Machine] = []
    try:
        switch.ip("link", "add", BRIDGE, "type", "bridge")
        switch.ip("link", "set", BRIDGE, "up")
        for number in range(1, count + 1):
            made.append(Machine(switch, number))
        yield made
    finally:
        for namespace in [*made, switch]:
            namespace.close()
