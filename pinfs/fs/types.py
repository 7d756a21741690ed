"""What operations take and give. The same for all three callers: dispatcher, pyfuse3, tests."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, cast

NOW: Final = 1 << 64  # no time that a file can have; for SetAttr's times: the moment of the call, taken by the backing


class Caller(NamedTuple):
    """Who asks. `pid` is the *thread* id in the daemon's pid namespace, 0 where it is not visible there."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


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


class Entry(NamedTuple):
    """The answer to a lookup: each one given to the kernel adds one to the lookup count of `nodeid`."""

    nodeid: int
    st: os.stat_result


class Opened(NamedTuple):
    """The answer to an open: file handle, FOPEN_* flags, id of the registered backing file (0: no passthrough)."""

    fh: int
    flags: int
    backing_id: int


# The same three without their Python constructors, which take twice as long: one or two are made for each request.
make_caller: Final = cast(Callable[[tuple[int, int, int, int]], Caller], partial(tuple.__new__, Caller))
make_entry: Final = cast(Callable[[tuple[int, os.stat_result]], Entry], partial(tuple.__new__, Entry))
make_opened: Final = cast(Callable[[tuple[int, int, int]], Opened], partial(tuple.__new__, Opened))


@dataclass(slots=True)
class SetAttr:
    """Which attributes to change; None leaves one alone. Times in nanoseconds since the epoch, or NOW."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_suidgid: bool = False

    @property
    def is_nothing(self) -> bool:
        """chown(-1, -1) arrives like this, and moves the ctime."""
        return self.size is None and self.mode is None and self.mtime_ns is None and self == SetAttr()
