"""What actors can do beyond the standard library's own functions. Runs inside the actor; standard library only.

Signals: an actor that `catch`es a signal blocks it, so that it queues and `next_signal` takes it with its value:
nothing is lost between two calls, and nothing interrupts one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import operator
import os
import pathlib
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

SI_QUEUE = -1
_PR_SET_DUMPABLE = 4
_PIDFD_SEND_SIGNAL, _IO_URING_SETUP, _IO_URING_REGISTER = 424, 425, 427  # the same on all of Debian's architectures

libc = ctypes.CDLL(None, use_errno=True)
_mmap = libc.mmap
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_MAP_FAILED = ctypes.c_size_t(-1).value


def of_pathlib(name: str) -> Any:
    """What pathlib has under that name (`Path.read_bytes`)."""
    return operator.attrgetter(name)(pathlib)


class Caught(NamedTuple):
    """A signal as it arrived: its number, si_code, the sender, si_value."""

    number: int
    code: int
    pid: int
    uid: int
    value: int


class _SigInfo(ctypes.Structure):
    """siginfo_t of a queued signal on 64-bit Linux (sigaction(2)), 128 bytes."""

    _fields_ = (
        ("signo", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("_pad", ctypes.c_int),
        ("pid", ctypes.c_int),
        ("uid", ctypes.c_uint),
        ("value", ctypes.c_int64),
        ("_rest", ctypes.c_char * 96),
    )


def become(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Takes on another identity, for good."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def catch(number: int) -> None:
    """From now on signal `number` waits for `next_signal`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])


def next_signal(number: int, limit_s: float = 20.0) -> Caught:
    """The next queued signal `number`; raises OSError(EAGAIN) when none comes within `limit_s` seconds."""
    wanted = (ctypes.c_ulong * 16)(1 << (number - 1))
    limit = (ctypes.c_long * 2)(int(limit_s), int(limit_s % 1 * 1e9))
    info = _SigInfo()
    while libc.sigtimedwait(wanted, ctypes.byref(info), limit) < 0:
        if ctypes.get_errno() != errno.EINTR:  # SIGSTOP and SIGCONT end the call without a signal
            raise OSError(ctypes.get_errno(), f"no signal {number}")
    return Caught(info.signo, info.code, info.pid, info.uid, info.value)


def queue_signal(pidfd: int, number: int, value: int) -> None:
    """pidfd_send_signal(2) with `si_value`, which signal.pidfd_send_signal cannot pass."""
    info = _SigInfo(signo=number, code=SI_QUEUE, pid=os.getpid(), uid=os.getuid(), value=value)
    if libc.syscall(_PIDFD_SEND_SIGNAL, pidfd, number, ctypes.byref(info), 0):
        raise OSError(ctypes.get_errno(), "pidfd_send_signal")


def map_file(path: str, length: int, offset: int = 0, writable: bool = True) -> int:
    """Maps a file shared and closes it. Returns the address, for the other calls. `length` and `offset` in bytes."""
    fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        return map_fd(fd, length, offset, writable)
    finally:
        os.close(fd)


def map_fd(fd: int, length: int, offset: int = 0, writable: bool = True) -> int:
    """Maps an open file shared. Returns the address. (The mmap module would keep a duplicate of the descriptor.)"""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address: int = _mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def peek(address: int, length: int) -> bytes:
    """Reads mapped bytes. SIGBUS ends the actor, as it ends any reader."""
    return ctypes.string_at(address, length)


def poke(address: int, data: bytes) -> None:
    """Stores mapped bytes."""
    ctypes.memmove(address, data, len(data))


def unmap(address: int, length: int) -> None:
    """Removes a mapping."""
    if libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length)):
        raise OSError(ctypes.get_errno(), "munmap")


def register_buffer(address: int, length: int) -> int:
    """Pins the pages of `length` mapped bytes as an io_uring registered buffer: a real long-term pin,
    which lives as long as the ring. Returns the ring; OSError(EFAULT): refused by the kernel (FUSE page cache)."""
    params = ctypes.create_string_buffer(120)  # struct io_uring_params
    ring: int = libc.syscall(_IO_URING_SETUP, 1, params)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    vector = (ctypes.c_uint64 * 2)(address, length)  # struct iovec
    if libc.syscall(_IO_URING_REGISTER, ring, 0, vector, 1):  # IORING_REGISTER_BUFFERS
        raise OSError(ctypes.get_errno(), "io_uring_register")
    return ring


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with its modes, which os.posix_fallocate does not have."""
    call = libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def remove_pages(path: str, offset: int, length: int) -> None:
    """Maps the file, and takes its pages away with its blocks (madvise(2), MADV_REMOVE)."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping.madvise(mmap.MADV_REMOVE, offset, length)


def exchange(one: str, other: str) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), one)


def write_file(path: str, data: bytes) -> None:
    """Writes a file as `cat >` does: creates or truncates it first, then writes until all is there or an error."""
    with open(path, "wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


def read_file(path: str) -> bytes:
    """All bytes of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def ioctl(fd: int, number: int, data: bytes) -> bytes:
    """fcntl.ioctl with a buffer, which has to be filled and answered inside one process."""
    return fcntl.ioctl(fd, number, data)


def poll(fd: int, events: int, limit_s: float = 20.0) -> int:
    """poll(2) of one descriptor. Returns revents, 0 when nothing came within `limit_s` seconds."""
    waiter = select.poll()
    waiter.register(fd, events)
    ready = waiter.poll(limit_s * 1000)
    return ready[0][1] if ready else 0


def read_event_lines(fd: int, limit_s: float = 20.0) -> bytes:
    """Whole lines from an event channel, as soon as there is one; raises OSError(EAGAIN) when none comes."""
    if not poll(fd, select.POLLIN, limit_s):
        raise OSError(errno.EAGAIN, "no event")
    return os.read(fd, 65536)


def in_thread(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Calls `function` in a thread of its own. Returns that thread's id and the value; raises what it raised."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.extend((threading.get_native_id(), function(*args), None))
        except OSError as failure:
            result.extend((threading.get_native_id(), None, failure))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if result[2] is not None:
        raise result[2]
    return result[0], result[1]


def fork_child() -> int:
    """Forks a child that only keeps what it inherited (descriptors, mappings) until it is killed. Returns its pid."""
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    return child


def end_child(pid: int) -> None:
    """Kills a child of `fork_child` and waits for its end."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def set_dumpable(dumpable: bool) -> None:
    """Whether other processes of this one's user may fetch what it has open (prctl(2), PR_SET_DUMPABLE)."""
    libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def new_epoll() -> int:
    """The descriptor of a new epoll(7), which stays open."""
    poller = select.epoll()
    return os.dup(poller.fileno())


def pin_with_new_eventfds(path: str, prefix: str, count: int) -> int | None:
    """Pins as many times, each with an eventfd of its own, which is closed then. Returns the errno that stops it."""
    for number in range(count):
        eventfd = os.eventfd(0)
        try:
            os.setxattr(path, f"user.pinfs.pin.{prefix}{number}", f"0:0,eventfd={eventfd}".encode())
        except OSError as failure:
            return failure.errno
        finally:
            os.close(eventfd)
    return None


def hear_releases(path: str, events: str, rounds: int) -> int:
    """Pins and releases in a thread, and reads lines whenever an eventfd says that there are some. Returns of how many
    pins the release was heard; OSError(EAGAIN): of no more for 20 seconds."""
    channel, eventfd = os.open(events, os.O_RDWR | os.O_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    os.write(channel, b"eventfd %d\n" % eventfd)
    releasing = threading.Thread(target=_pin_and_release, args=(path, rounds))
    releasing.start()
    heard: set[int] = set()
    while len(heard) < rounds:
        if not poll(eventfd, select.POLLIN):
            raise OSError(errno.EAGAIN, f"{len(heard)} releases, then none")
        os.eventfd_read(eventfd)
        heard |= {json.loads(line)["pin"] for line in _all_lines(channel)}
    releasing.join()
    return len(heard)


def _pin_and_release(path: str, rounds: int) -> None:
    for _ in range(rounds):
        os.setxattr(path, "user.pinfs.pin.again", b"0:0")
        os.removexattr(path, "user.pinfs.pin.again")


def _all_lines(channel: int) -> list[bytes]:
    lines: list[bytes] = []
    with suppress(BlockingIOError):
        while True:
            lines += os.read(channel, 1 << 16).splitlines()
    return lines


def pin_blocks(path: str, count: int, size: int = 4096) -> None:
    """Pins each of the first `count` blocks of `size` bytes, as deny pins named by their numbers."""
    fd = os.open(path, os.O_RDWR)
    try:
        for block in range(count):
            os.setxattr(fd, f"user.pinfs.pin.{block}", b"%d:%d" % (block * size, size))
    finally:
        os.close(fd)


def list_some(path: str, size: int = 4096) -> int:
    """Opens a directory and reads as many of its names as one getdents64(2) of `size` bytes gives; the descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    count = libc.getdents64(fd, ctypes.create_string_buffer(size), size)
    if count <= 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return fd
