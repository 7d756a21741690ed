"""What the processes of these tests do: operations by name, holders of every kind. Runs inside actors, standard library
only; the ioctl structs are written down a second time on purpose (SPEC 6)."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import acts

PAGE = 4096
SIZE = 3 * PAGE
INSIDE = PAGE + 904
"""A byte within the middle page, which is pinned."""
HOLE = 100
ORIGINAL = b"x" * SIZE
NEW = b"n" * HOLE

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
RENAME_EXCHANGE = 2
AT_FDCWD = -100
PR_SET_PDEATHSIG = 1
SYS_EXIT = 60 if os.uname().machine == "x86_64" else 93

_PIN = struct.Struct("<QQIiIIQ64s")
_QUERY = struct.Struct("<QQQIIqQQQ")
IOC_PIN = 0xC068_50A0
IOC_UNPIN = 0x4008_50A1
IOC_QUERY = 0xC040_50A2
MODES = {"deny": 0, "lease": 1}
DIRTY = 1


# ---- pins

Place = tuple[str, str, str]
"""The path of a file, owner and mode of its pin."""


def pin_handle(
    fd: int, start: int = PAGE, length: int = PAGE, mode: str = "lease", signo: int = 0, flags: int = 0
) -> int:
    """PINFS_IOC_PIN; returns the id."""
    answer = fcntl.ioctl(fd, IOC_PIN, _PIN.pack(start, length, MODES[mode], signo, flags, 0, 0, b""))
    return int(_PIN.unpack(answer)[6])


def unpin_handle(fd: int, pin: int) -> None:
    """PINFS_IOC_UNPIN."""
    fcntl.ioctl(fd, IOC_UNPIN, struct.pack("<Q", pin))


def query_handle(fd: int, pin: int = 0) -> tuple[int, ...]:
    """PINFS_IOC_QUERY: id, start, length, mode, state, remaining_ms, break_from, break_to, next_id."""
    return _QUERY.unpack(fcntl.ioctl(fd, IOC_QUERY, _QUERY.pack(pin, 0, 0, 0, 0, 0, 0, 0, 0)))


def pin(path: str, owner: str, mode: str) -> int:
    """Pins the middle page. Returns the descriptor that holds a handle's pin, -1 for a process's."""
    if owner == "process":
        os.setxattr(path, "user.pinfs.pin.p", f"{PAGE}:{PAGE},mode={mode},signal=none".encode())
        return -1
    fd = os.open(path, os.O_RDWR)
    pin_handle(fd, mode=mode)
    return fd


def pin_all(places: Sequence[Place]) -> None:
    """Pins the middle page of many files."""
    for place in places:
        pin(*place)


# ---- holders

_nest: list[int] = []


def hatch(fate: str, places: Sequence[Place]) -> None:
    """Forks a holder that pins all `places`: `silent` and `stopped` ones stay, a `dead` one is gone on return."""
    child = _forked(places)
    if fate == "dead":
        acts.end_child(child)
    else:
        _nest.append(child)
    if fate == "stopped":
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)


def hatch_one_each(fate: str, places: Sequence[Place]) -> None:
    """The same with a holder for each place."""
    for place in places:
        hatch(fate, [place])


def _forked(places: Sequence[Place]) -> int:
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        acts.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for place in places:
            pin(*place)
        os.write(tell, b".")
        signal.pause()
    os.close(tell)
    assert os.read(ready, 1), "the holder could not pin"
    os.close(ready)
    return child


def cull() -> None:
    """Ends all that have been hatched."""
    for child in _nest:
        os.kill(child, signal.SIGKILL)
    while _nest:
        os.waitpid(_nest.pop(), 0)


def answer_breaks(mountpoint: str, places: Sequence[Place]) -> None:
    """Pins (path, owner, mode), and from now on lets go whatever is asked for: process pins by the event channel,
    handle pins by POLLPRI and ioctl."""
    channel = os.open(f"{mountpoint}/.pinfs/events", os.O_RDWR)
    poller = select.epoll()
    poller.register(channel, select.EPOLLIN)
    for path, owner, mode in places:
        fd = pin(path, owner, mode)
        if fd >= 0:
            poller.register(fd, select.EPOLLPRI)
    threading.Thread(target=_answer, args=(poller, channel), daemon=True).start()


def _answer(poller: select.epoll, channel: int) -> None:
    while True:
        for fd, events in poller.poll():
            if fd == channel:
                _answer_channel(channel)
            elif events & select.EPOLLPRI:
                poller.unregister(fd)
                unpin_handle(fd, query_handle(fd)[0])


def _answer_channel(channel: int) -> None:
    for line in os.read(channel, 1 << 16).splitlines():
        event = json.loads(line)
        # A handle's pin was perhaps released by ioctl meanwhile.
        if event["event"] == "break" and event["name"] is not None:
            os.write(channel, f"release {event['pin']}\n".encode())


# ---- operations


def perform(places: Sequence[tuple[str, str]], workers: int) -> list[int | None]:
    """Does each (operation, directory), many at a time. Returns their errnos, None for success."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_perform, places))


def operate(name: str, directory: str) -> None:
    """Does one operation on the file in `directory`."""
    OPERATIONS[name](directory)


def _perform(place: tuple[str, str]) -> int | None:
    try:
        operate(*place)
    except OSError as failure:
        return failure.errno
    return None


def _with_fd(flags: int, act: Callable[[int], object]) -> Callable[[str], None]:
    def operation(directory: str) -> None:
        fd = os.open(f"{directory}/f", flags)
        try:
            act(fd)
        finally:
            os.close(fd)

    return operation


def _nothing(fd: int) -> None:
    """The open alone is the operation."""


def _fallocate(mode: int, offset: int, length: int) -> Callable[[str], None]:
    return _with_fd(os.O_RDWR, lambda fd: acts.fallocate(fd, mode, offset, length))


def _mmap_store(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapped:
        mapped[INSIDE : INSIDE + HOLE] = NEW


def _copy_range(directory: str) -> None:
    source = os.open(f"{directory}/new", os.O_RDONLY)
    try:
        _with_fd(os.O_RDWR, lambda fd: os.copy_file_range(source, fd, HOLE, 0, INSIDE))(directory)
    finally:
        os.close(source)


def _exchange(directory: str) -> None:
    call = acts.libc.renameat2
    if call(AT_FDCWD, f"{directory}/f".encode(), AT_FDCWD, f"{directory}/new".encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


OPERATIONS: dict[str, Callable[[str], object]] = {
    "truncate": lambda d: os.truncate(f"{d}/f", INSIDE),
    "ftruncate": _with_fd(os.O_RDWR, lambda fd: os.ftruncate(fd, INSIDE)),
    "open_trunc": _with_fd(os.O_WRONLY | os.O_TRUNC, _nothing),
    "creat": _with_fd(os.O_WRONLY | os.O_TRUNC | os.O_CREAT, _nothing),
    "punch_hole": _fallocate(PUNCH_HOLE | KEEP_SIZE, INSIDE, HOLE),
    "zero_range": _fallocate(ZERO_RANGE, INSIDE, HOLE),
    "ftruncate_nonblock": _with_fd(os.O_RDWR | os.O_NONBLOCK, lambda fd: os.ftruncate(fd, INSIDE)),
    "open_trunc_nonblock": _with_fd(os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK, _nothing),
    "unlink_last": lambda d: os.unlink(f"{d}/f"),
    "rename_over": lambda d: os.rename(f"{d}/new", f"{d}/f"),
    "unlink_one_of_two": lambda d: os.unlink(f"{d}/f"),
    "rename_over_one_of_two": lambda d: os.rename(f"{d}/new", f"{d}/f"),
    "rename_self": lambda d: os.rename(f"{d}/f", f"{d}/g"),
    "exchange": _exchange,
    "truncate_behind": lambda d: os.truncate(f"{d}/f", 2 * PAGE),
    "punch_before": _fallocate(PUNCH_HOLE | KEEP_SIZE, 0, PAGE),
    "punch_behind_eof": _fallocate(PUNCH_HOLE | KEEP_SIZE, SIZE, PAGE),
    "same_size": lambda d: os.truncate(f"{d}/f", SIZE),
    "grow": lambda d: os.truncate(f"{d}/f", SIZE + 1),
    "append": _with_fd(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, NEW)),
    "write": _with_fd(os.O_WRONLY, lambda fd: os.pwrite(fd, NEW, INSIDE)),
    "mmap_store": _with_fd(os.O_RDWR, _mmap_store),
    "copy_file_range": _copy_range,
    "prealloc": _fallocate(0, 0, SIZE + PAGE),
    "keep_size": _fallocate(KEEP_SIZE, SIZE, PAGE),
    "chmod": lambda d: os.chmod(f"{d}/f", 0o640),
    "chown": lambda d: os.chown(f"{d}/f", 1, 1),
    "utimes": lambda d: os.utime(f"{d}/f", (7, 7)),
    "link": lambda d: os.link(f"{d}/f", f"{d}/g"),
    "xattr": lambda d: os.setxattr(f"{d}/f", "trusted.other", b"1"),
    "zero_range_tmpfs": _fallocate(ZERO_RANGE, INSIDE, HOLE),
    "collapse_range": _fallocate(COLLAPSE_RANGE, PAGE, PAGE),
    "insert_range": _fallocate(INSERT_RANGE, PAGE, PAGE),
}


# ---- what became of it, looked at behind the mount


def _bytes(directory: str, name: str = "f") -> bytes:
    with open(f"{directory}/{name}", "rb") as file:
        return file.read()


def _size(size: int) -> Callable[[str], bool]:
    return lambda d: _bytes(d) == ORIGINAL[:size].ljust(size, b"\0")


def _changed(data: bytes, at: int) -> Callable[[str], bool]:
    return lambda d: _bytes(d) == (ORIGINAL[:at] + data + ORIGINAL[at + len(data) :])


def _stat(field: str, value: object) -> Callable[[str], bool]:
    return lambda d: getattr(os.stat(f"{d}/f"), field) == value and _bytes(d) == ORIGINAL


def _lacks_name(directory: str) -> bool:
    return not os.path.lexists(f"{directory}/f")


def _is_replaced(directory: str) -> bool:
    return _bytes(directory) == NEW * 2


_punched = _changed(bytes(HOLE), INSIDE)
_written = _changed(NEW, INSIDE)

IS_DONE: dict[str, Callable[[str], object]] = {
    "truncate": _size(INSIDE),
    "ftruncate": _size(INSIDE),
    "open_trunc": _size(0),
    "creat": _size(0),
    "punch_hole": _punched,
    "zero_range": _punched,
    "ftruncate_nonblock": _size(INSIDE),
    "open_trunc_nonblock": _size(0),
    "unlink_last": _lacks_name,
    "rename_over": _is_replaced,
    "unlink_one_of_two": lambda d: _lacks_name(d) and _bytes(d, "g") == ORIGINAL,
    "rename_over_one_of_two": lambda d: _is_replaced(d) and _bytes(d, "g") == ORIGINAL,
    "rename_self": lambda d: _lacks_name(d) and _bytes(d, "g") == ORIGINAL,
    "exchange": lambda d: _is_replaced(d) and _bytes(d, "new") == ORIGINAL,
    "truncate_behind": _size(2 * PAGE),
    "punch_before": _changed(bytes(PAGE), 0),
    "punch_behind_eof": _size(SIZE),
    "same_size": _size(SIZE),
    "grow": _size(SIZE + 1),
    "append": lambda d: _bytes(d) == ORIGINAL + NEW,
    "write": _written,
    "mmap_store": _written,
    "copy_file_range": _written,
    "prealloc": lambda d: _bytes(d) == ORIGINAL + bytes(PAGE),
    "keep_size": lambda d: _bytes(d) == ORIGINAL and os.stat(f"{d}/f").st_blocks * 512 == SIZE + PAGE,
    "chmod": _stat("st_mode", 0o100640),
    "chown": _stat("st_uid", 1),
    "utimes": _stat("st_mtime", 7.0),
    "link": lambda d: os.path.samefile(f"{d}/f", f"{d}/g"),
    "xattr": lambda d: os.getxattr(f"{d}/f", "trusted.other") == b"1",
}


def is_untouched(directory: str) -> bool:
    """Whether nothing has happened to the file."""
    return _bytes(directory) == ORIGINAL


def lay_out(operation: str, directory: str) -> int:
    """Makes the files of one case, in the source. Returns the inode number of the one that is pinned."""
    os.makedirs(directory)
    with open(f"{directory}/f", "wb") as file:
        file.write(ORIGINAL)
    if operation.endswith("one_of_two"):
        os.link(f"{directory}/f", f"{directory}/g")
    if operation.startswith(("rename_over", "exchange", "copy")):
        with open(f"{directory}/new", "wb") as file:
            file.write(NEW * 2)
    return os.stat(f"{directory}/f").st_ino


# ---- what processes do to each other


def send_fd(path: str, fd: int) -> None:
    """Passes a descriptor to who listens at the socket `path` (SCM_RIGHTS), and closes it here."""
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(path)
        socket.send_fds(out, [b"."], [fd])
    os.close(fd)


def listen_for_fd(path: str) -> int:
    """Makes the socket; returns its descriptor for `receive_fd`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()
    return listener.detach()


def receive_fd(listener: int) -> int:
    """The descriptor that somebody sends."""
    with socket.socket(fileno=listener) as listening, listening.accept()[0] as incoming:
        return socket.recv_fds(incoming, 1, 1)[1][0]


def in_child(name: str, directory: str) -> int | None:
    """Does an operation in a forked child. Returns its errno."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"%d" % (_perform((name, directory)) or 0))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        number = int(answer.read())
    os.waitpid(child, 0)
    return number or None


def cut_in_child(fd: int) -> int | None:
    """ftruncate(2) in a forked child, through the open file that it shares. Returns its errno."""
    child = os.fork()
    if not child:
        try:
            os.ftruncate(fd, INSIDE)
        except OSError as failure:
            os._exit(failure.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or None


def grandchild_that_pins(path: str) -> int:
    """A process that pins and outlives its parent. Returns its pid."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        if not os.fork():
            pin(path, "process", "deny")
            os.write(writing, b"%d" % os.getpid())
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    return int(os.read(reading, 20))


def leave_to_threads(path: str) -> int:
    """Forks a process whose first thread pins and ends, while another one lives on. Returns its pid."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        pin(path, "process", "lease")
        threading.Thread(target=_outlive, args=(writing,)).start()
        acts.libc.syscall(SYS_EXIT, 0)  # of this thread alone
    os.close(writing)
    assert os.read(reading, 1)
    return child


def _outlive(writing: int) -> None:
    while Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(") ", 1)[1][0] != "Z":
        time.sleep(0.001)
    os.write(writing, b".")
    time.sleep(1000)


def wait_urgent(fd: int) -> None:
    """Returns when a pin of this handle is being broken."""
    assert acts.poll(fd, select.POLLPRI) & select.POLLPRI
