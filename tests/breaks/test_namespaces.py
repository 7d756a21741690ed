"""Other pid namespaces: callers with numbers of their own, and a daemon that cannot see its callers (SPEC 4)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from support.actor import Actor, Actors, Pending, eventually
from support.mounts import BAD_LOG_LINE, REPO, Mount, force_umount, is_mounted, umount, wait_mounted

from breaks import acts
from breaks.acts import ORIGINAL, PAGE

APART = 'mount --make-private /proc && mount -t proc proc /proc && exec "$@"'
"""In the new namespaces: a /proc that shows the daemon its own pids, and that nobody else sees."""


class Held(NamedTuple):
    holder: Actor
    fd: int
    pin: int
    breaker: Actor
    cut: Pending[None]


class Apart(Actors):
    """A mount whose daemon is in another pid namespace than all who use it."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.source, self.path, self.log = base / "source", base / "mnt", base / "log"
        for directory in (self.source, self.path):
            directory.mkdir()
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "unchanged"]
        command += ["sh", "-c", APART, "sh", sys.executable, str(REPO / "mount.py"), str(self.source), str(self.path)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, "-o", "break_timeout=100"], stdout=log, stderr=log)

    def end(self) -> None:
        self.dismiss()
        if is_mounted(self.path):
            umount(self.path)
        assert self.process.wait(20) == 0


@pytest.fixture
def apart(base: Path) -> Iterator[Apart]:
    """The base is a mount of its own, shared between mount namespaces: so the daemon's mount is seen here."""
    with ExitStack() as stack:
        for step in ("--bind", "--make-shared"):
            subprocess.run(["mount", step, *([base] if step == "--bind" else []), base], check=True)
        stack.callback(umount, base)
        mount = Apart(base)
        stack.callback(force_umount, mount.path)
        assert wait_mounted(mount.path, mount.process, 20), mount.log.read_text()
        yield mount
        mount.end()
        assert not BAD_LOG_LINE.search(mount.log.read_text())


def test_who_is_not_visible_pins_by_handle_only(apart: Apart) -> None:
    path = apart.path / "f"
    path.write_bytes(ORIGINAL)
    holder = apart.actor()
    value = f"{PAGE}:{PAGE}".encode()
    assert holder.errno(os.setxattr, str(path), "user.pinfs.pin.p", value) == errno.EPERM
    value += f",pid={holder.pid}".encode()
    assert holder.errno(os.setxattr, str(path), "user.pinfs.pin.p", value) in (errno.ESRCH, errno.EPERM)
    fd = holder(acts.pin, str(path), "handle", "deny")
    assert apart.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
    holder(os.close, fd)
    assert apart.actor().errno(os.truncate, str(path), 0) is None


@pytest.fixture
def held(apart: Apart) -> Held:
    """A lease of a handle, and a truncate that waits for it; its own process's pin would refuse it at once."""
    path = apart.path / "f"
    path.write_bytes(ORIGINAL)
    holder, breaker = apart.actor(), apart.actor()
    fd = holder(os.open, str(path), os.O_RDWR)
    pin = holder(acts.pin_handle, fd)
    cut = breaker.start(os.truncate, str(path), 0)
    holder(acts.wait_urgent, fd)
    return Held(holder, fd, pin, breaker, cut)


def test_who_is_not_visible_still_answers_breaks(apart: Apart, held: Held) -> None:
    """It polls its handle; neither signal nor event channel can reach it. All of them have pid 0 for the daemon: that
    makes no two of them one process, and no breaker an owner."""
    assert held.holder.errno(os.open, str(apart.path / ".pinfs" / "events"), os.O_RDWR) == errno.EPERM
    assert not held.cut.done()
    held.holder(acts.unpin_handle, held.fd, held.pin)
    assert held.cut.error() is None


def test_an_invisible_breaker_can_be_killed(apart: Apart, held: Held) -> None:
    held.breaker.kill()
    assert (apart.path / "f").read_bytes() == ORIGINAL


NAMING = """
import os, sys
try:
    os.setxattr(sys.argv[1], "user.pinfs.pin.p", b"0:4096,pid=" + sys.argv[2].encode())
except OSError as e:
    print(e.errno, flush=True)
else:
    print(0, os.getpid(), flush=True)
input()
"""


@pytest.mark.parametrize(("number", "errno_"), [("1", 0), ("2", errno.ESRCH), ("{daemon}", errno.ESRCH)])
def test_a_number_is_the_callers(mount: Mount, number: str, errno_: int) -> None:
    """The first process of a namespace means itself by 1, not the host's."""
    path = mount.path / "f"
    path.write_bytes(ORIGINAL)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", NAMING, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, number.format(daemon=mount.pid)], stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline().split() == ["0", "1"] if not errno_ else [str(errno_)]
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        assert [str(pin["pid"]) for pin in mount.pins()] == (children if not errno_ else [])
        program.stdin.close()
        program.wait()
    eventually(lambda: not mount.pins())
