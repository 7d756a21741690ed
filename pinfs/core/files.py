"""What the book knows of each inode: the ranges in which pins, breaks and reservations lie."""

from collections.abc import Callable, Iterator

from pinfs.core.pins import Mode, Pin, SortKey
from pinfs.core.ranges import RangeTree
from pinfs.core.removals import Orphan, Reservation


class FileState:
    """One inode. Deny pins and leases have a tree each, so that "any deny pin here?" does not depend on the leases.

    `breaking` holds the breaking pins once more. `orphans` are in `reserved` as well.
    """

    __slots__ = ("breaking", "deny", "lease", "orphans", "reserved")

    def __init__(self) -> None:
        self.deny: RangeTree | None = None
        self.lease: RangeTree | None = None
        self.breaking: RangeTree | None = None
        self.reserved: RangeTree | None = None
        self.orphans: tuple[Orphan, ...] = ()

    def trees(self) -> Iterator[RangeTree]:
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
        if pin.breaking is not None:
            self.add_breaking(pin)

    def take(self, pin: Pin) -> None:
        spec = pin.spec
        tree = self.deny if spec.mode is Mode.DENY else self.lease
        if tree is None:
            raise KeyError(pin.id)
        tree.remove(spec.start, pin.id)
        if pin.breaking is not None:
            self.take_breaking(pin)

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

    def some(self, start: int, end: int, count: int) -> list[Pin]:
        """The first `count` of `overlapping`."""
        found: list[Pin] = [] if self.deny is None else self.deny.some(start, end, count)
        if self.lease is not None and len(found) < count:
            found += self.lease.some(start, end, count - len(found))
        return found

    def overlapping_after(self, start: int, end: int, key: SortKey) -> Iterator[Pin]:
        """The same, but only the pins behind a sort key: for a caller that takes some at a time."""
        kind, *after = key
        if self.deny and kind == 0:
            yield from self.deny.overlapping(start, end, (after[0], after[1]))
        if self.lease:
            yield from self.lease.overlapping(start, end, (after[0], after[1]) if kind == 1 else None)

    def first(self, start: int, end: int) -> Pin | None:
        """One pin that shares a byte with [start, end), a deny pin if there is one."""
        for tree in self.trees():
            pin: Pin | None = tree.first_overlap(start, end)
            if pin is not None:
                return pin
        return None

    def reserve(self, reservation: Reservation) -> None:
        if self.reserved is None:
            self.reserved = RangeTree()
        self.reserved.insert(reservation.start, reservation.end, reservation.order, reservation)

    def unreserve(self, reservation: Reservation) -> None:
        if self.reserved is not None:
            self.reserved.remove(reservation.start, reservation.order)

    def is_reserved(self, start: int, end: int) -> bool:
        return self.reserved is not None and self.reserved.any_overlap(start, end)

    def reserved_over(self, pin: Pin) -> Iterator[Reservation]:
        """The reservations that share a byte with a pin."""
        return iter(()) if self.reserved is None else self.reserved.overlapping(pin.start, pin.end)

    def __bool__(self) -> bool:
        return bool(self.deny or self.lease or self.reserved)


def _raise(when: str, failure: Exception) -> None:
    """No boundary is set."""
    raise failure


class Files:
    """The states, by inode: an inode is in it if and only if it has pins or reservations.

    `on_empty` is called with an inode that has just left; `on_failure` hears what it raises.
    """

    def __init__(self) -> None:
        self.on_empty: Callable[[int], None] | None = None
        self.on_failure: Callable[[str, Exception], None] = _raise
        self.states: dict[int, FileState] = {}

    def __contains__(self, inode: object) -> bool:
        return inode in self.states

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[int]:
        return iter(self.states)

    def __getitem__(self, inode: int) -> FileState:
        return self.states[inode]

    def get(self, inode: int) -> FileState | None:
        """The state of an inode; None: it has neither pins nor reservations."""
        return self.states.get(inode)

    def of(self, inode: int) -> FileState:
        """The state of an inode, which is in from now on: the caller adds to it."""
        file = self.states.get(inode)
        if file is None:
            file = self.states[inode] = FileState()
        return file

    def drop_if_empty(self, inode: int) -> None:
        file = self.states.get(inode)
        if file is not None and not (file.deny or file.lease or file.reserved):
            del self.states[inode]
            if self.on_empty is not None:
                try:
                    self.on_empty(inode)
                except Exception as e:
                    self.on_failure(f"after the last pin of inode {inode}", e)
