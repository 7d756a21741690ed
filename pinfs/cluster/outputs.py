"""What a member hands to its daemon, and what the daemon has to do with it.

Pins and removals are named by numbers that the daemon chooses. Times are the daemon's own clock, in seconds
(CLOCK_BOOTTIME, which goes on in suspend, as the clocks of the other hosts do).
"""

from dataclasses import dataclass
from typing import TypeAlias

from pinfs.cluster.keys import PinKey, RemovalKey
from pinfs.cluster.messages import Request


@dataclass(frozen=True, slots=True)
class Call:
    """Send it to etcd, and hand the answer to `Member.answered` with this number, once: `Unknown` after a second or
    two. Never repeat it: the member does."""

    number: int
    request: Request


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch the whole prefix from this revision on, in place of the stream before, and hand what comes to
    `Member.watched` with the number of the stream. A watch that cannot be resumed: `Member.watch_lost`."""

    stream: int
    from_revision: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Pins and removals may be asked for."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Every host honours the pin: tell the holder, after the journal has noted the key."""

    pin: int
    key: PinKey


@dataclass(frozen=True, slots=True)
class PinRefused:
    """There is no pin. EAGAIN: a removal of these bytes is under way (`removal`, at `host`), a host has not
    promised in time (`host`), the watch is late (`watch`), or too much waits (`crowd`); EDQUOT: a limit (`pins`,
    `files`); EIO: this host is cut off (`cluster`, `etcd`)."""

    pin: int
    errno: int
    why: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Unpinned:
    """Nothing of a pin that was released is left in etcd: no removal that begins from now on meets it."""

    pin: int


@dataclass(frozen=True, slots=True)
class MayCut:
    """Cut, if by the daemon's clock it is not yet `until` when the system call begins, else answer EIO; by then the
    member's `fence` may be later than `until`, and holds. In both cases call `Member.removal_finished` when the system
    call is over."""

    removal: int
    until: float


@dataclass(frozen=True, slots=True)
class Waits:
    """Leases of these hosts are in the way. A breaker that does not wait gets EAGAIN now; its removal stays, and ends
    by `Member.removal_withdrawn` when the local book lets go of the range."""

    removal: int
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemovalRefused:
    """It is over. EBUSY: a pin at `host` stands (`deny`, `unanswered`, or the word of the holder's daemon), or too
    much waits (`crowd`); EIO: this host is cut off (`cluster`, `etcd`)."""

    removal: int
    errno: int
    why: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """A removal of another host needs these leases of this one: enter it into the book as a removal without a process.
    Its breaks, deadlines and `on_timeout` are the book's. Where the book lets go it releases the pins
    (`Member.pin_released`), where it refuses, call `Member.removal_denied`. May be told again for further pins."""

    removal: RemovalKey
    start: int
    end: int
    operation: str
    pins: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToldOver:
    """A removal that was told is over, or has been given up: the book withdraws the breaks that go on for it."""

    removal: RemovalKey


@dataclass(frozen=True, slots=True)
class Fenced:
    """This member is no more: other hosts may take its pins for gone soon. Tell the holders of these pins `revoked`,
    why `cluster`, at once, and answer no removal before that. Its cuts that have begun run to their end
    (`Member.removal_finished`). Begin a new member, with another incarnation; go on serving this one until it has
    `Left`. A pin whose release comes in at that moment is named as well."""

    pins: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Left:
    """Nothing of this member is left in etcd, or others will bury it: forget it, and end its watch."""


Output: TypeAlias = (
    Call
    | Watch
    | Joined
    | Pinned
    | PinRefused
    | Unpinned
    | MayCut
    | Waits
    | RemovalRefused
    | Told
    | ToldOver
    | Fenced
    | Left
)
