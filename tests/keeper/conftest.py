"""A keeper and its daemons, which are stand-ins that the test directs."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.actor import eventually
from support.mounts import force_umount, is_mounted

from keeper import standin
from keeper.background import Background, wait_end
from keeper.users import Users

LIMIT_S = 30.0
STANDIN = str(Path(standin.__file__))


class Daemon:
    """One stand-in, from the test's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._heard: list[dict[str, Any]] = []
        sock.settimeout(LIMIT_S)
        hello = self.receive()
        self.pid: int = hello["pid"]
        self.ppid: int = hello["ppid"]
        self.sid: int = hello["sid"]
        self.pidfd = os.pidfd_open(self.pid)

    def receive(self) -> dict[str, Any]:
        """What the keeper has told it."""
        return self._heard.pop(0) if self._heard else self._received()

    def _received(self) -> dict[str, Any]:
        data = self._sock.recv(1 << 20)
        assert data, "the stand-in has ended"
        said: dict[str, Any] = json.loads(data)
        return said

    def receive_until(self, word: str) -> dict[str, Any]:
        while word not in (said := self.receive()):
            assert "EOF" not in said
        return said

    def say(self, *messages: str, path: Path | None = None) -> None:
        """Have it send messages to the keeper, each with a descriptor of `path`; return when they are sent."""
        self._sock.send(json.dumps({"say": messages} | ({"path": str(path)} if path else {})).encode())
        while "done" not in (heard := self._received()):
            self._heard.append(heard)

    def keep(self, name: str, path: Path) -> None:
        self.say(f"FDSTORE=1\nFDNAME={name}", path=path)

    def exit(self, status: int = 0) -> None:
        self._sock.send(json.dumps({"exit": status}).encode())
        self.ended()

    def kill(self, number: int = signal.SIGKILL) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def has_ended(self, limit_s: float = 0.0) -> bool:
        waiter = select.poll()
        waiter.register(self.pidfd, select.POLLIN)
        return bool(waiter.poll(limit_s * 1000))

    def ended(self) -> None:
        assert self.has_ended(LIMIT_S)

    def close(self) -> None:
        self._sock.close()
        if not self.has_ended():
            self.kill()
            self.ended()
        os.close(self.pidfd)


class Bench:
    """A keeper with its first daemon. `fuse` plays the connection: the far end of it is the test's (`hang_up`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.control = str(directory / "control")
        self._listening = socket.socket(socket.AF_UNIX, standin.KIND)
        self._listening.bind(self.control)
        self._listening.listen()
        self._listening.settimeout(LIMIT_S)
        self._fuse = directory / "fuse"
        os.mkfifo(self._fuse)
        self._kernel = os.open(self._fuse, os.O_RDONLY | os.O_NONBLOCK)
        self.log = directory / "log"
        self.daemons: list[Daemon] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, prefix: tuple[str, ...] = ()) -> Daemon:
        """A keeper and its first daemon, which has announced nothing yet."""
        command = [*prefix, sys.executable, STANDIN, self.control, "first", f"log={self.log}", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        first = self.next()
        self.hello = first.receive()
        return first

    def serving(self, *words: str, settings: str = "", manner: str = "") -> Daemon:
        """The same, with a mount in service. `manner`: of those that come after it (standin.py)."""
        first = self.start(*words)
        first.keep("fuse", self._fuse)
        first.keep("source", self.file("source"))
        first.say("\n".join(filter(None, ["READY=1", self.argv(manner), settings])))
        return first

    def argv(self, manner: str = "") -> str:
        """The assignment of the next daemon's command."""
        words = [sys.executable, STANDIN, self.control, *filter(None, [manner])]
        return "PINFS_ARGV=" + b"\0".join(map(os.fsencode, words)).hex()

    def next(self) -> Daemon:
        """The next process that is started."""
        daemon = Daemon(self._listening.accept()[0])
        self.daemons.append(daemon)
        return daemon

    def none_comes(self) -> None:
        """After the keeper's end: no other daemon has been started."""
        self._listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            self._listening.accept()

    def hang_up(self) -> None:
        """As an unmount does: whoever holds the connection is told so by POLLERR."""
        os.close(self._kernel)
        self._kernel = -1

    def is_held(self) -> bool:
        """Whether any process still has the connection open."""
        waiter = select.poll()
        waiter.register(self._kernel, 0)
        return not waiter.poll(0)

    def file(self, name: str) -> Path:
        path = self.directory / name
        path.write_text(f"content of {name}")
        return path

    @property
    def keeper(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def end(self) -> int:
        """Wait for the keeper's end; its exit status."""
        return self.keeper.wait(LIMIT_S)

    def said(self) -> str:
        """The keeper's log."""
        return self.log.read_text() if self.log.exists() else ""

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for daemon in self.daemons:
            daemon.close()
        self._listening.close()
        if self._kernel >= 0:
            os.close(self._kernel)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def background(base: Path) -> Iterator[Background]:
    background = Background(base)
    yield background
    end(background)


def end(background: Background) -> None:
    """Whatever the test has left."""
    for pid in background.keepers():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        wait_end(pid)
    if is_mounted(background.point):
        force_umount(background.point)
    eventually(lambda: not background.processes())


@pytest.fixture
def users(background: Background) -> Iterator[Users]:
    assert background.mount().returncode == 0
    users = Users(background)
    yield users
    if background.umount("--force").returncode:
        force_umount(background.point)
    users.dismiss()
