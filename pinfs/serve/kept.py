"""Keepers and the daemons that they keep: how each starts the other, and how a daemon gets its turn."""

import array
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import trio

from pinfs import keeper
from pinfs.serve.descriptorstore import (
    KEEPER,
    DescriptorStore,
    Inheritance,
    ManagerLink,
    Predecessor,
    StoreLostError,
    encoded,
)

log = logging.getLogger("pinfs.store")

PROGRAM: Final = Path(keeper.__file__).with_name("keeper.py")
VARIABLE: Final = "PINFS_KEEPER"
STDERR: Final = "PINFS_STDERR"
MAX_MESSAGE: Final = 65536
MAX_FDS: Final = 253  # SCM_MAX_FD
ASSUMED_LIMIT: Final = 65536  # until the keeper says how many descriptors it takes
KEEPERS, KEEPERS_WITHIN_S = 5, 60.0
GREETING_S: Final = 10.0
LISTEN_FDS_START: Final = 3  # sd_listen_fds(3)


@dataclass(slots=True, frozen=True)
class Kept:
    """What a keeper has to know of its mount."""

    program: tuple[str, ...]
    """The words that run `pinfs`."""
    words: tuple[str, ...]
    """Those that follow, to serve this mount once more."""
    mountpoint: str
    log: str
    """`stderr`, `syslog`, or a file's path."""
    log_level: str = "info"
    log_json: bool = False
    session: bool = True
    """Whether the keeper has a session of its own: not where it stands in for the daemon in the foreground."""
    max_deaths: int = 5
    spare: bool = False

    def command(self, sock: int, pidfd: int, pid: int) -> list[str]:
        """Of the keeper itself."""
        words = [f"socket={sock}", f"pidfd={pidfd}", f"pid={pid}", f"log={self.log}", f"level={self.log_level}"]
        words += ["json=1"] * self.log_json + ["session=1"] * self.session + [f"mount={self.mountpoint}"]
        return [sys.executable, "-I", "-S", "-E", str(PROGRAM), *words]


class KeeperLink:
    """A keeper of our own, over a socketpair(2)."""

    kind = KEEPER

    def __init__(self, sock: socket.socket, kept: Kept) -> None:
        self._sock = sock
        self._kept = kept
        self._started: deque[float] = deque(maxlen=KEEPERS)
        self.pid: int | None = None
        self.limit = ASSUMED_LIMIT
        sock.setblocking(False)

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([text.encode(errors="replace")], ancillary, socket.MSG_NOSIGNAL)
        except ConnectionError as e:
            raise StoreLostError("the keeper has ended") from e

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._sock)

    async def receive(self) -> dict[str, str]:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(MAX_MESSAGE)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                raise StoreLostError("the keeper has ended")
            said = parsed(data)
            self.greeted(said)
            return said

    def greeted(self, said: dict[str, str]) -> None:
        if "KEEPER" in said:
            self.pid, self.limit = int(said["KEEPER"]), int(said["FDSTORE"])

    async def renew(self) -> None:
        now = time.monotonic()
        if len(self._started) == KEEPERS and now - self._started[0] < KEEPERS_WITHIN_S:
            raise StoreLostError(f"{KEEPERS} keepers have ended within {KEEPERS_WITHIN_S:g} s")
        self._started.append(now)
        self._sock.close()
        self.pid = None
        ours, theirs = _socketpair()
        self._sock = ours
        ours.setblocking(False)
        try:
            with theirs:
                await trio.to_thread.run_sync(self._start, theirs.fileno())
            with trio.fail_after(GREETING_S):
                await self.receive()
        except (OSError, subprocess.SubprocessError, trio.TooSlowError) as e:
            raise StoreLostError(f"no keeper can be started: {e}") from e

    def _start(self, sock: int) -> None:
        """As no child of ours: it is to live on when we die."""
        pidfd = os.pidfd_open(os.getpid())
        try:
            command = [*replace(self._kept, session=True).command(sock, pidfd, os.getpid()), "detach=1"]
            subprocess.run(command, pass_fds=(sock, pidfd), stdin=subprocess.DEVNULL, check=True)
        finally:
            os.close(pidfd)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def parsed(data: bytes) -> dict[str, str]:
    """The assignments of a message."""
    return {key: value for key, _, value in (line.partition("=") for line in data.decode(errors="replace").split("\n"))}


def _socketpair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# Beginnings


def split_off(kept: Kept) -> DescriptorStore:
    """Fork; the parent becomes the keeper for good (execve(2)), the child returns, as the first daemon."""
    ours, theirs = _socketpair()
    child = os.fork()
    if child:
        _become_keeper(kept, theirs, child)
    theirs.close()
    link = KeeperLink(ours, kept)
    link.pid = os.getppid()
    return _told(DescriptorStore(link), kept)


def _become_keeper(kept: Kept, sock: socket.socket, daemon: int) -> NoReturn:
    pidfd = os.pidfd_open(daemon)
    os.set_inheritable(pidfd, True)
    sock.set_inheritable(True)
    command = kept.command(sock.fileno(), pidfd, daemon)
    os.execv(command[0], command)


def _told(store: DescriptorStore, kept: Kept) -> DescriptorStore:
    spare = str(int(kept.spare))
    argv = encoded([*kept.program, *kept.words])
    store.words = kept.words
    store.set(PINFS_ARGV=argv, PINFS_DEATHS=str(kept.max_deaths), PINFS_SPARE=spare)
    return store


def is_kept(environ: MutableMapping[str, str]) -> bool:
    """Whether a keeper has started this process."""
    return VARIABLE in environ


def wait_for_turn(environ: MutableMapping[str, str], kept: Kept) -> DescriptorStore:
    """In a process that a keeper has started, with everything imported: wait until the daemon before has ended.

    Where the mount has ended instead, this process does as well.
    """
    stderr = int(environ.pop(STDERR, "2"))
    if stderr != 2:
        os.dup2(stderr, 2)
        os.close(stderr)
    sock = socket.socket(fileno=int(environ.pop(VARIABLE)))
    sock.set_inheritable(False)
    link = KeeperLink(sock, kept)
    sock.setblocking(True)
    inheritance = _received(sock, link)
    sock.setblocking(False)
    return _told(DescriptorStore(link, inheritance), kept)


def _received(sock: socket.socket, link: KeeperLink) -> Inheritance:
    inheritance = Inheritance()
    with suppress(ConnectionError):
        sock.send(b"SPARE=1")
    while True:
        data, fds = _recv_fds(sock)
        if not data:
            sock.close()
            raise SystemExit(0)
        said = parsed(data)
        link.greeted(said)
        if "TAKE" in said:
            inheritance.descriptors |= zip(said["FDNAMES"].split(":"), fds, strict=True)
            if said["LEFT"] == "0":
                died_at_s = int(said["DIED_NS"]) / 1e9
                inheritance.predecessor = Predecessor(said["WHY"], died_at_s, "HUNG" in said, said["REFUSED"])
                return inheritance


def _recv_fds(sock: socket.socket) -> tuple[bytes, "array.array[int]"]:
    """socket.recv_fds, but processes that are started do not inherit them (it ignores its flags)."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(MAX_FDS * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return data, fds


def manager_store(environ: MutableMapping[str, str]) -> DescriptorStore | None:
    """The descriptor store of the service manager; None: it has none for us.

    systemd tells its size in $FDSTORE from version 254 on; before, the unit does (packaging/pinfs@.service).
    """
    address, limit = environ.get("NOTIFY_SOCKET", ""), environ.pop("FDSTORE", "")
    descriptors = _listened(environ)
    if not address.startswith(("/", "@")) or not limit.isdecimal() or not int(limit):
        for fd in descriptors.values():
            os.close(fd)
        return None
    link = ManagerLink(address.replace("@", "\0", 1) if address.startswith("@") else address, int(limit))
    return DescriptorStore(link, Inheritance(descriptors))


def _listened(environ: MutableMapping[str, str]) -> dict[str, int]:
    """What the manager has passed (sd_listen_fds_with_names(3)), by name. Processes that we start do not inherit it."""
    pid, count, names = (environ.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    return dict(zip(names.split(":"), fds, strict=False))
