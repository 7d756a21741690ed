"""The list of sealed files of one source: what the next mount, `pinfs doctor` and `pinfs unseal` find after a daemon
that could not lift its seals.

A file of lines, each with a checksum, that is only appended to: `+` before a seal is set, `-` soon after it is lifted.
So a file that carries a seal is in the list whenever the daemon is killed; a line that was torn, or that rotted, is
skipped. It is not synced to the disk: after a crash of the machine `pinfs unseal --scan` finds what the list has lost.
"""

import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pinfs.linux.filehandles import open_handle
from pinfs.linux.inodeflags import APPEND, get_flags, set_flags
from pinfs.runtime.parking import defer

DEFAULT_DIRECTORY: Final = "/var/lib/pinfs"
MANY_LINES: Final = 1024
"""Lines above which a list of few files is written anew."""

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file of a list: `handle` (empty where there is none that leads to it from the source) and the path at the
    time of the seal, relative to the source (empty: it had none)."""

    device: int
    ino: int
    handle: bytes
    path: bytes

    @property
    def line(self) -> bytes:
        return b"+ %x %x %s %s" % (self.device, self.ino, _hex(self.handle), _hex(self.path))


def state_directory() -> Path:
    """$PINFS_STATE_DIRECTORY, else systemd's $STATE_DIRECTORY, else /var/lib/pinfs."""
    chosen = os.environ.get("PINFS_STATE_DIRECTORY") or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(chosen or DEFAULT_DIRECTORY)


def list_path(source_fd: int, directory: Path | None = None) -> Path:
    """Where the list of a source lies: named by device and inode number, as one directory can have many paths."""
    st = os.fstat(source_fd)
    name = hashlib.sha256(b"%d:%d" % (st.st_dev, st.st_ino)).hexdigest()[:16]
    return (state_directory() if directory is None else directory) / f"sealed-{name}"


class SealList:
    """The list of a daemon that runs. Raises OSError where it cannot be written."""

    def __init__(self, path: Path, source: str) -> None:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path = path
        self._head = _sealed_line(b"pinfs-seals 1 %s" % _hex(os.fsencode(source)))
        self._live: dict[tuple[int, int], SealedFile] = {}
        self._lines = 0
        self._unwritten: list[bytes] = []
        """Lines of seals that are lifted: no caller waits for them."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._fd, self._head)

    @classmethod
    def resume(cls, path: Path, source: str, files: Iterable[SealedFile]) -> "SealList":
        """The list of a daemon that takes over: the old one stands until the new one does."""
        new = path.with_suffix(".next")
        resumed = cls(new, source)
        for file in files:
            resumed.add(file)
        new.replace(path)
        resumed.path = path
        return resumed

    def add(self, file: SealedFile) -> None:
        """Before the seal is set."""
        self._write([file.line])
        self._live[file.device, file.ino] = file

    def remove(self, device: int, ino: int) -> None:
        """After it is lifted."""
        if self._live.pop((device, ino), None) is None:
            return
        self._unwritten.append(b"- %x %x" % (device, ino))
        if len(self._unwritten) == 1:
            defer(self._write_removed)

    def _write_removed(self) -> None:
        if not self._unwritten or self._fd < 0:
            return
        with suppress(OSError):  # a file that is listed without need does no harm
            self._write([])
            if self._lines > MANY_LINES and self._lines > 4 * len(self._live):
                self._rewrite()

    def _write(self, lines: list[bytes]) -> None:
        """In the order of what has happened."""
        lines = self._unwritten + lines
        self._unwritten = []
        os.write(self._fd, b"".join(map(_sealed_line, lines)))
        self._lines += len(lines)

    def _rewrite(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(self._head + b"".join(_sealed_line(file.line) for file in self._live.values()))
        fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        new.replace(self.path)
        os.close(self._fd)
        self._fd, self._lines = fd, len(self._live)

    def close(self) -> None:
        """The list goes where nothing is sealed any more."""
        if self._fd >= 0:
            self._write_removed()
            os.close(self._fd)
            self._fd = -1
            if not self._live:
                self.path.unlink(missing_ok=True)


def read_list(path: Path) -> Iterator[SealedFile]:
    """What a list holds that no daemon keeps any more; nothing where there is none."""
    live: dict[tuple[int, int], SealedFile] = {}
    for words in _checked_lines(path):
        with suppress(ValueError, IndexError):
            key = int(words[1], 16), int(words[2], 16)
            if words[0] == b"+":
                live[key] = SealedFile(*key, _unhex(words[3]), _unhex(words[4]))
            elif words[0] == b"-":
                live.pop(key, None)
    yield from live.values()


def source_of(path: Path) -> str | None:
    """The source that a list is of; None where its first line is lost."""
    for words in _checked_lines(path):
        if words[0] == b"pinfs-seals":
            with suppress(ValueError, IndexError):
                return os.fsdecode(_unhex(words[2]))
    return None


def all_lists() -> list[Path]:
    """The lists in the state directory."""
    try:
        return sorted(path for path in state_directory().glob("sealed-*") if path.suffix not in (".new", ".next"))
    except OSError:
        return []


def lists_of(source_fd: int, source: str) -> list[Path]:
    """The lists of a source: that of its device and inode number, and others of the same path, as the number of a
    device may change when the machine starts."""
    own, real = list_path(source_fd), os.path.realpath(source)
    return [path for path in all_lists() if path == own or source_of(path) == real]


def lift(source_fd: int, file: SealedFile) -> bool:
    """Take the append-only flag from a file of a list. False: it is gone, or has no flag. OSError: it stays."""
    fd = _open(source_fd, file)
    if fd is None:
        return False
    try:
        flags = get_flags(fd)
        if not flags & APPEND:
            return False
        set_flags(fd, flags & ~APPEND)
        return True
    finally:
        os.close(fd)


def is_sealed(source_fd: int, file: SealedFile) -> bool:
    """Whether a file of a list still carries the flag."""
    fd = _open(source_fd, file)
    if fd is None:
        return False
    try:
        return bool(get_flags(fd) & APPEND)
    finally:
        os.close(fd)


def _open(source_fd: int, file: SealedFile) -> int | None:
    """By its handle, else by its path, without a symlink on the way; None: neither leads to it any more."""
    if file.handle:
        with suppress(OSError):
            return open_handle(source_fd, file.handle, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.dup(source_fd)
    try:
        for name in file.path.split(b"/") if file.path else ():
            below = os.open(name, _READ, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        return None
    st = os.fstat(fd)
    if st.st_ino == file.ino and stat.S_ISREG(st.st_mode):
        return fd
    os.close(fd)
    return None


def _checked_lines(path: Path) -> Iterator[list[bytes]]:
    try:
        text = path.read_bytes()
    except OSError:
        return
    for line in text.split(b"\n"):
        body, _, sum_ = line.rpartition(b" ")
        if body and sum_ == b"%08x" % zlib.crc32(body):
            yield body.split(b" ")


def _sealed_line(body: bytes) -> bytes:
    """Between two line ends: a torn line does not take the next one with it."""
    return b"\n%s %08x\n" % (body, zlib.crc32(body))


def _hex(value: bytes) -> bytes:
    return value.hex().encode() or b"-"


def _unhex(text: bytes) -> bytes:
    return b"" if text == b"-" else bytes.fromhex(text.decode("ascii"))
