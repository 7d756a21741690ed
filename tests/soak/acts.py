"""What uses a mount in the soak test: one round after the other, each a short life of a holder. Runs inside an actor;
standard library only."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from breaks import acts as pins
from support import acts as common

SIZE = 8192
LEASE = b"0:0,mode=lease,signal=none"
PIN = "user.pinfs.pin.p"


class Round:
    """One file in a directory of the mount, and what is done with it."""

    def __init__(self, mountpoint: str, number: int, kind: str) -> None:
        self.mountpoint = mountpoint
        self.path = f"{mountpoint}/{kind}-{number}"
        common.write_file(self.path, bytes(SIZE))

    def end(self) -> None:
        os.unlink(self.path)

    def open_channel(self) -> int:
        return os.open(f"{self.mountpoint}/.pinfs/events", os.O_RDWR)

    def hatch(self, live: Callable[[int], object]) -> int:
        """A process with a lease and an event channel that lives on with live(channel). Returns its pid."""
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            try:
                common.libc.prctl(pins.PR_SET_PDEATHSIG, signal.SIGKILL)
                channel = self.open_channel()
                os.setxattr(self.path, PIN, LEASE)
                os.write(tell, b".")
                live(channel)
            finally:
                os._exit(0)
        os.close(tell)
        assert os.read(ready, 1), "the holder could not pin"
        os.close(ready)
        return child

    def cut(self, *answers: int) -> None:
        """A truncate, which gives one of these errors (0: none)."""
        try:
            os.truncate(self.path, 10)
        except OSError as failure:
            assert failure.errno in answers, failure
        else:
            assert 0 in answers

    def wait_break(self, channel: int) -> int:
        """Returns the id of the pin that is breaking."""
        line = common.read_event_lines(channel).splitlines()[0]
        return int(line.split(b'"pin": ')[1].split(b",")[0])


def plain_files(r: Round) -> None:
    fd = os.open(r.path, os.O_RDWR)
    os.pwrite(fd, b"x", 100)
    os.close(fd)
    os.link(r.path, r.path + "-2")
    os.rename(r.path + "-2", r.path + "-3")
    os.mkdir(r.path + "-d")
    os.listdir(r.path + "-d")
    os.listdir(r.mountpoint)
    os.rmdir(r.path + "-d")
    os.unlink(r.path + "-3")


def control_files(r: Round) -> None:
    for name in ("pins", "status", "metrics", "policy"):
        common.read_file(f"{r.mountpoint}/.pinfs/{name}")
    trace = os.open(f"{r.mountpoint}/.pinfs/trace", os.O_RDONLY | os.O_NONBLOCK)
    channels = [r.open_channel() for _ in range(3)]
    common.poll(channels[0], select.POLLIN, 0)
    for fd in (trace, *channels):
        os.close(fd)


def pins_come_and_go(r: Round) -> None:
    os.setxattr(r.path, PIN, b"0:10")
    os.setxattr(r.path, PIN, LEASE)
    os.getxattr(r.path, "user.pinfs.pins")
    os.removexattr(r.path, PIN)
    os.setxattr(r.path, PIN, LEASE)
    os.getxattr(r.path, "user.pinfs.release.p")


def pins_of_handles(r: Round) -> None:
    fd = os.open(r.path, os.O_RDWR)
    pins.unpin_handle(fd, pins.pin_handle(fd, 0, 1))
    pins.pin_handle(fd, 0, 1)
    os.close(fd)


def answered_by_release(r: Round) -> None:
    def live(channel: int) -> None:
        r.wait_break(channel)
        os.getxattr(r.path, "user.pinfs.release.p")

    _broken(r, live)


def answered_by_shrinking(r: Round) -> None:
    def live(channel: int) -> None:
        os.write(channel, b"resize %d 0 10\n" % r.wait_break(channel))

    _broken(r, live)


def answered_by_death(r: Round) -> None:
    _broken(r, r.wait_break)


def not_answered(r: Round) -> None:
    """The policy of these files: withdrawn after a moment."""
    child = r.hatch(lambda channel: signal.pause())
    r.cut(errno.EBUSY)
    _kill(child)


def interrupted(r: Round) -> None:
    child = r.hatch(lambda channel: signal.pause())
    breaker = os.fork()
    if not breaker:
        with suppress(OSError):
            r.cut(0)
        os._exit(0)
    time.sleep(0.002)
    _kill(breaker)
    _kill(child)


def closed_under_a_break(r: Round) -> None:
    """A handle with a pin, which its holder closes when poll(2) tells it to."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            fd = os.open(r.path, os.O_RDWR)
            pins.pin_handle(fd, 0, SIZE)
            os.write(tell, b".")
            pins.wait_urgent(fd)
            os.close(fd)
        finally:
            os._exit(0)
    os.close(tell)
    assert os.read(ready, 1)
    r.cut(0)
    os.waitpid(child, 0)
    os.close(ready)


def _broken(r: Round, live: Callable[[int], object]) -> None:
    child = r.hatch(live)
    r.cut(0)
    os.waitpid(child, 0)


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


ROUNDS: dict[str, Callable[[Round], None]] = {
    "plain_files": plain_files,
    "control_files": control_files,
    "pins_come_and_go": pins_come_and_go,
    "pins_of_handles": pins_of_handles,
    "answered_by_release": answered_by_release,
    "answered_by_shrinking": answered_by_shrinking,
    "answered_by_death": answered_by_death,
    "not_answered": not_answered,
    "interrupted": interrupted,
    "closed_under_a_break": closed_under_a_break,
}


def soak(mountpoint: str, kinds: list[str]) -> None:
    """One round of each of `kinds`, in this order."""
    for number, kind in enumerate(kinds):
        one = Round(mountpoint, number, kind)
        ROUNDS[kind](one)
        one.end()
