"""A pin, what its holder asked for, and its break: values and records, without the rules (SPEC 1 and 5)."""

import errno
from enum import StrEnum
from typing import Final, TypeAlias

from pinfs.core.owners import Owner, ProcessId
from pinfs.core.policy import Policy
from pinfs.core.ranges import END
from pinfs.core.waits import Obstacle

OwnKey: TypeAlias = int | tuple[int, bytes]
"""A pin among those of its owner: (inode, name), where its owner has given it a name, else its id."""

SortKey: TypeAlias = tuple[int, int, int]
"""See `Pin.sort_key`."""

BEFORE_ALL: Final[SortKey] = (0, -1, 0)


class Mode(StrEnum):
    """How the holder answers a breaker (SPEC 1)."""

    DENY = "deny"
    LEASE = "lease"


class State(StrEnum):
    """What a pin is shown as (SPEC 5)."""

    HELD = "held"
    BREAKING = "breaking"


class PinSpec:
    """What a holder pins and how: a value, which never changes. Bytes; length 0: to the end of the file, wherever that
    moves. signal None: no signal. eventfd: the daemon's number of the one that a break is written to, None: of none.

    `end` is exclusive.
    """

    __slots__ = ("dirty", "end", "eventfd", "length", "mode", "note", "signal", "start")

    def __init__(
        self,
        start: int,
        length: int,
        mode: Mode = Mode.DENY,
        signal: int | None = None,
        dirty: bool = False,
        note: str = "",
        eventfd: int | None = None,
    ) -> None:
        self.start = start
        self.length = length
        self.mode = mode
        self.signal = signal
        self.dirty = dirty
        self.note = note
        self.eventfd = eventfd
        self.end = start + length if length else END

    def _value(self) -> tuple[object, ...]:
        return self.start, self.length, self.mode, self.signal, self.dirty, self.note, self.eventfd

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PinSpec) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __repr__(self) -> str:
        return f"PinSpec{self._value()}"

    def with_range(self, start: int, length: int) -> "PinSpec":
        """The same for other bytes."""
        return PinSpec(start, length, self.mode, self.signal, self.dirty, self.note, self.eventfd)

    def with_eventfd(self, eventfd: int) -> "PinSpec":
        """The same with an eventfd."""
        return PinSpec(self.start, self.length, self.mode, self.signal, self.dirty, self.note, eventfd)

    def check(self, size: int) -> None:
        """OSError: EINVAL (no file has such a range: off_t is 63 bits), ENXIO (not inside `size` bytes). SPEC 5."""
        start, length = self.start, self.length
        if start < 0 or length < 0 or start + length >= END:
            raise OSError(errno.EINVAL, "a range is not negative and ends below 2**63")
        if start + length > size:
            raise OSError(errno.ENXIO, f"the range ends behind the file's {size} bytes")


class PinRequest:
    """A holder's request to pin: all that the table keeps of it.

    `process`: the process that registers it (None: not visible), also where a handle owns the pin. `uid` is charged and
    may release it. `name`: the owner's name for it (None: always a new pin). `proxy_uid`: the uid that registers it for
    another process (`pid=`), else None.
    """

    __slots__ = ("inode", "name", "owner", "process", "proxy_uid", "spec", "uid")

    def __init__(
        self,
        inode: int,
        owner: Owner,
        process: ProcessId | None,
        uid: int,
        name: bytes | None,
        spec: PinSpec,
        proxy_uid: int | None = None,
    ) -> None:
        self.inode = inode
        self.owner = owner
        self.process = process
        self.uid = uid
        self.name = name
        self.spec = spec
        self.proxy_uid = proxy_uid


class Pin:
    """One pin: its id, the fields of its `PinRequest`, when it was registered, and `charged`: bytes counted against the
    limits, as at registration, and its key among the pins of its owner.
    """

    __slots__ = (
        *("breaking", "charged", "id", "inode", "name", "own_key", "owner", "process", "proxy_uid", "since"),
        *("spec", "uid"),
    )

    def __init__(self, pin_id: int, request: PinRequest, since: float, charged: int, own_key: OwnKey) -> None:
        self.id = pin_id
        self.inode = request.inode
        self.owner = request.owner
        self.process = request.process
        self.uid = request.uid
        self.name = request.name
        self.spec = request.spec
        self.proxy_uid = request.proxy_uid
        self.since = since
        self.charged = charged
        self.own_key = own_key
        self.breaking: Break | None = None

    def __repr__(self) -> str:
        return f"<Pin {self.id} of {self.owner} on inode {self.inode}: {self.spec}>"

    @property
    def sort_key(self) -> SortKey:
        """The order of the pins of a file: deny pins first, each kind by rising start."""
        return (0 if self.spec.mode is Mode.DENY else 1), self.spec.start, self.id

    @property
    def start(self) -> int:
        return self.spec.start

    @property
    def length(self) -> int:
        return self.spec.length

    @property
    def end(self) -> int:
        return self.spec.end

    @property
    def mode(self) -> Mode:
        return self.spec.mode

    @property
    def signal(self) -> int | None:
        return self.spec.signal

    @property
    def dirty(self) -> bool:
        return self.spec.dirty

    @property
    def note(self) -> str:
        return self.spec.note

    @property
    def state(self) -> State:
        return State.HELD if self.breaking is None else State.BREAKING

    @property
    def deadline(self) -> float | None:
        """When the break ends, in the seconds of `now`; None: the pin is not breaking."""
        return None if self.breaking is None else self.breaking.deadline


class Break(Obstacle):
    """The break of one pin: its holder is notified once, however many removals come later.

    `policy` is the one that was in force when the break began, because its deadline has been told to the holder.
    `op`, `start`, `end`: the first removal. `killed`: the holder has been sent SIGKILL, and the deadline is the one of
    its death. A deadline of None: the break is over. `seq`: the number of its event in the holder's stream, given by
    the stream (0: none). `host`: where the first removal comes from, if not from this host.
    """

    __slots__ = ("deadline", "end", "host", "killed", "op", "pin", "policy", "seq", "since", "start")

    def __init__(self, pin: Pin, policy: Policy, since: float, op: str, start: int, end: int) -> None:
        super().__init__()
        self.pin = pin
        self.policy = policy
        self.since = since
        self.deadline: float | None = None
        self.op = op
        self.start = start
        self.end = end
        self.killed = False
        self.seq = 0
        self.host: str | None = None

    def __repr__(self) -> str:
        return f"<Break of {self.pin} for {self.op}, until {self.deadline}>"
