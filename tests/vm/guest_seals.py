"""The part of `guest.py` with seals: removals beside a pin that wait in the kernel."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pinfs
from vm.guest_base import PAGE, Child, Held, Mount, doctor, is_quiet, run, waits

PIN = "user.pinfs.pin.seal"
FIRST_PAGE = f"0:{PAGE},mode=deny".encode()
HELD_PAGE, LEFT = 8, 4 * PAGE
GETFLAGS, APPEND = 0x8008_6601, 0x20  # FS_IOC_GETFLAGS, FS_APPEND_FL


class Case:
    """A file whose first page is pinned, and whose ninth page a process holds; another pinned file beside it."""

    def __init__(self, mount: Mount, name: str) -> None:
        self.mount = mount
        self.path, self.below = mount.file(name), f"{mount.source}/{name}"
        self.beside = f"{mount.source}/{name}.beside"
        self.held = Held(self.below, page=HELD_PAGE)
        os.setxattr(self.path, PIN, FIRST_PAGE)
        os.setxattr(mount.file(f"{name}.beside"), PIN, FIRST_PAGE)

    def truncate(self) -> Child:
        """Beside the pin; it waits in the kernel."""
        breaker = Child(self.cut)
        self.mount.until(waits)
        return breaker

    def cut(self) -> None:
        os.truncate(self.path, LEFT)

    def seen(self) -> dict[str, object]:
        return {"sealed": is_sealed(self.below), "size": os.stat(self.below).st_size}


def is_sealed(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, b"\0" * 4))
    finally:
        os.close(fd)
    return bool(flags & APPEND)


def seals(kind: str) -> None:
    mount = Mount(kind)
    status = mount.status()
    mount.say("seals", seal=status["seal"], because=status.get("seal_unavailable_because"))
    if not status["seal"]:  # this kernel refuses to open sealed files through passthrough
        mount.end()
        mount = Mount(kind, ",passthrough=off")
    for part in (deadline, interrupt, let_go, kill):
        part(mount)


def deadline(mount: Mount) -> None:
    case = Case(mount, "sealed")
    trace = os.open(f"{mount.path}/.pinfs/trace", os.O_RDONLY | os.O_NONBLOCK)
    before = case.seen()
    breaker = case.truncate()
    during, beside = case.seen(), is_sealed(case.beside)
    pinned = Child(partial(pinfs.pin, case.path, PAGE, PAGE, owner="handle")).wait(5)
    longest = mount.longest_stat_s(breaker)
    ended = breaker.wait(60)
    after = case.seen()
    events = [event for event in _events(trace) if event["event"] == "refused"]
    mount.say("seal deadline", before=before, during=during, beside=beside, pinned=pinned, longest_stat_s=longest,
              ended=ended, took_s=breaker.took_s, after=after, why=[event["why"] for event in events],
              behind=Child(partial(os.truncate, case.below, LEFT)).wait(5), holder=case.held.let_go(),
              afterwards=Child(case.cut).wait(30), in_the_end=case.seen(), lifted_s=_released(case))  # fmt: skip
    os.close(trace)


def _events(trace: int) -> Iterator[dict[str, Any]]:
    with suppress(BlockingIOError):
        while lines := os.read(trace, 1 << 16):
            yield from map(json.loads, lines.splitlines())


def _released(case: Case) -> float | None:
    """How long it took until the seal was lifted after the release of the pin."""
    os.removexattr(case.path, PIN)
    began = time.monotonic()
    while is_sealed(case.below) and time.monotonic() < began + 20:
        time.sleep(0.05)
    return None if is_sealed(case.below) else time.monotonic() - began


def interrupt(mount: Mount) -> None:
    case = Case(mount, "interrupted.sealed")
    breaker = case.truncate()
    during = case.seen()
    chmod = Child(partial(os.chmod, case.path, 0o640))  # it waits for the inode's lock
    os.kill(breaker.pid, signal.SIGINT)
    ended = breaker.wait(30)
    mount.until(is_quiet)
    mount.say("seal interrupt", during=during, ended=ended, chmod=chmod.wait(30), after=case.seen(),
              mode=os.stat(case.below).st_mode & 0o777, holder=case.held.let_go())  # fmt: skip


def let_go(mount: Mount) -> None:
    """Two removals of one file wait; both go on when the page is let go."""
    case = Case(mount, "let-go.sealed")
    breakers = [case.truncate(), case.truncate()]
    during = case.seen()
    holder = case.held.let_go()
    ended = [breaker.wait(30) for breaker in breakers]
    mount.until(is_quiet)
    mount.say("seal let go", during=during, holder=holder, ended=ended, after=case.seen())


def kill(mount: Mount) -> None:
    """SIGKILL of the daemon while a removal waits."""
    case = Case(mount, "killed.sealed")
    breaker = case.truncate()
    mount.daemon.kill()
    mount.daemon.wait(30)
    ended = breaker.wait(30)
    after, beside = case.seen(), is_sealed(case.beside)
    behind = Child(partial(os.truncate, case.beside, 0)).wait(5)
    holder = case.held.let_go()
    run("umount", "-l", mount.path)
    findings = _doctor(mount.source)
    again = Mount(mount.kind)
    mount.say("seal kill", ended=ended, after=after, beside=beside, behind=behind, holder=holder, doctor=findings,
              after_mount=case.seen(), beside_after_mount=is_sealed(case.beside), code=again.end())  # fmt: skip


def _doctor(source: str) -> list[str]:
    """What it says of seals that were left behind."""
    return [one["text"] for one in doctor(source) if one["check"] == "seal" and "still sealed" in one["text"]]
