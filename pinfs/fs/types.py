"""What operations take and return, the same for all three of their callers: the dispatcher, pyfuse3 and tests."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, cast


def os_error(number: int) -> OSError:
    """The error for an errno, with the text of strerror(3)."""
    return OSError(number, os.strerror(number))


class Caller(NamedTuple):
    """The sender of a request. `pid` is a *thread* id in the daemon's pid namespace, 0 where it is not visible.

    `unique`: the number of the request, without the bit that tells a resent one; 0: not known.
    """

    uid: int
    gid: int
    pid: int
    umask: int = 0
    unique: int = 0


class CallerLike(Protocol):
    """Caller, or pyfuse3's RequestContext."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class StatLike(Protocol):
    """What the inode table needs to know of a file: os.stat_result, or `pinfs.linux.calls.Stat`."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class Entry(NamedTuple):
    """The reply to a lookup: each one given to the kernel adds one to the lookup count of `nodeid`."""

    nodeid: int
    st: os.stat_result


class Timeouts(NamedTuple):
    """How long the kernel may cache names and attributes, in seconds.

    `is_shared`: other hosts change the source (docs/hosts.md). Then no listing and no page is kept from one open to the
    next either: whether the source has changed could be told by its times only, which are of another host's clock, and
    two changes within one tick of that clock look like one.
    """

    entry_s: float = 60.0
    attr_s: float = 60.0
    is_shared: bool = False


class Opened(NamedTuple):
    """The reply to an open: file handle, FOPEN_* flags, id of the registered backing file (0: no passthrough)."""

    fh: int
    flags: int
    backing_id: int


# Constructors of these three without a Python function, which takes twice as long: a request makes one or two of them.
make_caller: Final = cast(Callable[[tuple[int, int, int, int, int]], Caller], partial(tuple.__new__, Caller))
make_entry: Final = cast(Callable[[tuple[int, os.stat_result]], Entry], partial(tuple.__new__, Entry))
make_opened: Final = cast(Callable[[tuple[int, int, int]], Opened], partial(tuple.__new__, Opened))


@dataclass(slots=True)
class SetAttr:
    """Which attributes to change; None leaves one alone. Times in nanoseconds since the epoch, or NOW.

    `kill_suidgid`: the caller may not keep the set-id bits of the file.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_suidgid: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether it is a chown(-1, -1): that one arrives without any attribute, and moves the ctime."""
        return self.size is None and self.mode is None and self.mtime_ns is None and self == SetAttr()
