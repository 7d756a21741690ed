"""What may block the event loop: which opens of the daemon cannot wait, and that no operation on a source that may
never answer asks it on the loop."""

from __future__ import annotations

import ast
import fcntl
import inspect
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import pinfs
from pinfs.fs import backing as backing_module
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.operations import Operations
from pinfs.fs.polling import POLLPRI
from pinfs.fs.remote import RemoteOperations
from pinfs.fs.types import SetAttr
from pinfs.linux import syscalls
from pinfs.linux.ioctl import FS_IOC_GETFLAGS

from .conftest import ME, Bench

PACKAGE = Path(pinfs.__file__).parent

# --- opens

CANNOT_WAIT = ("O_PATH", "O_NONBLOCK", "AT_ONCE", "O_DIRECTORY", "O_TMPFILE")
"""Flags with which open(2) waits for no other program: for no end of a FIFO, no lease, no device. (It may wait for the
disk, and for the server of a remote file system: see below.)"""

OTHER_OPENS = {
    ("fs/identity.py", "_write_new"): "a new file (O_EXCL), in a thread",
    ("fs/leases.py", "_open_and_close"): "in a thread, which waits for a lease",
    ("fs/creating.py", "create"): "in a thread, and with AT_ONCE",
    ("fs/seallist.py", "__init__"): "the daemon's own file, in a directory of its own",
    ("fs/seallist.py", "_rewrite"): "the same",
    ("bridge/mount.py", "open_source"): "a directory, before the mount begins",
    ("bridge/passthrough.py", "_sample"): "while the mount begins; a lease on that file can hold that up",
    ("bridge/sealprobe.py", "*"): "a file system that the daemon has just made; /dev/fuse",
    ("linux/calls.py", "open_at"): "its callers give the flags",
    ("linux/proc.py", "*"): "procfs",
    ("serve/background.py", "*"): "/dev/null, before the mount begins",
}


def opens_that_may_wait() -> set[tuple[str, str]]:
    found = set()
    for room in ("bridge", "enforce", "fs", "linux", "runtime", "serve"):
        for path in (PACKAGE / room).glob("*.py"):
            tree = ast.parse(path.read_text())
            names = _values(tree)
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for call in ast.walk(function):
                        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("os.open", "open_at"):
                            flags = ast.unparse(call.args[1 if ast.unparse(call.func) == "os.open" else 2])
                            if not any(word in names.get(flags, "") + flags for word in CANNOT_WAIT):
                                found.add((str(path.relative_to(PACKAGE)), _innermost(tree, call)))
    return found


def _values(tree: ast.Module) -> dict[str, str]:
    """Constants of the module, as they are written."""
    return {
        ast.unparse(node.target): ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }


def _innermost(tree: ast.Module, call: ast.Call) -> str:
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.lineno <= call.lineno <= (node.end_lineno or 0)
    ]
    return max(around, key=lambda node: node.lineno).name


def test_every_open_of_the_daemon_cannot_wait_or_has_a_reason() -> None:
    without = {
        (path, function)
        for path, function in opens_that_may_wait()
        if (path, function) not in OTHER_OPENS and (path, "*") not in OTHER_OPENS
    }
    assert not without, "add a flag that cannot wait, use a thread, or say in OTHER_OPENS why it does not matter"


# --- operations on a source that may never answer

ASKING = {
    os: ("open stat lstat fstat statvfs fstatvfs pread pwrite scandir listdir readlink link unlink rmdir mkdir mknod "
         "symlink rename truncate ftruncate chmod fchmod chown utime fsync fdatasync lseek copy_file_range getxattr "
         "setxattr listxattr removexattr"),
    fcntl: "ioctl",
    syscalls: "renameat2 fallocate ftruncate utimens attributes_of birth_time_ns syncfs wait_for_attributes",
}  # fmt: skip

LEFT_ON_THE_LOOP = {("setxattr", "lseek")}
"""The size of a file that is pinned; see `pinfs.fs.remote`."""


class Watch:
    """Notes what is called on the event loop, by the operation under way. Where pinfs is compiled it does not see the
    calls of `pinfs.linux.calls`; interpreted it sees all, and the source is the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
        self.loop = threading.get_ident()
        self.device = source.stat().st_dev
        self.operation = ""
        self.seen: set[tuple[str, str]] = set()
        self.fstat = os.fstat
        for module, names in ASKING.items():
            for name in names.split():
                monkeypatch.setattr(module, name, self.watched(name, getattr(module, name)))
        monkeypatch.setattr(os, "close", self.closing(os.close))

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **how: Any) -> Any:
            if self.operation and threading.get_ident() == self.loop and not self.is_elsewhere(args[0]):
                self.seen.add((self.operation, name))
            return call(*args, **how)

        return wrapped

    def is_elsewhere(self, file: object) -> bool:
        """A process, or a descriptor of one."""
        if isinstance(file, int):
            return self.fstat(file).st_dev != self.device
        text = os.fsencode(file) if isinstance(file, str | bytes) else b""
        return text.startswith(b"/proc/") and not text.startswith(b"/proc/self/fd/")

    def closing(self, close: Callable[[int], None]) -> Callable[[int], None]:
        """close(2) writes back, but for O_PATH descriptors and directories."""

        def wrapped(fd: int) -> None:
            if self.operation and threading.get_ident() == self.loop:
                st = self.fstat(fd)
                is_path = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
                if st.st_dev == self.device and stat.S_ISREG(st.st_mode) and not is_path:
                    self.seen.add((self.operation, "close"))
            close(fd)

        return wrapped


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for kind in ("calls_may_stall", "cuts_may_wait"):
        monkeypatch.setattr(backing_module, kind, lambda fd: True)
    mask = os.umask(0o022)
    yield
    os.umask(mask)


async def calls(bench: Bench) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each operation at least once, on files whose descriptors the table has let go of."""
    ops = bench.ops
    path = bench.source / "d"
    path.mkdir()
    for name in ("f", "g", "gone", "victim", "moved"):
        (path / name).write_bytes(b"x" * 100)
    (path / "link").symlink_to("f")
    (path / "old").mkdir()
    d = (await ops.lookup(ROOT_ID, b"d", ME)).nodeid
    f, g, link = [(await ops.lookup(d, name, ME)).nodeid for name in (b"f", b"g", b"link")]
    fh, gh = [(await ops.open(node, os.O_RDWR, ME)).fh for node in (f, g)]
    directory = (await ops.opendir(d, ME)).fh

    async def several(*works: Awaitable[object]) -> None:
        for work in works:
            await work

    async def forget_all() -> None:
        for inode in list(bench.fs.inodes):
            if inode.name is not None:
                bench.fs.inodes.descriptors.close(inode)

    return {
        "lookup": lambda: several(forget_all(), ops.lookup(d, b"f", ME)),
        "getattr": lambda: several(forget_all(), ops.getattr(f, ME)),
        "statx_btime": lambda: ops.statx_btime(f, None),
        "mknod": lambda: ops.mknod(d, b"fifo", stat.S_IFIFO | 0o644, 0, ME),
        "mkdir": lambda: ops.mkdir(d, b"new", 0o755, ME),
        "symlink": lambda: ops.symlink(d, b"s", b"target", ME),
        "link": lambda: ops.link(f, d, b"hard", ME),
        "readlink": lambda: several(forget_all(), ops.readlink(link, ME)),
        "unlink": lambda: several(ops.unlink(d, b"gone", ME), ops.unlink(d, b"hard", ME)),
        "rmdir": lambda: ops.rmdir(d, b"old", ME),
        "rename": lambda: several(ops.rename(d, b"moved", d, b"victim", 0, ME), ops.rename(d, b"s", d, b"t", 0, ME)),
        "setattr": lambda: several(
            ops.setattr(f, SetAttr(size=50, mode=0o600, uid=0, mtime_ns=1), None, ME),
            ops.setattr(f, SetAttr(size=60), fh, ME),
        ),
        "open": lambda: several(forget_all(), ops.open(f, os.O_RDONLY, ME), ops.open(g, os.O_WRONLY | os.O_TRUNC, ME)),
        "create": lambda: several(
            ops.create(d, b"made", 0o644, os.O_RDWR, ME), ops.create(d, b"victim", 0o644, os.O_RDWR | os.O_TRUNC, ME)
        ),
        "tmpfile": lambda: ops.tmpfile(d, 0o600, os.O_RDWR, ME),
        "read": lambda: ops.read(fh, 0, 10),
        "write": lambda: ops.write(fh, 0, b"abc", kill_suidgid=True),
        "flush": lambda: ops.flush(fh),
        "fsync": lambda: ops.fsync(fh, True),
        "lseek": lambda: ops.lseek(fh, 0, os.SEEK_DATA),
        "fallocate": lambda: ops.fallocate(fh, syscalls.FALLOC_FL_PUNCH_HOLE | 1, 0, 10, ME),
        "copy_file_range": lambda: ops.copy_file_range(fh, 0, gh, 0, 10, ME),
        "poll": lambda: ops.poll(fh, POLLPRI, None),
        "ioctl": lambda: ops.ioctl(fh, FS_IOC_GETFLAGS, b"", 8, ME),
        "opendir": lambda: ops.opendir(d, ME),
        "readdir": lambda: ops.readdir(directory, 0, True, lambda *_: True),
        "fsyncdir": lambda: ops.fsyncdir(directory, False),
        "statfs": lambda: ops.statfs(ME, f),
        "syncfs": lambda: ops.syncfs(f),
        "access": lambda: ops.access(f, 4, ME),
        "setxattr": lambda: several(
            ops.setxattr(f, b"user.a", b"b", 0, ME), ops.setxattr(f, b"user.pinfs.pin.n", b"0:10", 0, ME)
        ),
        "getxattr": lambda: several(ops.getxattr(f, b"user.a", ME), ops.getxattr(f, b"user.pinfs.pin.n", ME, 4096)),
        "listxattr": lambda: ops.listxattr(f, ME),
        "removexattr": lambda: several(ops.removexattr(f, b"user.a", ME), ops.removexattr(f, b"user.pinfs.pin.n", ME)),
        "release": lambda: several(ops.release(fh), ops.release(gh)),
        "releasedir": lambda: ops.releasedir(directory),
    }


async def test_no_operation_asks_such_a_source_on_the_event_loop(
    root: None, remote: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(bench.ops, RemoteOperations)
    operations = await calls(bench)
    watch = Watch(monkeypatch, bench.source)
    for name, call in operations.items():
        watch.operation = name
        await call()
        await trio.lowlevel.checkpoint()
        watch.operation = ""
    assert set(operations) == {name for name, _ in inspect.getmembers(Operations, inspect.iscoroutinefunction)}
    assert watch.seen <= LEFT_ON_THE_LOOP


@pytest.mark.interpreted
async def test_the_watch_sees_what_an_ordinary_source_is_asked(
    root: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = await calls(bench)
    watch = Watch(monkeypatch, bench.source)
    for name, call in operations.items():
        watch.operation = name
        await call()
        watch.operation = ""
    quiet = {"flush", "poll", "access", "readdir", "releasedir", "fsync", "syncfs", "fsyncdir", "opendir", "release"}
    assert {name for name, _ in watch.seen} >= set(operations) - quiet
