"""What the watch has told of the other hosts.

The watch may be late, may lose events, and may deliver some twice. So what is here wakes operations, and saves
questions; what decides about bytes is an answer of etcd. The one exception are the marks, which removals look up here
alone: they are counted, so that a missing one shows (`View.follows`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from pinfs.cluster.keys import (
    CounterKey,
    Key,
    MarkKey,
    MemberId,
    MemberValue,
    PinKey,
    PinValue,
    RemovalKey,
    RemovalValue,
    VerdictKey,
    read_key,
    verdict_why,
)
from pinfs.cluster.messages import Batch, KeyValue

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Mark:
    """`revision`: when it was set. It was one of the marks from `earliest` to `count`, which are the same unless a
    read has found it: pins ask all members for a promise up to `count`, and the own promise stays below `earliest`
    (I1)."""

    revision: int
    earliest: int
    count: int


class Marks(dict[str, Mark]):
    """The marked files. `stems`: how many of them have a name that begins so, up to its first dot (the inode number, as
    daemons name files): a removal that knows no more than that looks here."""

    def __init__(self) -> None:
        super().__init__()
        self.stems: dict[str, int] = {}

    def add(self, file: str, mark: Mark) -> None:
        if file not in self:
            stem = file.partition(".")[0]
            self.stems[stem] = self.stems.get(stem, 0) + 1
        self[file] = mark

    def discard(self, file: str) -> None:
        if self.pop(file, None):
            stem = file.partition(".")[0]
            self.stems[stem] -= 1
            if not self.stems[stem]:
                del self.stems[stem]


@dataclass(slots=True)
class Peer:
    """A member, this one included. `since`: when its key was first seen at this revision, by the local clock."""

    value: MemberValue
    revision: int
    since: float


class View:
    """All keys of the cluster, as of `revision`."""

    def __init__(self) -> None:
        self.revision = 0
        self.count = 0
        """All marks up to this count have been taken in."""
        self.marks = Marks()
        self.members: dict[MemberId, Peer] = {}
        self.pins: dict[str, dict[PinKey, PinValue]] = {}
        self.removals: dict[str, dict[RemovalKey, RemovalValue]] = {}
        self.verdicts: dict[RemovalKey, dict[MemberId, str]] = {}
        self.idle_since: dict[str, float] = {}
        """Marked files with neither pins nor removals, local clock."""

    def reloaded(self, revision: int, found: Iterable[KeyValue], now: float) -> "View":
        """Everything anew, from one read. Raises Unreadable.

        Which mark came when, a read does not tell. One that was not known comes after all that had been taken in.
        """
        view = View()
        view.revision = revision
        parsed = [(read_key(item.key), item) for item in found]
        view.count = next((item.version for key, item in parsed if isinstance(key, CounterKey)), 0)
        for key, item in parsed:
            if isinstance(key, MarkKey):
                known = self.marks.get(key.file)
                is_same = known is not None and known.revision == item.mod_revision
                new = Mark(item.mod_revision, self.count + 1, view.count)
                view.marks.add(key.file, known if known and is_same else new)
            else:
                view._put(key, item, now)
        for member, peer in view.members.items():
            before = self.members.get(member)
            if before is not None and before.revision == peer.revision:
                peer.since = before.since
        for file in view.marks:
            if not view.is_busy(file):
                view.idle_since[file] = self.idle_since.get(file, now)
        return view

    def follows(self, batch: Batch) -> bool:
        """Has no mark been lost before this batch, nor in it?"""
        counted = {event.mod_revision for event in batch.events if event.key == str(CounterKey())}
        marked = {
            e.mod_revision for e in batch.events if isinstance(e, KeyValue) and isinstance(read_key(e.key), MarkKey)
        }
        versions = [e.version for e in batch.events if isinstance(e, KeyValue) and e.key == str(CounterKey())]
        return counted == marked and versions == [*range(self.count + 1, self.count + 1 + len(versions))]

    def take(self, batch: Batch, now: float) -> list[tuple[Key, KeyValue | None]]:
        """Takes in a batch that follows, and returns what has changed; None: deleted. Raises Unreadable."""
        changes = [(read_key(event.key), event) for event in batch.events]
        counts = {event.mod_revision: event for key, event in changes if isinstance(key, CounterKey)}
        taken: list[tuple[Key, KeyValue | None]] = []
        for key, event in changes:
            if not isinstance(event, KeyValue):
                self._delete(key, now)
                taken.append((key, None))
                continue
            if isinstance(key, MarkKey):
                counted = counts.get(event.mod_revision)
                self.count = counted.version if isinstance(counted, KeyValue) else self.count
                self.marks.add(key.file, Mark(event.mod_revision, self.count, self.count))
                self.idle_since[key.file] = now
            else:
                self._put(key, event, now)
            taken.append((key, event))
        self.revision = max(self.revision, batch.revision)
        return taken

    def is_busy(self, file: str) -> bool:
        """Are there pins or removals of it?"""
        return file in self.pins or file in self.removals

    def saw_member(self, found: KeyValue, now: float) -> None:
        """An answer has shown a member's key. Raises Unreadable."""
        key = read_key(found.key)
        if isinstance(key, MemberId):
            self._put(key, found, now)

    def forget_member(self, member: MemberId) -> None:
        """Its lease has ended, and with it all keys that count it as a member."""
        self.members.pop(member, None)

    def forget_mark(self, file: str, mark: Mark) -> None:
        """An answer has shown that this mark is gone."""
        if self.marks.get(file) == mark:
            self.marks.discard(file)
            self.idle_since.pop(file, None)

    def _put(self, key: Key, item: KeyValue, now: float) -> None:
        match key:
            case MemberId():
                known = self.members.get(key)
                if known is None or known.revision < item.mod_revision:
                    self.members[key] = Peer(MemberValue.read(item.value), item.mod_revision, now)
            case PinKey():
                self.pins.setdefault(key.file, {})[key] = PinValue.read(item.value)
                self.idle_since.pop(key.file, None)
            case RemovalKey():
                self.removals.setdefault(key.file, {})[key] = RemovalValue.read(item.value)
                self.idle_since.pop(key.file, None)
            case VerdictKey():
                self.verdicts.setdefault(key.removal, {})[key.member] = verdict_why(item.value)

    def _delete(self, key: Key, now: float) -> None:
        match key:
            case MarkKey():
                self.marks.discard(key.file)
                self.idle_since.pop(key.file, None)
            case MemberId():
                self.members.pop(key, None)
            case PinKey():
                _drop(self.pins, key.file, key)
                self._note_idle(key.file, now)
            case RemovalKey():
                _drop(self.removals, key.file, key)
                self._note_idle(key.file, now)
            case VerdictKey():
                _drop(self.verdicts, key.removal, key.member)

    def _note_idle(self, file: str, now: float) -> None:
        if file in self.marks and not self.is_busy(file):
            self.idle_since.setdefault(file, now)


def _drop(tables: dict[A, dict[B, C]], of: A, key: B) -> None:
    """Takes a key out of one of the tables, and the table with its last key."""
    table = tables.get(of)
    if table is not None:
        table.pop(key, None)
        if not table:
            del tables[of]
