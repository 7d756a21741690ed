"""Questions to a mount that end although its daemon does not answer.

A system call on a mount waits for the daemon, and once the daemon has taken the request not even SIGKILL ends the wait
(request_wait_answer, fs/fuse/dev.c). A process with such a thread cannot end either. So a child makes the call, and
the parent goes on without that child. The child has none of the parent's files open: it keeps no pipe from its end and
no lock from being free.
"""

import errno
import os
import pickle
import select
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

from pinfs.linux.proc import read_state
from pinfs.linux.syscalls import die_with_parent
from pinfs.observe.daemons import STATES, daemon_pid
from pinfs.observe.mounts import Mount

LOOK_S: Final = 1.0
"""How often the parent looks at the daemon while it waits for an answer, in seconds."""
ANSWER_S: Final = 10.0
"""A daemon that has not used the processor for so long does not answer any more, in seconds."""
LONGEST_S: Final = 120.0
"""How long any question may take, in seconds: a daemon in an endless loop uses the processor, too."""

_HALTED: Final = frozenset("TtZX")
_REAP_MS: Final = 1000
_SIZE: Final = struct.Struct("=Q")

T = TypeVar("T")


class NoAnswerError(TimeoutError):
    """The daemon does not answer (ETIMEDOUT). `why` says what is known of it, `fix` what to do."""

    def __init__(self, mount: Mount, pid: int | None, state: str | None) -> None:
        self.why = f"the daemon does not answer ({_process(pid, state)})"
        force = f"pinfs umount --force {mount.point}"
        self.fix = f"kill -CONT {pid}, or {force}" if state == "T" else force
        super().__init__(errno.ETIMEDOUT, f"{self.why}; to fix: {self.fix}", mount.point)


def _process(pid: int | None, state: str | None) -> str:
    if pid is None:
        return "its process is not visible here"
    return f"pid {pid}, state {state}: {STATES.get(state, '?')}" if state else f"pid {pid} has ended"


def ask(mount: Mount, call: Callable[[], T]) -> T:
    """The result of `call`, which uses files of `mount`; what it raises is raised here.

    The call runs in a child: it changes nothing in this process, and its result must be a value that pickles. Raises
    NoAnswerError.
    """
    with Question(mount, lambda: [call()]) as question:
        answer: T = question.next()
        return answer


class BoundedMount(Mount):
    """A mount whose files are read and written through `ask`."""

    __slots__ = ()

    def read(self, name: str) -> str:
        return ask(self, lambda: super(BoundedMount, self).read(name))

    def command(self, line: str) -> None:
        ask(self, lambda: super(BoundedMount, self).command(line))


class Question:
    """A child that sends the items of `make()` one after the other. `keep`: descriptors that it needs for that."""

    def __init__(self, mount: Mount, make: Callable[[], Iterable[Any]], keep: Sequence[int] = ()) -> None:
        self._mount = mount
        self._pipe, writing = os.pipe()
        parent = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            _answer(parent, writing, make, keep)
        os.close(writing)

    def __enter__(self) -> "Question":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the child. It ends when its call does; where this process ends before, init(1) reaps the child."""
        os.close(self._pipe)
        os.kill(self._child, signal.SIGKILL)
        pidfd = os.pidfd_open(self._child)
        _readable(pidfd, _REAP_MS)
        os.close(pidfd)
        os.waitpid(self._child, os.WNOHANG)

    def fileno(self) -> int:
        """Readable when there is an item."""
        return self._pipe

    def next(self) -> Any:
        """The next item, as soon as it comes. Raises NoAnswerError, what `make()` raises, EIO where there is none."""
        silence = _Silence(self._mount)
        while not _readable(self._pipe, int(LOOK_S * 1000)):
            silence.check()
        try:
            return self._received()
        except EOFError:
            raise OSError(errno.EIO, "the process that asks the mount was killed", self._mount.point) from None

    def rest(self) -> Iterator[Any]:
        """The items that follow, which may take as long as they like."""
        while True:
            try:
                yield self._received()
            except EOFError:
                return

    def _received(self) -> Any:
        (size,) = _SIZE.unpack(self._bytes(_SIZE.size))
        failed, item = pickle.loads(self._bytes(size))
        if failed:
            raise item
        return item

    def _bytes(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = os.read(self._pipe, min(size - len(data), 1 << 20))
            if not more:
                raise EOFError
            data += more
        return bytes(data)


class _Silence:
    """How long the daemon has done nothing."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._start = self._active = time.monotonic()
        self._pid: int | None = None
        self._ticks = -1

    def check(self) -> None:
        """Raises NoAnswerError when the daemon is stopped, has done nothing for ANSWER_S, or LONGEST_S are over."""
        if self._pid is None:
            self._pid = daemon_pid(self._mount)
        state, ticks = read_state(self._pid) if self._pid else (None, 0)
        if state is None or state == "Z":
            self._pid = daemon_pid(self._mount)  # another one may have taken over
        now = time.monotonic()
        if ticks != self._ticks:
            self._ticks, self._active = ticks, now
        elif state is not None and state in _HALTED:  # at two looks: it is not only about to go on
            raise NoAnswerError(self._mount, self._pid, state)
        if now - self._active > ANSWER_S or now - self._start > LONGEST_S:
            raise NoAnswerError(self._mount, self._pid, state)


def _readable(fd: int, limit_ms: int) -> bool:
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    return bool(waiter.poll(limit_ms))


def _answer(parent: int, writing: int, make: Callable[[], Iterable[Any]], keep: Sequence[int]) -> NoReturn:
    """The child: sends what `make()` yields, or what it raises, and ends."""
    try:
        die_with_parent(parent)
        _let_go_of_all_but(writing, *keep)
        try:
            for item in make():
                _send(writing, (False, item))
        except Exception as error:
            _send(writing, (True, error))
    finally:
        os._exit(0)


def _let_go_of_all_but(*kept: int) -> None:
    """Ctrl-C ends this process like any other; it says nothing, and holds none of the caller's pipes and locks."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _send(fd: int, item: tuple[bool, Any]) -> None:
    data = pickle.dumps(item)
    left = memoryview(_SIZE.pack(len(data)) + data)
    while left:
        left = left[os.write(fd, left) :]


def reached(path: str, points: Iterable[str]) -> tuple[str, list[str]] | None:
    """The first of the mount points `points` that `path` leads to, and the parts of the path that are left below it.

    Follows symbolic links (path_resolution(7)) up to the mount point and asks the mount nothing. None: the path leads
    to none of them.
    """
    stops, at, links = set(points), Path("/"), 0
    left = [part for part in reversed(os.path.join(os.getcwd(), path).split("/")) if part not in ("", ".")]
    while left:
        part = left.pop()
        at = at.parent if part == ".." else at / part
        if str(at) in stops:
            return str(at), left[::-1]
        target = _target(at)
        if target is not None and links < 40:  # MAXSYMLINKS
            links += 1
            at = Path("/") if target.startswith("/") else at.parent
            left += [part for part in reversed(target.split("/")) if part not in ("", ".")]
    return None


def _target(at: Path) -> str | None:
    try:
        return os.readlink(at)
    except OSError:  # not a symbolic link, or not there
        return None
