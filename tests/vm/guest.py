"""What runs inside the machine: pinfs over ext4 and xfs on DAX, pages held by a pipe, removals, and what comes of them.

Prints one JSON object a line: what was done, on which file system, and what was seen. `test_dax.py` judges.
Needs the standard library only, and pinfs beside it.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from functools import partial
from pathlib import Path

from vm.guest_base import (
    PAGE,
    PMEM,
    SIZE,
    Child,
    Held,
    Kept,
    Mount,
    hold_page,
    is_quiet,
    names_processes,
    other,
    set_up,
    waits,
)
from vm.guest_pins import pins
from vm.guest_removals import REMOVALS
from vm.guest_seals import seals
from vm.guest_slow import SLOW_DEVICE, resume, set_up_device, suspend


def deadline(mount: Mount) -> None:
    for op, remove in REMOVALS.items():
        path = mount.file(op)
        held = Held(path)
        breaker = Child(partial(remove, path))
        mount.until(names_processes)
        shown = mount.status()["in_kernel"]
        same = Child(partial(os.stat, path)).wait(5)
        longest = mount.longest_stat_s(breaker)
        ended = breaker.wait(60)
        mount.say("deadline", op=op, ended=ended, took_s=breaker.took_s, longest_stat_s=longest, same_file=same,
                  shown=shown, size=os.stat(path).st_size, holder_pid=held.child.pid, holder=held.let_go(),
                  afterwards=Child(partial(remove, path)).wait(30))  # fmt: skip


def interrupt(mount: Mount) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        path = mount.file("interrupted")
        held = Held(path)
        breaker = Child(partial(os.truncate, path, 0))
        mount.until(waits)
        began = time.monotonic()
        os.kill(breaker.pid, number)
        ended = breaker.wait(30)
        took_s = time.monotonic() - began
        mount.say("interrupt", signal=number.name, ended=ended, took_s=took_s, quiet_s=mount.until(is_quiet),
                  size=os.stat(path).st_size, holder=held.let_go())  # fmt: skip


def holder_is_breaker(mount: Mount) -> None:
    """Six lines of an ordinary user, and his own file."""
    path = mount.file("own")
    os.chmod(path, 0o666)

    def act() -> None:
        os.setuid(65534)
        held = hold_page(path)
        try:
            os.truncate(path, 0)
        finally:
            del held

    user = Child(act)
    mount.until(waits)
    longest = mount.longest_stat_s(user)
    mount.say("own", ended=user.wait(60), longest_stat_s=longest)


def refault(mount: Mount) -> None:
    """The page is let go, but a mapping of it, touched again, stays. On Linux 7.3 that alone holds the removal up."""
    path = mount.file("refault")
    held = Kept(path)
    breaker = Child(partial(os.truncate, path, 0))
    mount.until(waits)
    let_go_s = held.let_page_go()
    without_page = breaker.wait(2)
    longest = mount.longest_stat_s(breaker)
    ended = breaker.wait(60)
    mount.say("refault", let_go_s=let_go_s, without_page=without_page, longest_stat_s=longest, ended=ended,
              took_s=breaker.took_s, size=os.stat(path).st_size, holder=held.let_go(),
              afterwards=Child(partial(os.truncate, path, 0)).wait(30))  # fmt: skip


def read_direct(path: str) -> Child:
    """An O_DIRECT read of a device that does not answer, into a mapping of the file: the device would write there."""
    ready = os.pipe()

    def act() -> None:
        fd = os.open(path, os.O_RDWR)
        mapping = mmap.mmap(fd, SIZE)
        os.close(fd)
        source = os.open(SLOW_DEVICE, os.O_RDONLY | os.O_DIRECT)
        mapping[0] = mapping[0]
        os.write(ready[1], b"x")
        assert os.preadv(source, [memoryview(mapping)[:PAGE]], 0) == PAGE

    child = Child(act)
    os.read(ready[0], 1)
    time.sleep(0.5)
    return child


def odirect(mount: Mount) -> None:
    for pin, answers in ((None, True), (None, False), (b"0:0,mode=deny", False)):
        path = mount.file(f"odirect-{pin is not None}-{answers}")
        suspend()
        reader = read_direct(path)
        if pin is not None:
            os.setxattr(path, "user.pinfs.pin.reader", pin)
        breaker = Child(partial(os.truncate, path, 0))
        alone = breaker.wait(2)
        if answers:
            resume()
        longest = mount.longest_stat_s(breaker)
        ended, reads = breaker.wait(60), reader.wait(0.5)
        resume()
        mount.say("odirect", pinned=pin is not None, answers=answers, alone=alone, ended=ended, took_s=breaker.took_s,
                  reads=reads, longest_stat_s=longest, size=os.stat(path).st_size, reader=reader.wait(20))  # fmt: skip


def evict(mount: Mount) -> None:
    """The last close of a file without a name, whose page is held."""
    path = mount.file("nameless")
    held = Held(path, mapped=False)
    os.unlink(path)
    seen = mount.until(lambda status: status["evictions"] > 0, 5)
    stat = Child(partial(os.stat, f"{mount.path}/{other}")).wait(5)
    holder = held.let_go()
    mount.say("evict", seen_s=seen, other_file=stat, holder=holder,
              over_s=mount.until(lambda status: status["evictions"] == 0))  # fmt: skip


def end(mount: Mount) -> None:
    path = mount.file("end")
    held = Held(path)
    breaker = Child(partial(os.truncate, path, 0))
    mount.until(waits)
    began = time.monotonic()
    code = mount.end()
    ended = breaker.wait(30)
    mount.say("end", ended=ended, code=code, took_s=time.monotonic() - began, mounted=os.path.ismount(mount.path),
              size=os.stat(f"{mount.source}/end").st_size, holder=held.let_go())  # fmt: skip


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the children
    set_up()
    set_up_device()
    for kind in PMEM:
        mount = Mount(kind)
        mount.say("mounted", passthrough=mount.status()["passthrough"])
        for part in (pins, deadline, interrupt, holder_is_breaker, refault, odirect, evict, end):
            part(mount)
        seals(kind)
        mount.say("log", text=Path(f"/run/{kind}.log").read_text())


if __name__ == "__main__":
    main()
