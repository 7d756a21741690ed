"""Pins: who promised whom that which bytes of a file stay where they are, and how much anybody may pin.

Pure: no clock (`now` comes in, seconds), no input or output. What happens when somebody wants pinned bytes is next door
in `breaks`; here a break is only something that a pin may carry, and a reservation only a range without new pins.
"""

import errno
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias, TypeVar

from pinfs.core.policy import Limits, Policy
from pinfs.core.ranges import END, RangeTree

Owner: TypeAlias = Hashable
"""Who a pin belongs to: a process, or an open file description. Only told apart here."""

EventKind: TypeAlias = Literal[
    "pinned", "break", "answered", "withdrawn", "released", "revoked", "kill", "refused", "proceeded", "limit"
]

OwnKey: TypeAlias = int | tuple[int, bytes]
"""A pin among those of its owner: (inode, name), where its owner has given it a name, else its id."""

Place: TypeAlias = tuple[int, int, int]
"""See `Pin.place`."""

BEFORE_ALL: Final[Place] = (0, -1, 0)

K = TypeVar("K")
L = TypeVar("L")


class Mode(StrEnum):
    """What the holder answers to somebody who wants the bytes (SPEC 1)."""

    DENY = "deny"
    LEASE = "lease"


class State(StrEnum):
    """What a pin is shown as (SPEC 5)."""

    HELD = "held"
    BREAKING = "breaking"


@dataclass(frozen=True, slots=True)
class PinSpec:
    """What a caller asks for. Bytes; length 0: to the end of the file, wherever that moves. signal None: no signal.

    `end` is exclusive.
    """

    start: int
    length: int
    mode: Mode = Mode.DENY
    signal: int | None = None
    dirty: bool = False
    note: str = ""
    end: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.start + self.length if self.length else END)


@dataclass(slots=True, eq=False)
class Reservation:
    """A range of one inode in which no new pin may appear, because a removal wants it or has just wanted it (SPEC 3.1),
    or because its blocks are being replaced (SPEC 2, copy_file_range).

    `order`: 1, 2, 3... in the order of arrival, 0 until it is in force. `watching`: what it waits for next; `watchers`:
    who waits for this one in the same way. A waiter watches one thing at a time and looks for another when that goes,
    so that ten thousand holders need not know a thousand breakers each.
    """

    inode: int
    start: int
    end: int
    order: int = field(default=0, init=False)
    watching: "Reservation | Break | None" = field(default=None, init=False, repr=False)
    watchers: "dict[Reservation, None]" = field(default_factory=dict, init=False, repr=False)


@dataclass(slots=True, eq=False)
class Break:
    """The break of one pin: it is asked once, whoever else wants its bytes later.

    `policy` is the one that was in force when the break began, because its deadline has been told to the holder.
    `op`, `start`, `end`: the first removal. `watchers`: the waiters that look for something else to wait for when this
    break is over. `killed`: the holder has been sent SIGKILL, and the deadline is the one of its death. A deadline of
    None: the break is over.
    """

    pin: "Pin"
    policy: Policy
    since: float
    deadline: float | None
    op: str
    start: int
    end: int
    watchers: dict[Reservation, None] = field(default_factory=dict, repr=False)
    killed: bool = False


@dataclass(slots=True, eq=False)
class Pin:
    """One pin. `process`: of whom registered it (None: not visible), also where a handle owns it.

    `uid`: who is charged, and may release it. `charged`: bytes counted against the limits, as at registration.
    `proxy_uid`: the uid that registered it for another process (`pid=`), else None.
    """

    id: int
    inode: int
    owner: Owner
    process: Hashable | None
    uid: int
    name: bytes | None
    spec: PinSpec
    since: float
    charged: int
    proxy_uid: int | None = None
    breaking: Break | None = None

    @property
    def own_key(self) -> OwnKey:
        return self.id if self.name is None else (self.inode, self.name)

    @property
    def place(self) -> Place:
        """Where it stands among the pins of its file: deny pins first, each kind by rising start."""
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
        """When the break ends, in the seconds of `now`; None: nobody wants these bytes."""
        return None if self.breaking is None else self.breaking.deadline


@dataclass(slots=True, eq=False)
class Event:
    """What happened to a pin or to a removal, at `now` seconds. Whoever hears it must not call back into the book.

    `breaking`: the break that began or ended with it. `by`: who let go. `why`: what refused, which limit, or
    how a pin came to be.
    `removal`: a `breaks.Removal`.
    """

    kind: EventKind
    now: float
    pin: Pin | None = None
    removal: Reservation | None = None
    breaking: Break | None = None
    by: str | None = None
    why: str | None = None


class FilePins:
    """What is known of one inode: its pins by mode, so that "any deny pin here?" does not depend on the leases.

    `breaking`: those that are breaking, once more.
    """

    __slots__ = ("breaking", "deny", "lease", "orphans", "reserved")

    def __init__(self) -> None:
        self.breaking: RangeTree[Pin] | None = None
        self.deny: RangeTree[Pin] | None = None
        self.lease: RangeTree[Pin] | None = None
        self.reserved: RangeTree[Reservation] | None = None
        self.orphans: tuple[Reservation, ...] = ()

    def trees(self) -> Iterator[RangeTree[Pin]]:
        """Deny pins first: what cannot be broken decides."""
        if self.deny:
            yield self.deny
        if self.lease:
            yield self.lease

    def add(self, pin: Pin) -> None:
        spec = pin.spec
        if spec.mode is Mode.DENY:
            tree = self.deny
            if tree is None:
                tree = self.deny = RangeTree()
        else:
            tree = self.lease
            if tree is None:
                tree = self.lease = RangeTree()
        tree.insert(spec.start, spec.end, pin.id, pin)

    def take(self, pin: Pin) -> None:
        spec = pin.spec
        tree = self.deny if spec.mode is Mode.DENY else self.lease
        if tree is None:
            raise KeyError(pin.id)
        tree.remove(spec.start, pin.id)

    def add_breaking(self, pin: Pin) -> None:
        tree = self.breaking
        if tree is None:
            tree = self.breaking = RangeTree()
        tree.insert(pin.spec.start, pin.spec.end, pin.id, pin)

    def take_breaking(self, pin: Pin) -> None:
        if self.breaking is None:
            raise KeyError(pin.id)
        self.breaking.remove(pin.spec.start, pin.id)

    def overlapping(self, start: int, end: int) -> Iterator[Pin]:
        for tree in self.trees():
            yield from tree.overlapping(start, end)

    def overlapping_after(self, start: int, end: int, place: Place) -> Iterator[Pin]:
        """The same, but only those behind a place: for who looks at some at a time."""
        kind, *after = place
        if self.deny and kind == 0:
            yield from self.deny.overlapping(start, end, (after[0], after[1]))
        if self.lease:
            yield from self.lease.overlapping(start, end, (after[0], after[1]) if kind == 1 else None)

    def first(self, start: int, end: int) -> Pin | None:
        """One pin that shares a byte with [start, end), a deny pin if there is one."""
        for tree in self.trees():
            pin = tree.first_overlap(start, end)
            if pin is not None:
                return pin
        return None

    def is_reserved(self, start: int, end: int) -> bool:
        return self.reserved is not None and self.reserved.any_overlap(start, end)

    def __bool__(self) -> bool:
        return bool(self.deny or self.lease or self.reserved)


@dataclass(slots=True)
class Usage:
    """What one uid has pinned: pins, and bytes as they were at registration."""

    pins: int = 0
    bytes: int = 0


_NONE: Final = Usage()


class PinTable:
    """All pins: by inode, by id, by owner; and the limits.

    An inode is in `files` if and only if it has pins or reservations: `inode in table.files` is the fast way to ask.
    `on_empty` is called with an inode that has just left `files`, `on_end` with each pin that has just ended.

    `heard`: somebody wants to hear of pins that come and go undisturbed. Where nobody does, which is nearly always,
    no events are made of that: it would be a third of what a pin costs.
    """

    def __init__(self, emit: Callable[[Event], None], limits: Limits) -> None:
        self.files: dict[int, FilePins] = {}
        self.by_id: dict[int, Pin] = {}
        self.by_owner: dict[Owner, dict[OwnKey, Pin]] = {}
        self.usage: dict[int, Usage] = {}
        self.limits = limits
        self.ended: Counter[str] = Counter()
        """How many pins have ended, by who let go: holder, death, close, root, policy, kill."""
        self.subscribed = True
        self.on_empty: Callable[[int], None] | None = None
        self.on_end: Callable[[Pin], None] | None = None
        self._emit = emit
        self._by_proxy: dict[tuple[int, bytes, int], dict[int, Pin]] = {}
        self._of_handles: dict[Hashable, dict[int, Pin]] = {}
        """The pins that belong to handles, by the process that registered them (None: not visible)."""
        self._last_id = 0

    def __len__(self) -> int:
        return len(self.by_id)

    def set_subscribed(self, subscribed: bool) -> None:
        """See `heard`."""
        self.subscribed = subscribed

    @property
    def pinned_bytes(self) -> int:
        """As they were at registration; what two users pin counts twice."""
        return sum(usage.bytes for usage in self.usage.values())

    @property
    def registered(self) -> int:
        """How many pins there have been; a replaced one is the same pin."""
        return self._last_id

    def of_file(self, inode: int) -> Iterator[Pin]:
        """The pins of one inode, deny pins first, each kind by rising start."""
        file = self.files.get(inode)
        return iter(()) if file is None else file.overlapping(0, END)

    def count_of_file(self, inode: int) -> int:
        """How many pins one inode has."""
        file = self.files.get(inode)
        return 0 if file is None else sum(map(len, file.trees()))

    def of_owner(self, owner: Owner) -> list[Pin]:
        """The pins of one owner, oldest first."""
        return list(self.by_owner.get(owner, {}).values())

    def find(self, inode: int, owner: Owner, name: bytes) -> Pin | None:
        """The pin that this owner calls `name` on this inode (SPEC 5: a name belongs to its process)."""
        owned = self.by_owner.get(owner)
        return None if owned is None else owned.get((inode, name))

    def of_breaker(self, process: Hashable | None, handle: Owner | None) -> Iterator[Pin]:
        """The pins that `process` has registered and those of `handle`, of whatever file; some may come twice."""
        if process is not None:
            yield from self.by_owner.get(process, {}).values()
            yield from self._of_handles.get(process, {}).values()
        if handle is not None:
            yield from self.by_owner.get(handle, {}).values()

    def find_proxy(self, inode: int, name: bytes, uid: int) -> Pin | None:
        """The pin called `name` that `uid` registered for another process, if there is exactly one on this inode."""
        pins = list(self._by_proxy.get((inode, name, uid), {}).values())
        return pins[0] if len(pins) == 1 else None

    def touches(self, inode: int, start: int, end: int) -> bool:
        """Is any byte of [start, end) pinned or reserved? False: a removal may go on at once."""
        file = self.files.get(inode)
        return file is not None and (file.first(start, end) is not None or file.is_reserved(start, end))

    def pin(
        self,
        inode: int,
        owner: Owner,
        process: Hashable | None,
        uid: int,
        name: bytes | None,
        spec: PinSpec,
        size: int,
        now: float,
        proxy_uid: int | None = None,
    ) -> Pin:
        """Register a pin of a file of `size` bytes, or replace the owner's pin of that name in one step.

        A replaced pin keeps its id; one that cannot be replaced stays as it was. Name None: always a new pin.
        OSError: EINVAL (not a range), ENXIO (not inside the file), EAGAIN (a removal of these bytes is under way),
        EDQUOT (limits). SPEC 3.1, 4, 5.
        """
        check_range(spec, size)
        old = None if name is None else self.find(inode, owner, name)
        file = self.files.get(inode)
        if file is not None and file.reserved is not None:
            if old is not None and old.breaking is None:
                self._before_move(old, now)
            self._check_reserved(file, spec, old)
        charge = spec.length or size - spec.start
        self._check_limits(uid, charge, old, now)
        if old is None:
            self._last_id += 1
            pin = Pin(self._last_id, inode, owner, process, uid, name, spec, now, charge, proxy_uid)
            self._put(pin)
        else:
            pin = old
            if pin.breaking is not None:
                self.files[inode].take_breaking(pin)
            self._take(pin)
            pin.process, pin.uid, pin.spec, pin.charged, pin.proxy_uid = process, uid, spec, charge, proxy_uid
            self._put(pin)
            if pin.breaking is not None:
                self.files[inode].add_breaking(pin)
        if self.subscribed:
            self._emit(Event("pinned", now, pin, why="replaced" if old else None))
        if pin.breaking is not None:
            self._moved(pin, pin.breaking, now)
        return pin

    def release(self, pin: Pin, now: float, by: str = "holder") -> None:
        """The holder lets go, or can hold no longer. `by`: holder, death, close."""
        self._end(pin, "released", now, by)

    def owner_gone(self, owner: Owner, now: float, by: str = "death") -> None:
        """A process has ended, or the last reference to an open file description was closed (SPEC 4)."""
        for pin in self.of_owner(owner):
            self._lose(pin, now, by)

    def _lose(self, pin: Pin, now: float, by: str) -> None:
        """A pin whose owner is gone."""
        if pin.breaking is not None and pin.breaking.killed:
            self.revoke(pin, now, "kill")
        else:
            self.release(pin, now, by)

    def revoke(self, pin: Pin, now: float, by: str = "root") -> None:
        """Take the pin from its holder. `by`: root, policy, kill."""
        self._end(pin, "revoked", now, by)

    def _end(self, pin: Pin, kind: EventKind, now: float, by: str) -> None:
        breaking = pin.breaking
        if breaking is not None:
            self.files[pin.inode].take_breaking(pin)
        self._take(pin)
        self.ended[by] += 1
        if self.on_end is not None:
            self.on_end(pin)
        if self.subscribed or breaking is not None or kind != "released":
            self._emit(Event(kind, now, pin, breaking=breaking, by=by))
        self._forget_if_empty(pin.inode)
        if breaking is not None:
            self._break_ended(pin, breaking, now)

    # What breaks have to do with pins that move and end: next door.

    def _before_move(self, pin: Pin, now: float) -> None:
        """A pin that is not breaking, in a file of which somebody wants something, will have another range or mode."""

    def _moved(self, pin: Pin, breaking: Break, now: float) -> None:
        """A breaking pin has another range or mode now."""

    def _break_ended(self, pin: Pin, breaking: Break, now: float) -> None:
        """A pin has gone while it was breaking."""

    def _forget_if_empty(self, inode: int) -> None:
        file = self.files.get(inode)
        if file is not None and not (file.deny or file.lease or file.reserved):
            del self.files[inode]
            if self.on_empty is not None:
                self.on_empty(inode)

    def _check_reserved(self, file: FilePins, spec: PinSpec, old: Pin | None) -> None:
        """EAGAIN for bytes that a removal wants; those that the old pin holds already are not new."""
        if not file.is_reserved(spec.start, spec.end):
            return
        if old is None:
            new, hardens = [(spec.start, spec.end)], False
        else:
            new = [(spec.start, min(spec.end, old.start)), (max(spec.start, old.end), spec.end)]
            hardens = old.breaking is not None and (old.mode, spec.mode) == (Mode.LEASE, Mode.DENY)
        if hardens or any(file.is_reserved(start, end) for start, end in new):
            raise OSError(errno.EAGAIN, "a removal of this range is under way")

    def _check_limits(self, uid: int, charge: int, old: Pin | None, now: float) -> None:
        """EDQUOT. Root is a user like any other here; a pin that does not grow is never refused."""
        limits, usage = self.limits, self.usage.get(uid, _NONE)
        if old is None and len(self.by_id) >= limits.max_pins:
            self._refuse_limit("max_pins", now)
        if old is None or old.uid != uid:
            if usage.pins >= limits.max_pins_per_user:
                self._refuse_limit("max_pins_per_user", now)
        else:
            charge -= old.charged
        if charge > 0 and usage.bytes + charge > limits.max_pinned_bytes_per_user:
            self._refuse_limit("max_pinned_bytes_per_user", now)

    def _refuse_limit(self, limit: str, now: float) -> None:
        self._emit(Event("limit", now, why=limit))
        raise OSError(errno.EDQUOT, f"{limit} is reached")

    def _put(self, pin: Pin) -> None:
        file = self.files.get(pin.inode)
        if file is None:
            file = self.files[pin.inode] = FilePins()
        file.add(pin)
        self.by_id[pin.id] = pin
        owned = self.by_owner.get(pin.owner)
        if owned is None:
            owned = self.by_owner[pin.owner] = {}
        owned[pin.own_key] = pin
        if pin.proxy_uid is not None and pin.name is not None:
            self._by_proxy.setdefault((pin.inode, pin.name, pin.proxy_uid), {})[pin.id] = pin
        if pin.process is not pin.owner:
            self._of_handles.setdefault(pin.process, {})[pin.id] = pin
        usage = self.usage.get(pin.uid)
        if usage is None:
            usage = self.usage[pin.uid] = Usage()
        usage.pins += 1
        usage.bytes += pin.charged

    def _take(self, pin: Pin) -> None:
        self.files[pin.inode].take(pin)
        del self.by_id[pin.id]
        discard(self.by_owner, pin.owner, pin.own_key)
        if pin.proxy_uid is not None and pin.name is not None:
            discard(self._by_proxy, (pin.inode, pin.name, pin.proxy_uid), pin.id)
        if pin.process is not pin.owner:
            discard(self._of_handles, pin.process, pin.id)
        usage = self.usage[pin.uid]
        usage.pins -= 1
        usage.bytes -= pin.charged
        if not usage.pins:
            del self.usage[pin.uid]


def check_range(spec: PinSpec, size: int) -> None:
    """OSError: EINVAL (no file has such a range: off_t is 63 bits), ENXIO (not inside `size` bytes). SPEC 5."""
    start, length = spec.start, spec.length
    if start < 0 or length < 0 or start + length >= END:
        raise OSError(errno.EINVAL, "a range is not negative and ends below 2**63")
    if start + length > size:
        raise OSError(errno.ENXIO, f"the range ends behind the file's {size} bytes")


def discard(index: dict[K, dict[L, Pin]], key: K, pin: L) -> None:
    """Take a pin out of an index of pins, if it is still there; an empty entry goes as well."""
    pins = index[key]
    pins.pop(pin, None)
    if not pins:
        del index[key]
