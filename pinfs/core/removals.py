"""Removals: what a breaker asks for, and what the book keeps of it until it is answered (SPEC 2 and 3)."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple

from pinfs.core.owners import HandleId, ProcessId
from pinfs.core.pins import Pin
from pinfs.core.policy import Policy
from pinfs.core.waits import Waiter

UNLINKS: Final = frozenset({"unlink", "rename"})
"""The removals that take the last name as well: policy `unlink` decides about them."""


class RemovalRequest(NamedTuple):
    """A breaker's request to take [start, end) of an inode, bytes.

    `process` and `handle` tell the breaker's own pins; `pid`, `uid` and `path` are for people. `nonblock`: answer
    EAGAIN where another request would wait. `host`: where the breaker is, if that is not this host; `pid` and `uid` say
    nothing then.
    """

    inode: int
    start: int
    end: int
    op: str
    process: ProcessId | None = None
    handle: HandleId | None = None
    pid: int = 0
    uid: int = 0
    path: str | None = None
    nonblock: bool = False
    host: str | None = None

    def owns(self, pin: Pin) -> bool:
        """Is this a pin of the breaker itself (SPEC 3.3)?"""
        return (self.process is not None and self.process == pin.process) or (
            self.handle is not None and self.handle == pin.owner
        )


class Turn(Enum):
    """Where a removal stands. READY, REFUSED and GONE are final answers, and GONE is the breaker's own."""

    WAITING = auto()
    READY = auto()
    REFUSED = auto()
    GONE = auto()


_WAITING: Final = Turn.WAITING  # looking into an Enum takes longer


def _ignore() -> None:
    """No callback is set."""


class Reservation(Waiter):
    """A range of one inode in which no new pin may appear, because a removal waits for it or has just given up on it
    (SPEC 3.1), or because its blocks are being replaced (SPEC 2, copy_file_range).

    `order`: 1, 2, 3... in the order of arrival, 0 until it is in force.
    """

    __slots__ = ("end", "inode", "order", "start")

    def __init__(self, inode: int, start: int, end: int) -> None:
        super().__init__()
        self.inode = inode
        self.start = start
        self.end = end
        self.order = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.order} of inode {self.inode}: [{self.start}, {self.end})>"

    @property
    def breaks_pins(self) -> bool:
        """Does it wait for pins to go? Pins in its range break for it."""
        return False


class Removal(Reservation):
    """A request while the book deals with it.

    `wake` is called when a waiting removal is answered. `exempt`: all pins in its way are its own, and policy lets it
    cut them. `errno` and `why` say how it is refused, and `pinned_at` by a pin of which other host.
    """

    __slots__ = ("errno", "exempt", "pinned_at", "policy", "request", "turn", "wake", "why")

    def __init__(self, inode: int, start: int, end: int, request: RemovalRequest, policy: Policy) -> None:
        super().__init__(inode, start, end)
        self.request = request
        self.policy = policy
        self.wake: Callable[[], None] = _ignore
        self.turn = _WAITING
        self.errno = 0
        self.why = ""
        self.pinned_at: str | None = None
        self.exempt = False

    @property
    def breaks_pins(self) -> bool:
        return self.turn is _WAITING and not self.exempt


class Orphan(Reservation):
    """What a breaker that gave up leaves behind while its breaks go on: its reservation, for it to try again.

    `process`: the breaker (None: not known, or several). `deadline`: the end of the cool-down, None while pins in it
    are breaking.
    """

    __slots__ = ("deadline", "process")

    def __init__(self, inode: int, start: int, end: int, process: ProcessId | None = None) -> None:
        super().__init__(inode, start, end)
        self.process = process
        self.deadline: float | None = None

    @property
    def breaks_pins(self) -> bool:
        return self.order > 0 and self.deadline is None


def share_bytes(one: Pin | Reservation, other: Pin | Reservation) -> bool:
    """Do two ranges of bytes overlap, in one inode?"""
    return one.inode == other.inode and one.start < other.end and other.start < one.end


def is_inside(inner: Reservation, outer: Reservation) -> bool:
    """Does `outer` span all of `inner`?"""
    return inner.inode == outer.inode and outer.start <= inner.start and inner.end <= outer.end
