"""What Linux does with a FUSE mount, as far as the design of pinfs stands on it (docs: kernel facts)."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from facts import raw as fuse
from facts.raw import RawFuse
from support import acts
from support.actor import Actors, Pending, eventually

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
IOCTL_104 = (3 << 30) | (104 << 16) | (ord("P") << 8) | 0xA0  # _IOWR('P', 0xA0, 104 bytes)


# --- removals, and how they arrive


def test_truncate_arrives_without_a_handle_and_ftruncate_with_one(raw: RawFuse) -> None:
    """So a breaker with a non-blocking handle can be told from others."""
    breaker = raw.actor()
    cut = breaker.start(os.truncate, raw.name, 100)
    request = raw.until(fuse.SETATTR)
    valid, _, _, size = struct.unpack_from("<IIQQ", request.body)
    assert (valid & fuse.FATTR_SIZE, valid & fuse.FATTR_FH, size) == (fuse.FATTR_SIZE, 0, 100)
    raw.default(request)
    raw.result(cut)
    fd = raw.result(breaker.start(os.open, raw.name, os.O_RDWR))
    cut = breaker.start(os.ftruncate, fd, 50)
    request = raw.until(fuse.SETATTR)
    assert struct.unpack_from("<I", request.body)[0] & fuse.FATTR_FH
    raw.default(request)
    raw.result(cut)


def test_o_trunc_arrives_in_open_when_it_is_atomic(raw: RawFuse) -> None:
    opening = raw.actor().start(os.open, raw.name, os.O_RDWR | os.O_TRUNC)
    request = raw.until(fuse.OPEN, fuse.SETATTR)
    assert request.opcode == fuse.OPEN
    assert struct.unpack_from("<I", request.body)[0] & os.O_TRUNC
    raw.opened(request)
    raw.result(opening)


def test_o_trunc_arrives_as_setattr_after_open_when_it_is_not_atomic(base: Path) -> None:
    with RawFuse(base, init_flags=fuse.WANTED & ~fuse.ATOMIC_O_TRUNC) as raw:
        opening = raw.actor().start(os.open, raw.name, os.O_RDWR | os.O_TRUNC)
        request = raw.until(fuse.OPEN, fuse.SETATTR)
        assert request.opcode == fuse.OPEN
        assert not struct.unpack_from("<I", request.body)[0] & os.O_TRUNC
        raw.opened(request)
        request = raw.until(fuse.SETATTR)
        assert struct.unpack_from("<IIQQ", request.body)[3] == 0
        raw.default(request)
        raw.result(opening)


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE])
def test_fallocate_modes_that_arrive(raw: RawFuse, mode: int) -> None:
    caller = raw.actor()
    fd = raw.result(caller.start(os.open, raw.name, os.O_RDWR))
    call = caller.start(acts.fallocate, fd, mode, 4096, 4096)
    request = raw.until(fuse.FALLOCATE)
    _, offset, length, seen = struct.unpack_from("<QQQI", request.body)
    assert (offset, length, seen) == (4096, 4096, mode)
    raw.reply(request)
    raw.result(call)


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT])
def test_fallocate_modes_that_the_kernel_refuses_by_itself(raw: RawFuse, mode: int) -> None:
    caller = raw.actor()
    fd = raw.result(caller.start(os.open, raw.name, os.O_RDWR))
    assert caller.errno(acts.fallocate, fd, mode, 0, 4096) == errno.EOPNOTSUPP  # nobody answers: nothing is asked


def test_the_request_carries_the_thread_id(raw: RawFuse) -> None:
    caller = raw.actor()
    call = caller.start(acts.in_thread, os.truncate, raw.name, 10)
    request = raw.until(fuse.SETATTR)
    tgid = Path(f"/proc/{request.pid}/status").read_text().split("\nTgid:\t")[1].split()[0]
    raw.default(request)
    thread, _ = raw.result(call)
    assert (request.pid, int(tgid)) == (thread, caller.pid)
    assert thread != caller.pid


def test_an_ioctl_arrives_with_the_sizes_of_its_number(raw: RawFuse) -> None:
    caller = raw.actor()
    fd = raw.result(caller.start(os.open, raw.name, os.O_RDWR))
    call = caller.start(acts.ioctl, fd, IOCTL_104, b"q" * 104)
    request = raw.until(fuse.IOCTL)
    _, flags, number, _, in_size, out_size = struct.unpack_from("<QIIQII", request.body)
    assert (flags, number, in_size, out_size) == (0, IOCTL_104, 104, 104)
    assert request.body[32:] == b"q" * 104
    raw.reply(request, struct.pack("<iIII", 0, 0, 0, 0), b"a" * 104)
    assert raw.result(call) == b"a" * 104


# --- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_answering_an_interrupted_request_with_eintr_ends_its_caller(raw: RawFuse, number: int) -> None:
    breaker = subprocess.Popen(["/usr/bin/truncate", "-s", "0", raw.name])
    request = raw.until(fuse.SETATTR)
    breaker.send_signal(number)
    interrupt = raw.until(fuse.INTERRUPT)
    assert struct.unpack_from("<Q", interrupt.body) == (request.unique,)
    assert breaker.poll() is None  # without an answer not even SIGKILL ends it
    eventually(lambda: Path(f"/proc/{breaker.pid}/stat").read_text().rsplit(") ", 1)[1].startswith("D"))
    raw.fail(request, errno.EINTR)
    raw.until(fuse.RELEASE)  # it dies, and closes its files
    assert breaker.wait(fuse.LIMIT_S) == -number


# --- what a waiting SETATTR holds back


def test_while_a_truncate_waits_setxattr_is_held_back_and_the_rest_is_not(raw: RawFuse) -> None:
    """So a pin must be releasable by getxattr or ioctl: a release by setxattr could never answer a break."""
    breaker, setter, other = raw.actor(), raw.actor(), raw.actor()
    fd = raw.result(other.start(os.open, raw.name, os.O_RDWR))
    cut = breaker.start(os.truncate, raw.name, 0)
    waiting = raw.until(fuse.SETATTR)
    setting = setter.start(os.setxattr, raw.name, "user.a", b"1")
    raw.default(raw.until(fuse.LOOKUP))
    eventually(lambda: setter.state() == "D")  # in the lock of the inode, behind the truncate

    calls: list[tuple[int, Callable[[], Pending[object]]]] = [
        (fuse.GETXATTR, lambda: other.start(os.getxattr, raw.name, "user.a")),
        (fuse.IOCTL, lambda: other.start(acts.ioctl, fd, IOCTL_104, b"q" * 104)),
        (fuse.OPEN, lambda: other.start(os.open, raw.name, os.O_RDONLY)),
        (fuse.GETATTR, lambda: other.start(os.stat, raw.name)),
        (fuse.READ, lambda: other.start(os.pread, fd, 100, 0)),
        (fuse.POLL, lambda: other.start(acts.poll, fd, select.POLLPRI, 0)),
        (fuse.FLUSH, lambda: other.start(os.close, fd)),
    ]
    for opcode, call in calls:
        pending = call()
        request = raw.until(opcode, fuse.SETXATTR)
        assert request.opcode == opcode
        raw.default(request)
        raw.error(pending)
    raw.default(waiting)
    raw.reply(raw.until(fuse.SETXATTR))  # free as soon as the truncate has ended, maybe before its caller has woken
    raw.result(cut)
    raw.result(setting)


def test_eagain_for_setxattr_reaches_the_caller_as_eopnotsupp(raw: RawFuse) -> None:
    """__vfs_setxattr_noperm means something of its own by EAGAIN. (By getxattr and ioctl it comes through.)"""
    setting = raw.actor().start(os.setxattr, raw.name, "user.a", b"1")
    raw.fail(raw.until(fuse.SETXATTR), errno.EAGAIN)
    assert raw.error(setting) == errno.EOPNOTSUPP
    getting = raw.actor().start(os.getxattr, raw.name, "user.a")
    raw.fail(raw.until(fuse.GETXATTR), errno.EAGAIN)
    assert raw.error(getting) == errno.EAGAIN


# --- passthrough


def test_read_write_and_mappings_go_to_the_backing_file(through: RawFuse) -> None:
    user = through.actor()
    fd = through.result(user.start(os.open, through.name, os.O_RDWR))
    through.result(user.start(os.pwrite, fd, b"write", 0))
    assert os.pread(through.file, 5, 0) == b"write"
    address = through.result(user.start(acts.map_fd, fd, 8192))
    user(acts.poke, address + 4096, b"store")
    assert os.pread(through.file, 5, 4096) == b"store"  # at once, without msync
    os.pwrite(through.file, b"below", 100)
    assert user(acts.peek, address + 100, 5) == b"below"
    assert through.result(user.start(os.pread, fd, 5, 100)) == b"below"
    assert not {fuse.READ, fuse.WRITE} & set(through.seen)


def test_release_comes_at_close_while_the_mapping_lives(through: RawFuse) -> None:
    """So a handle-owned pin does not cover a mapping that outlives its descriptor."""
    user = through.actor()
    fd = through.result(user.start(os.open, through.name, os.O_RDWR))
    address = through.result(user.start(acts.map_fd, fd, 4096))
    closing = user.start(os.close, fd)
    through.default(through.until(fuse.RELEASE))
    through.result(closing)
    os.pwrite(through.file, b"alive", 0)
    assert user(acts.peek, address, 5) == b"alive"


def test_without_passthrough_release_comes_when_the_mapping_goes(raw: RawFuse) -> None:
    user = raw.actor()
    fd = raw.result(user.start(os.open, raw.name, os.O_RDWR))
    address = raw.result(user.start(acts.map_fd, fd, 4096))
    closing = user.start(os.close, fd)
    request = raw.until(fuse.FLUSH, fuse.RELEASE)
    assert request.opcode == fuse.FLUSH
    raw.default(request)
    raw.result(closing)
    unmapping = user.start(acts.unmap, address, 4096)
    assert raw.until(fuse.RELEASE)
    raw.result(unmapping)


def test_all_opens_of_an_inode_must_agree_on_the_backing_id(through: RawFuse) -> None:
    user = through.actor()
    fd = through.result(user.start(os.open, through.name, os.O_RDWR))
    other_id = through.backing_open(through.file)  # the same file by another id is already another backing
    opening = user.start(os.open, through.name, os.O_RDONLY)
    through.opened(through.until(fuse.OPEN), fuse.FOPEN_PASSTHROUGH, other_id)
    assert through.error(opening) == errno.EIO
    opening = user.start(os.open, through.name, os.O_RDONLY)
    through.opened(through.until(fuse.OPEN))  # without passthrough, while one has it
    assert through.error(opening) == errno.EIO
    through.result(user.start(os.close, fd))


def test_keep_cache_and_passthrough_do_not_go_together(through: RawFuse) -> None:
    opening = through.actor().start(os.open, through.name, os.O_RDWR)
    through.opened(through.until(fuse.OPEN), fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_KEEP_CACHE, through.backing_id)
    assert through.error(opening) == errno.EIO


def test_pages_can_be_pinned_with_passthrough_on_tmpfs(through: RawFuse) -> None:
    user = through.actor()
    fd = through.result(user.start(os.open, through.name, os.O_RDWR))
    address = through.result(user.start(acts.map_fd, fd, 8192))
    user(acts.register_buffer, address, 8192)


def test_pages_cannot_be_pinned_without_passthrough(raw: RawFuse) -> None:
    user = raw.actor()
    fd = raw.result(user.start(os.open, raw.name, os.O_RDWR))
    address = raw.result(user.start(acts.map_fd, fd, 8192))
    assert raw.error(user.start(acts.register_buffer, address, 8192)) == errno.EFAULT


# --- processes and signals


def test_a_pidfd_is_readable_when_the_process_has_ended() -> None:
    child = subprocess.Popen(["/bin/sleep", "1000"])
    pidfd = os.pidfd_open(child.pid)
    assert select.select([pidfd], [], [], 0)[0] == []
    child.kill()
    assert select.select([pidfd], [], [], fuse.LIMIT_S)[0] == [pidfd]
    assert child.wait() == -signal.SIGKILL  # readable before anybody waited for it: as a zombie
    os.close(pidfd)


def test_a_queued_signal_carries_a_value(actors: Actors) -> None:
    """pidfd_send_signal(2) with a siginfo of our own, si_code SI_QUEUE."""
    holder = actors.actor()
    holder(acts.catch, signal.SIGIO)
    pidfd = os.pidfd_open(holder.pid)
    acts.queue_signal(pidfd, signal.SIGIO, 4711)
    os.close(pidfd)
    caught = holder(acts.next_signal, signal.SIGIO)
    assert (caught.number, caught.code, caught.value) == (signal.SIGIO, acts.SI_QUEUE, 4711)


def test_a_truncated_mapping_kills_its_reader(base: Path, actors: Actors) -> None:
    """The harm that pinfs is there to prevent, on tmpfs itself."""
    path = base / "plain"
    path.write_bytes(b"x" * 4096)
    reader = actors.actor()
    address = reader(acts.map_file, str(path), 4096)
    os.truncate(path, 0)
    with pytest.raises(ProcessLookupError, match=f"-{signal.SIGBUS.value}"):
        reader(acts.peek, address, 1)
