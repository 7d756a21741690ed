"""What the daemons of a cluster write into etcd: the layout of keys and values, version 1.

Keys are relative to the prefix of the cluster. MEMBER is `HOST/INCARNATION`.

    c                             its version counts the marks that were ever set         no lease
    m/MEMBER                      promise, beat, times to live, leases of the member      member lease
    f/FILE                        the mark: removals of this file ask etcd                no lease
    p/FILE/MEMBER/NUMBER          a pin: range and mode                                   pin lease
    r/FILE/MEMBER/NUMBER          a removal under way: range and operation                member lease
    v/FILE/REMOVAL/MEMBER         the holder's daemon does not let go, and why            pin lease of that member

Every key and value is bounded (MAX_KEY, MAX_VALUE, bytes). What cannot be read raises `Unreadable`: a daemon of another
version is at work, and guessing what it means could cost pinned bytes.
"""

import re
from typing import Final, NamedTuple, TypeAlias

from pinfs.core.pins import Mode
from pinfs.core.ranges import END

VERSION: Final = 1
MAX_KEY: Final = 256
MAX_VALUE: Final = 128
DIGITS: Final = 16

ALL_CLUSTERS: Final = "/pinfs/"
"""The prefix of the keys of all clusters; that of one ends with its name and a slash."""
COUNTER: Final = "c"
ALL: Final = ""
MEMBERS: Final = "m/"

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FILE: Final = re.compile(r"[0-9a-f.]{1,40}")
_HEX: Final = re.compile(r"[0-9a-f]{1,16}")
_WORD: Final = re.compile(r"[a-z_]{1,24}")


class Unreadable(ValueError):
    """A key or value that this version does not understand."""


class MemberId(NamedTuple):
    """One life of one host in the cluster. A host that was fenced comes back under another incarnation.

    `host`: up to 64 letters, digits and `._-`. `incarnation`: up to 16 hexadecimal digits, never used twice by a host.
    """

    host: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.host}/{self.incarnation}"

    @property
    def key(self) -> str:
        return f"m/{self}"

    def check(self) -> "MemberId":
        """Raises Unreadable for names that no key can carry."""
        _match(_HOST, self.host)
        _match(_HEX, self.incarnation)
        return self


class MarkKey(NamedTuple):
    """`file`: what all hosts call it; up to 40 hexadecimal digits and dots."""

    file: str

    def __str__(self) -> str:
        return f"f/{self.file}"


class PinKey(NamedTuple):
    """`number`: of this member's, never used twice, because a put whose answer was lost may still be on its way."""

    file: str
    member: MemberId
    number: int

    def __str__(self) -> str:
        return f"p/{self.file}/{self.member}/{self.number:x}"


class RemovalKey(NamedTuple):
    """`number`: as of PinKey."""

    file: str
    member: MemberId
    number: int

    def __str__(self) -> str:
        return f"r/{self.file}/{self.member}/{self.number:x}"

    @property
    def verdicts(self) -> str:
        """The prefix of the verdicts on it."""
        return f"v/{self.file}/{self.member.host}:{self.member.incarnation}:{self.number:x}/"


class VerdictKey(NamedTuple):
    """`member`: the one that does not let go."""

    removal: RemovalKey
    member: MemberId

    def __str__(self) -> str:
        return f"{self.removal.verdicts}{self.member}"


class CounterKey(NamedTuple):
    """There is one."""

    def __str__(self) -> str:
        return COUNTER


Key: TypeAlias = MemberId | MarkKey | PinKey | RemovalKey | VerdictKey | CounterKey


class MemberValue(NamedTuple):
    """`promise`: the marks up to this count are honoured. `beat`: rises with each put. `pin_ttl_ms` and
    `member_ttl_ms`: how long the member may be silent, by its own configuration, as of `Timing`. The ids of its
    leases.

    The promise comes first and has a fixed width, so that etcd can compare all members' values with a count.
    """

    promise: int
    beat: int
    pin_ttl_ms: int
    member_ttl_ms: int
    pin_lease: int
    member_lease: int

    def __str__(self) -> str:
        promise, *rest = self
        return " ".join(map(str, (padded(promise), VERSION, *rest)))

    @classmethod
    def read(cls, text: str) -> "MemberValue":
        promise, *rest = _fields(text, 7)
        _check_version(rest.pop(0))
        return cls(_number(promise), *map(_number, rest))


class PinValue(NamedTuple):
    """Bytes [start, end)."""

    start: int
    end: int
    mode: Mode

    def __str__(self) -> str:
        return f"{VERSION} {self.start} {self.end} {self.mode}"

    @classmethod
    def read(cls, text: str) -> "PinValue":
        version, start, end, mode = _fields(text, 4)
        _check_version(version)
        if mode not in tuple(Mode):
            raise Unreadable(mode)
        return cls(*_span(start, end), Mode(mode))


class RemovalValue(NamedTuple):
    """Bytes [start, end). `operation`: what the breaker calls, for the holder's event."""

    start: int
    end: int
    operation: str

    def __str__(self) -> str:
        return f"{VERSION} {self.start} {self.end} {self.operation}"

    @classmethod
    def read(cls, text: str) -> "RemovalValue":
        version, start, end, operation = _fields(text, 4)
        _check_version(version)
        return cls(*_span(start, end), _match(_WORD, operation))


def overlap(one: PinValue | RemovalValue, other: PinValue | RemovalValue) -> bool:
    """Do they share bytes?"""
    return one.start < other.end and other.start < one.end


def padded(count: int) -> str:
    """Decimal digits that compare as text as the numbers do."""
    return f"{count:0{DIGITS}d}"


def verdict_text(why: str) -> str:
    """The value of a verdict. `why`: a word as in the events of pins. Raises Unreadable for anything else."""
    return f"{VERSION} {_match(_WORD, why)}"


def verdict_why(text: str) -> str:
    """Why the holder's daemon does not let go."""
    version, why = _fields(text, 2)
    _check_version(version)
    return _match(_WORD, why)


def pins_of(file: str) -> str:
    """The prefix of all pins of a file."""
    return f"p/{file}/"


def removals_of(file: str) -> str:
    """The prefix of all removals of a file that are under way."""
    return f"r/{file}/"


def read_key(text: str) -> Key:
    """Raises Unreadable."""
    if len(text) > MAX_KEY:
        raise Unreadable(f"{text[:64]}... is too long")
    match text.split("/"):
        case ["c"]:
            return CounterKey()
        case ["m", host, incarnation]:
            return MemberId(host, incarnation).check()
        case ["f", file]:
            return MarkKey(_match(_FILE, file))
        case ["p", file, host, incarnation, number]:
            return PinKey(_match(_FILE, file), MemberId(host, incarnation).check(), _hex(number))
        case ["r", file, host, incarnation, number]:
            return RemovalKey(_match(_FILE, file), MemberId(host, incarnation).check(), _hex(number))
        case ["v", file, removal, host, incarnation]:
            breaker = removal.split(":")
            if len(breaker) == 3:
                whose = MemberId(*breaker[:2]).check()
                of = RemovalKey(_match(_FILE, file), whose, _hex(breaker[2]))
                return VerdictKey(of, MemberId(host, incarnation).check())
    raise Unreadable(text)


def check_file(file: str) -> None:
    """Raises Unreadable for a name that no key can carry."""
    _match(_FILE, file)


def check_operation(operation: str) -> None:
    """Raises Unreadable for a word that no value can carry."""
    _match(_WORD, operation)


def _match(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise Unreadable(text)
    return text


def _fields(text: str, number: int) -> list[str]:
    fields = text.split(" ")
    if len(text) > MAX_VALUE or len(fields) != number:
        raise Unreadable(text[:MAX_VALUE])
    return fields


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise Unreadable(text)
    return int(text)


def _hex(text: str) -> int:
    return int(_match(_HEX, text), 16)


def _span(start: str, end: str) -> tuple[int, int]:
    span = _number(start), _number(end)
    if not span[0] < span[1] <= END:
        raise Unreadable(f"{start} {end}")
    return span


def _check_version(text: str) -> None:
    if text != str(VERSION):
        raise Unreadable(f"version {text}")
