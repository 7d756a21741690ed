"""The records of a journal: what each kind holds, as a tuple of plain values, and where in its slot (SPEC 13).

Each layout is a NamedTuple with the fields of the record in their order, after the id and the first slot of its chain.
`pack` and `unpack` are the only places that know where they lie. Words that change in place are named `*_WORD`: word
`i` of a slot, for `Slots.words`.

Times are nanoseconds of CLOCK_MONOTONIC, which outlives a process, unless it says otherwise.
"""

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from pinfs.journal.slots import FIRST_OWN_WORD


class Kind(IntEnum):
    """What a record is of."""

    INODE = 1
    LINK = 2
    HANDLE = 3
    PIN = 4
    BREAK = 5
    ORPHAN = 6
    SILENT = 7
    STREAM = 8
    LINE = 9
    TEXT = 10
    INTENT = 11
    RENAMING = 12
    EVENTFD = 13


# Words of the first page.

EXECUTED: Final = FIRST_OWN_WORD
"""The number of the request that was executed last; its reply may not have been written."""
RELEASED: Final = FIRST_OWN_WORD + 1
"""The number of the request that released a pin last; the same."""
LAST_PIN: Final = FIRST_OWN_WORD + 2
"""The id of the newest pin."""
LAST_HANDLE: Final = FIRST_OWN_WORD + 3
"""The number of the newest handle."""
TRACE_SEQ: Final = FIRST_OWN_WORD + 5
"""The number of the newest event of all."""
LAST_SERIAL: Final = FIRST_OWN_WORD + 6
"""The newest id of records that have none of their own (links, orphans, lines...)."""
BROKEN: Final = FIRST_OWN_WORD + 8
"""Not 0: records are missing, because there was no room for them. The mount cannot be taken over."""
POLL_REFUSED: Final = FIRST_OWN_WORD + 9
"""1: the kernel polls no file of this mount any more."""
LEFT: Final = FIRST_OWN_WORD + 10
"""When the daemon before handed over; 0: it did not, it died."""
EXPORT_GENERATION: Final = FIRST_OWN_WORD + 11
"""The generation of inodes whose node ids are of this mount only (mount option `nfs_export`)."""
COUNTED_BY: Final = FIRST_OWN_WORD + 12
"""The number of the request that counted lookups last; its reply may not have been written."""
COUNTED: Final = FIRST_OWN_WORD + 13
"""How many: of each the node id and the lookup count before, from FIRST_COUNTED on."""
FIRST_COUNTED: Final = FIRST_OWN_WORD + 14
MAX_COUNTED: Final = 200

INLINE_NAME: Final = 48  # bytes

LOOKUPS_WORD: Final = 3
PARENT_WORD: Final = 4
"""0: the inode has no name (any more)."""
BACKING_ID_WORD: Final = 7
SEEN_WORD: Final = 8
_INODE: Final = Struct("<QQQQQQQQBBH4x48s")


class InodeRecord(NamedTuple):
    """An inode that the kernel, a handle or a pin refers to, or a directory that leads to one.

    `device`, `ino`: st_dev and st_ino. `kind`: S_IFMT >> 12. `name`: in `parent`; empty: it has none. A name that is
    longer than INLINE_NAME lies in the chain. `backing_id`: registered with the kernel, 0: none. `seen_ns`: when the
    daemon knew it to be this one, by CLOCK_REALTIME; an inode that was born later has got its number.
    """

    nodeid: int
    chain: int
    lookups: int
    parent: int
    ino: int
    device: int
    backing_id: int
    seen_ns: int
    kind: int
    flags: int
    name_size: int
    name: bytes

    def pack(self) -> bytes:
        return _INODE.pack(*self)


def unpack_inode(body: bytes) -> InodeRecord:
    return InodeRecord._make(_INODE.unpack_from(body))


pack_inode: Final = _INODE.pack
"""The fields of InodeRecord, without making one."""

_LINK: Final = Struct("<QQQQH6x80s")
INLINE_LINK: Final = 80


class LinkRecord(NamedTuple):
    """One more name of an inode: a hard link, or (RENAMING) the name that a call under way gives it."""

    serial: int
    chain: int
    nodeid: int
    parent: int
    name_size: int
    name: bytes

    def pack(self) -> bytes:
        return _LINK.pack(*self)


def unpack_link(body: bytes) -> LinkRecord:
    return LinkRecord._make(_LINK.unpack_from(body))


class HandleKind(IntEnum):
    """What an open handle is of; the control files by their names."""

    FILE = 1
    DIRECTORY = 2
    CONTROL_DIRECTORY = 3
    CHANNEL = 4
    TRACE = 5
    PINS = 6
    TEXT = 7
    POLICY = 8


_HANDLE: Final = Struct("<QQQQQIIIIQQQQQQQQ")
TAKEN_BY_WORD: Final = 9
TAKEN_TO_WORD: Final = 10
POLLED_WORD: Final = 11
ENDED_WORD: Final = 13
COMMANDED_BY_WORD: Final = 14
COMMANDED_WORD: Final = 15


class HandleRecord(NamedTuple):
    """An open handle. `flags`: of open(2). `unique`: the number of the request that opened it. `fopen_flags`: of its
    reply.

    Of an event channel: `uid` has opened it, for the process (`pid`, `start_time`, `incarnation`); the request
    `taken_by` was the last that took lines from it, up to the one with the serial `taken_to`. `ended` 1: its reader has
    written `end`. `commanded`: as many lines of the request `commanded_by`, the last that wrote to it, are done.

    Of a directory: `taken_to` is the offset at which its listing ended in one reply, 0: it did not; else the names lie
    in the chain, or in a file of their own. Of a control file the chain holds its text, or where its reader is.
    `polled`: the kernel's number of the file, kh, where it has been polled; else 0.
    """

    fh: int
    chain: int
    nodeid: int
    unique: int
    incarnation: int
    flags: int
    kind: int
    fopen_flags: int
    uid: int
    start_time: int
    taken_by: int
    taken_to: int
    polled: int
    pid: int
    ended: int
    commanded_by: int
    commanded: int

    def pack(self) -> bytes:
        return _HANDLE.pack(*self)


def unpack_handle(body: bytes) -> HandleRecord:
    return HandleRecord._make(_HANDLE.unpack_from(body))


pack_handle: Final = _HANDLE.pack
_CHAIN: Final = Struct("<Q")


def with_chain(body: bytes, chain: int) -> bytes:
    """The record of a handle with another chain."""
    return body[:8] + _CHAIN.pack(chain) + body[16:]


_PIN: Final = Struct("<QQQQQdQQIIQQQIBBBB16s")
INLINE_PIN_NAME: Final = 16
PINNED_WORD: Final = 3
"""The node id of the file."""
UNIQUE_WORD: Final = 12
RELEASED_BIT: Final = 1 << 63
"""In UNIQUE_WORD: the rest is the number of the request that has released the pin, whose record is about to go."""
DIRTY, HAS_NAME, HAS_PROXY, HAS_PROCESS = 1, 2, 4, 8


class PinRecord(NamedTuple):
    """A pin. `handle`: the open handle that owns it; 0: its process does (`pid`, `start_time`, `incarnation`).

    `unique`: the number of the request that registered it. A name that is longer than INLINE_PIN_NAME, and a note, lie
    in the chain: the name (`name_size` bytes), then the note.
    """

    id: int
    chain: int
    nodeid: int
    start: int
    length: int
    since_s: float
    """The same time, in seconds."""
    charged: int
    handle: int
    pid: int
    uid: int
    start_time: int
    incarnation: int
    unique: int
    proxy_uid: int
    is_lease: int
    signal: int
    flags: int
    name_size: int
    name: bytes

    def pack(self) -> bytes:
        return _PIN.pack(*self)


def unpack_pin(body: bytes) -> PinRecord:
    return PinRecord._make(_PIN.unpack_from(body))


pack_pin: Final = _PIN.pack

DEADLINE_WORD: Final = 4
KILLED_WORD: Final = 8
_BREAK: Final = Struct("<QQQQQQQQdd16s16s")


class BreakRecord(NamedTuple):
    """The break of a pin, with what its deadline does: the policy that was in force when it began. Where another host
    wants the bytes, the chain has its name."""

    pin_id: int
    chain: int
    since_ns: int
    deadline_ns: int
    start: int
    end: int
    seq: int
    killed: int
    break_timeout_max: float
    retry_after: float
    op: bytes
    on_timeout: bytes
    """on_timeout and errno, with a space between."""

    def pack(self) -> bytes:
        return _BREAK.pack(*self)


def unpack_break(body: bytes) -> BreakRecord:
    record = BreakRecord._make(_BREAK.unpack_from(body))
    return record._replace(op=record.op.rstrip(b"\0"), on_timeout=record.on_timeout.rstrip(b"\0"))


_ORPHAN: Final = Struct("<QQQQQQQQQ")


class OrphanRecord(NamedTuple):
    """A range that stays reserved after its breaker gave up. `deadline_ns` 0: pins in it are breaking. `pid` 0: the
    breaker is not known."""

    serial: int
    chain: int
    nodeid: int
    start: int
    end: int
    deadline_ns: int
    pid: int
    start_time: int
    incarnation: int

    def pack(self) -> bytes:
        return _ORPHAN.pack(*self)


def unpack_orphan(body: bytes) -> OrphanRecord:
    return OrphanRecord._make(_ORPHAN.unpack_from(body))


_SILENT: Final = Struct("<QQQQQQQ")


class SilentRecord(NamedTuple):
    """A holder that let a deadline pass, and is not notified again before `until_ns`. `handle` 0: a process."""

    serial: int
    chain: int
    until_ns: int
    handle: int
    pid: int
    start_time: int
    incarnation: int

    def pack(self) -> bytes:
        return _SILENT.pack(*self)


def unpack_silent(body: bytes) -> SilentRecord:
    return SilentRecord._make(_SILENT.unpack_from(body))


SEQ_WORD: Final = 3
_STREAM: Final = Struct("<QQQQQQ")


class StreamRecord(NamedTuple):
    """The number of the newest event of one process."""

    serial: int
    chain: int
    seq: int
    pid: int
    start_time: int
    incarnation: int

    def pack(self) -> bytes:
        return _STREAM.pack(*self)


def unpack_stream(body: bytes) -> StreamRecord:
    return StreamRecord._make(_STREAM.unpack_from(body))


_LINE: Final = Struct("<QQQQ")


class LineRecord(NamedTuple):
    """A line of events that the reader of a handle has not taken; the line itself is the chain.

    `seq`: its number. A line whose stream has not reached this number was being told when the daemon ended: it counts
    for nothing. 0: it has no number (lines were lost).
    """

    serial: int
    chain: int
    fh: int
    seq: int

    def pack(self) -> bytes:
        return _LINE.pack(*self)


def unpack_line(body: bytes) -> LineRecord:
    return LineRecord._make(_LINE.unpack_from(body))


_EVENTFD: Final = Struct("<QQQQQ")


class EventFdRecord(NamedTuple):
    """What a pin, or the event channel of the handle `fh`, writes to (the other is 0): `eventfd`, by its number
    in the store."""

    serial: int
    chain: int
    pin_id: int
    fh: int
    eventfd: int

    def pack(self) -> bytes:
        return _EVENTFD.pack(*self)


def unpack_eventfd(body: bytes) -> EventFdRecord:
    return EventFdRecord._make(_EVENTFD.unpack_from(body))


class TextId(IntEnum):
    """The ids of TEXT records, of each of which there is one."""

    IDENTITY = 1
    """JSON: of which mount this is the journal."""
    POLICY = 3
    """JSON: the policy in force, with what it began with, and why the last one was refused."""
    STATS = 4
    """JSON: the counters."""
    HISTORY = 6
    """JSON: the latest take-overs."""
    CLUSTER = 7
    """JSON: the place of this host in its cluster."""


_TEXT: Final = Struct("<QQ")


class TextRecord(NamedTuple):
    """A text, which is the chain."""

    id: int
    chain: int


def unpack_text(body: bytes) -> TextRecord:
    return TextRecord._make(_TEXT.unpack_from(body))


def pack_text(id_: int, chain: int) -> bytes:
    return _TEXT.pack(id_, chain)


DONE_WORD: Final = 10
WAS_EXECUTED: Final = 0
"""In place of the opcode of an intent: the request was executed by a daemon before."""
_INTENT: Final = Struct("<QQQQQQQQQQ")


class IntentRecord(NamedTuple):
    """What a request is about to do, with what was there before: the inodes behind its names (0, 0: none), the size of
    its file in bytes. `was_there` 1: the attribute that it sets or removes; of commands, bit i: the pin of the i-th.
    `done` 1: it has been done."""

    unique: int
    chain: int
    opcode: int
    device: int
    ino: int
    other_device: int
    other_ino: int
    size: int
    was_there: int
    done: int

    def pack(self) -> bytes:
        return _INTENT.pack(*self)


def unpack_intent(body: bytes) -> IntentRecord:
    return IntentRecord._make(_INTENT.unpack_from(body))


def executed(unique: int) -> IntentRecord:
    """Of a request of which nothing more is to be known."""
    return IntentRecord(unique, 0, WAS_EXECUTED, 0, 0, 0, 0, 0, 0, 1)
