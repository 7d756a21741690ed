"""The part of `guest.py` with pins: a mapping is the medium; pages that a process holds, with a deny pin, a lease, and
without pinfs."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from functools import partial

import pinfs
from pinfs.cli.backing import _extents_from
from vm.guest_base import BREAK_TIMEOUT_S, PAGE, PMEM, SIZE, Child, Held, Mount, doctor, hold_page, other
from vm.guest_removals import ALL_REMOVALS

PIN, RELEASE = "user.pinfs.pin.dax", "user.pinfs.release.dax"
WITHOUT_PINFS_S = BREAK_TIMEOUT_S + 4


class Leaseholder(Held):
    """A process that holds a page, has a lease on the file, and lets go of the page when the lease is broken."""

    def _hold(self, path: str, page: int, mapped: bool) -> None:
        pipe, _start = hold_page(path, page=page)
        let_go = threading.Event()

        def close(_event: object) -> None:
            for end in pipe:
                os.close(end)
            let_go.set()

        with pinfs.pin(path, mode="lease", on_break=close):
            os.write(self._ready[1], b"x")
            let_go.wait()


def pins(mount: Mount) -> None:
    for part in (says, medium, natively, deny, lease):
        part(mount)


def says(mount: Mount) -> None:
    found = {one["check"]: one["text"] for one in doctor(mount.source)}
    mount.say("says", page_pins=mount.status()["page_pins"], doctor=[found["dax"], found["page pins"]])


def medium(mount: Mount) -> None:
    """A store through the mount's mapping, without msync."""
    path, below, at = mount.file("medium"), f"{mount.source}/medium", 2 * PAGE
    with open(path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), SIZE)
    pattern = f"pinfs {mount.kind} {os.urandom(8).hex()}".encode()
    mapping[at : at + len(pattern)] = pattern
    with open(below, "rb") as file:
        file.seek(at)
        in_file = file.read(len(pattern)) == pattern
    device = _raw(PMEM[mount.kind], _place(below, at))
    mount.say("medium", in_file=in_file, in_device=device.startswith(pattern))
    mapping.close()


def _place(path: str, offset: int) -> int:
    """Where a byte of the file lies on its device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        logical, physical, *_ = _extents_from(fd, offset)[0]
    finally:
        os.close(fd)
    return physical + offset - logical


def _raw(device: str, offset: int) -> bytes:
    """A page of the device, past the page cache."""
    page = mmap.mmap(-1, PAGE)
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [page], offset)
    finally:
        os.close(fd)
    return page[:]


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def natively(mount: Mount) -> None:
    """In the source, past pinfs: the truncate waits, and the holder of the page does not come to know."""
    mount.file("natively")
    path = f"{mount.source}/natively"
    held = Held(path)
    breaker = Child(partial(os.truncate, path, 0))
    waits = breaker.wait(WITHOUT_PINFS_S)
    reader = Child(partial(_read, path))
    reads, other_file = reader.wait(1), Child(partial(os.stat, f"{mount.source}/{other}")).wait(5)
    holder = held.child.wait(0)
    os.kill(breaker.pid, signal.SIGKILL)
    ended = breaker.wait(10)
    mount.say("natively", waited_s=WITHOUT_PINFS_S, waits=waits, reads=reads, other_file=other_file, holder=holder,
              ended=ended, reads_then=reader.wait(10), size=os.stat(path).st_size, let_go=held.let_go())  # fmt: skip


def deny(mount: Mount) -> None:
    for with_page in (False, True):
        path = mount.file(f"deny-{with_page}")
        held = Held(path) if with_page else None
        os.setxattr(path, PIN, b"0:0,mode=deny")
        for op, remove in ALL_REMOVALS.items():
            breaker = Child(partial(remove, path))
            mount.say("deny", op=op, held=with_page, ended=breaker.wait(2 * BREAK_TIMEOUT_S), took_s=breaker.took_s,
                      size=os.stat(path).st_size)  # fmt: skip
        os.getxattr(path, RELEASE)
        mount.say("deny ended", held=with_page, holder=held.let_go() if held else "done",
                  ended=Child(partial(os.truncate, path, 0)).wait(20))  # fmt: skip


def lease(mount: Mount) -> None:
    for op, remove in ALL_REMOVALS.items():
        path = mount.file(f"lease-{op}")
        holder = Leaseholder(path)
        breaker = Child(partial(remove, path))
        ended = breaker.wait(2 * BREAK_TIMEOUT_S)
        mount.say("lease", op=op, ended=ended, took_s=breaker.took_s, holder=holder.child.wait(20))
