"""The system calls of the fast path: what they say, and that Python and Cython say the same."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from support import acts
from support.actor import Actors
from support.sources import source_of
from support.stat_results import S, stat_results

from pinfs.linux import calls, syscalls
from pinfs.linux.eventfds import Signaller

source = source_of("linux/calls.py")

FIELDS = ("st_dev", "st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ctime_ns")

both = pytest.mark.parametrize(
    "module", [pytest.param(calls, id="as imported"), pytest.param(source, id="source", marks=pytest.mark.compiled)]
)


def fields(told) -> dict[str, int]:
    return {name: getattr(told, name) for name in FIELDS}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """One of each kind."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "file").chmod(0o4755)
    (tmp_path / "linked").hardlink_to(tmp_path / "file")
    (tmp_path / "directory").mkdir()
    (tmp_path / "symlink").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "ä\udcff\n".encode(errors="surrogateescape").decode(errors="surrogateescape")).touch()
    os.mkfifo(tmp_path / "fifo")
    os.utime(tmp_path / "linked", ns=(-5 * S + 7, 2 * S - 1))
    with closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(os.fsencode(tmp_path / "socket"))
        yield tmp_path


NAMES = [
    *(b"file", b"linked", b"directory", b"symlink", b"dangling", b"fifo", b"socket", "ä".encode() + b"\xff\n"),
    *(b".", b"..", b"", b"missing", b"file/", b"file/below", b"directory/", b"symlink/", b"n" * 255, b"n" * 256),
    *(b"/", b"/dev/null", b"p/" * 3000),
]


@both
@pytest.mark.parametrize("name", NAMES)
def test_stat_of_a_name_is_that_of_lstat(module, tree: Path, name: bytes) -> None:
    told = module.Stat()
    directory = os.open(tree, os.O_PATH)
    try:
        expected = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as e:
        assert module.stat_at(directory, name, told) == e.errno
        assert fields(told) == dict.fromkeys(FIELDS, 0)
    else:
        assert module.stat_at(directory, name, told) == 0
        assert fields(told) == fields(expected)
    finally:
        os.close(directory)


@both
def test_a_name_without_a_directory(module, tree: Path) -> None:
    """EBADF and ENOTDIR; the last result stays."""
    told, before = module.Stat(), os.stat("/")
    told.fill(before)
    file = os.open(tree / "file", os.O_RDONLY)
    assert module.stat_at(file, b"name", told) == errno.ENOTDIR
    os.close(file)
    assert module.stat_at(file, b"name", told) == errno.EBADF
    assert module.stat_fd(file, told) == errno.EBADF
    assert module.stat_fd(-1, told) == errno.EBADF
    assert fields(told) == fields(before)


@both
@pytest.mark.parametrize("flags", [os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY | os.O_NONBLOCK])
def test_stat_of_a_descriptor_is_that_of_fstat(module, tree: Path, flags: int) -> None:
    told = module.Stat()
    for path in tree.iterdir():
        if flags & os.O_PATH or not (path.is_symlink() or path.is_socket()):
            fd = os.open(path, flags)
            assert module.stat_fd(fd, told) == 0
            assert fields(told) == fields(os.fstat(fd))
            os.close(fd)
    for fd in os.pipe():
        assert module.stat_fd(fd, told) == 0
        assert fields(told) == fields(os.fstat(fd))
        os.close(fd)


@both
@given(stat_results())
def test_what_is_filled_in_is_what_os_stat_has_told(module, result: os.stat_result) -> None:
    told = module.Stat()
    told.fill(result)
    assert fields(told) == fields(result)


@both
def test_a_new_one_knows_nothing(module) -> None:
    assert fields(module.Stat()) == dict.fromkeys(FIELDS, 0)


@both
def test_readable(module) -> None:
    """Data, its end, a process that has ended, and a descriptor that is none."""
    out, into = os.pipe()
    assert not module.is_readable(out)
    os.write(into, b"x")
    assert module.is_readable(out)
    os.read(out, 1)
    assert not module.is_readable(out)
    os.close(into)
    assert module.is_readable(out)
    os.close(out)
    assert module.is_readable(out)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        assert not module.is_readable(pidfd)
        process.communicate()
        assert module.is_readable(pidfd)
    os.close(pidfd)


@pytest.mark.compiled
def test_both_have_one_clock() -> None:
    moments = [clock() for _ in range(100) for clock in (calls.clock, source.clock, time.perf_counter)]
    assert moments == sorted(moments)


@pytest.mark.compiled
def test_the_source_is_another_module() -> None:
    assert source.__file__ != calls.__file__
    assert calls.__file__.endswith(".so")
    public = [name for name in ("Stat", "clock", "stat_at", "stat_fd", "is_readable") if hasattr(calls, name)]
    assert [getattr(calls, name) is not getattr(source, name) for name in public] == [True] * 5


@both
def test_attributes_are_those_of_statx(module, tree: Path) -> None:
    for name in ("file", "directory"):
        fd = os.open(tree / name, os.O_PATH)
        try:
            assert module.attributes_of(fd) == syscalls.attributes_of(fd)
        finally:
            os.close(fd)
    with pytest.raises(OSError) as failure:
        module.attributes_of(fd)
    assert failure.value.errno == errno.EBADF


@both
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**63 + 5])
def test_a_queued_signal_arrives_with_its_value(module, value: int, actors: Actors) -> None:
    # To a process of its own: this one may have more threads, and any that does not block the signal would take it.
    holder = actors.actor()
    holder(acts.catch, signal.SIGUSR2)
    pidfd = os.pidfd_open(holder.pid)
    try:
        assert module.queue_signal(pidfd, signal.SIGUSR2, value)
    finally:
        os.close(pidfd)
    caught = holder(acts.next_signal, signal.SIGUSR2)
    assert (caught.number, caught.code) == (signal.SIGUSR2, acts.SI_QUEUE)
    assert (caught.pid, caught.uid, caught.value % 2**64) == (os.getpid(), os.getuid(), value)


@both
def test_a_process_that_has_ended_gets_no_signal(module) -> None:
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
    try:
        assert not module.queue_signal(pidfd, signal.SIGUSR2, 1)
    finally:
        os.close(pidfd)


@both
def test_an_eventfd_is_signalled_by_a_read(module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinfs.linux.eventfds.read_and_signal", module.read_and_signal)
    signaller, eventfd = Signaller(), os.eventfd(0)
    try:
        for _ in range(100):  # more than the ring has room for
            signaller.signal(eventfd)
        assert os.eventfd_read(eventfd) == 100
        with open(os.devnull) as other, pytest.raises(OSError) as failure:
            signaller.signal(other.fileno())
        assert failure.value.errno == errno.EINVAL
    finally:
        os.close(eventfd)
        signaller.close()
    with pytest.raises(OSError) as failure:
        module.read_and_signal(0, eventfd, eventfd)
    assert failure.value.errno == errno.EINVAL


@both
def test_what_os_stat_has_told(module, tree: Path) -> None:
    expected = os.lstat(tree / "linked")
    assert fields(module.stat_of(expected)) == fields(expected)


@both
def test_close(module, tree: Path) -> None:
    fd = os.open(tree / "file", os.O_RDONLY)
    module.close_fd(fd)
    with pytest.raises(OSError) as failure:
        module.close_fd(fd)
    assert failure.value.errno == errno.EBADF


EVENT_LOOP = """
import os, sys, threading
from pinfs.linux import calls

kept = len(sys.argv) > 1
if kept:
    calls.call_at_once_here()
at, ready, steps = os.memfd_create("f"), threading.Barrier(2), 0
os.truncate(at, 1)

def other():
    global steps
    ready.wait()
    for _ in range(1000):
        assert calls.stat_fd(at, calls.Stat()) == 0
        steps += 1

thread = threading.Thread(target=other)
thread.start()
ready.wait()
st = calls.Stat()
for _ in range(1000):
    assert calls.stat_at(at, b"nothing", st) and calls.stat_fd(at, st) == 0
    assert st.st_size == 1
try:
    calls.open_at(at, b"nothing", 0, 0)
except NotADirectoryError:
    pass
thread.join()
print(steps)
"""


@pytest.mark.parametrize("here", [[], ["here"]], ids=["any thread", "the event loop"])
def test_calls_of_the_event_loop_say_the_same_beside_those_of_threads(here: list[str]) -> None:
    told = subprocess.run([sys.executable, "-c", EVENT_LOOP, *here], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("1000\n", "")
