"""What SPEC 2 and 3 say about one removal and one pin, written down from there alone: nothing of pinfs is used here.

A `Case` is one row of the contract's tables (an operation, a pin, its holder, the policy); `expected` is what must come
of it. The tests do every case on a mount, and `table` prints them for docs/semantics.md.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

PAGE = 4096
SIZE = 3 * PAGE
"""Of the file of every case, in bytes; the middle page is pinned."""


@dataclass(frozen=True)
class Rules:
    """The keys of SPEC 8 that decide about one file."""

    conflict: str = "pin"
    own: str = "deny"
    on_timeout: str = "deny"
    unlink: str = "defer"
    errno: str = "EBUSY"

    @property
    def number(self) -> int:
        return getattr(errno, self.errno)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Operation:
    """What an operation does to the pinned page. `named`: it takes the last name, so that policy `unlink` decides.

    `nonblock`: through an O_NONBLOCK handle. `unsupported`: the backing, or the kernel for FUSE, has no such thing.
    """

    name: str
    text: str
    takes: bool = False
    named: bool = False
    nonblock: bool = False
    unsupported: bool = False


@dataclass(frozen=True)
class Pinned:
    """A pin and who holds it. `holder`: answers, silent, stopped, dead, own (the breaker itself)."""

    mode: str
    owner: str
    holder: str


@dataclass(frozen=True)
class Case:
    operation: Operation
    pinned: Pinned | None = None
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Outcome:
    """What the breaker gets (None: success), whether the bytes or the name are gone, what happened to the pin in
    order, and whether it stands afterwards."""

    errno: int | None
    events: tuple[str, ...] = ()
    pin_stands: bool = False

    @property
    def done(self) -> bool:
        return self.errno is None


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("truncate", "truncate(2) below the end of the pin", takes=True),
        Operation("ftruncate", "ftruncate(2), the same", takes=True),
        Operation("open_trunc", "open(2) with `O_TRUNC`", takes=True),
        Operation("creat", "creat(2) of an existing file", takes=True),
        Operation("punch_hole", "fallocate(2) `PUNCH_HOLE` within the pin", takes=True),
        Operation("zero_range", "fallocate(2) `ZERO_RANGE` within the pin (disk)", takes=True),
        Operation("ftruncate_nonblock", "ftruncate(2) through an `O_NONBLOCK` handle", takes=True, nonblock=True),
        Operation("open_trunc_nonblock", "open(2) with `O_TRUNC` and `O_NONBLOCK`", takes=True, nonblock=True),
        Operation("unlink_last", "unlink(2) of the last name", takes=True, named=True),
        Operation("rename_over", "rename(2) of another file over the last name", takes=True, named=True),
        Operation("unlink_one_of_two", "unlink(2) of one of two names"),
        Operation("rename_over_one_of_two", "rename(2) over one of two names"),
        Operation("rename_self", "rename(2) of the file itself"),
        Operation("exchange", "renameat2(2) `RENAME_EXCHANGE` with another file"),
        Operation("truncate_behind", "truncate(2) to the end of the pin"),
        Operation("punch_before", "fallocate(2) `PUNCH_HOLE` up to the start of the pin"),
        Operation("punch_behind_eof", "fallocate(2) `PUNCH_HOLE` behind the end of the file"),
        Operation("same_size", "truncate(2) to the same size"),
        Operation("grow", "truncate(2) to a larger size"),
        Operation("append", "write(2) with `O_APPEND`"),
        Operation("write", "pwrite(2) into the pin"),
        Operation("mmap_store", "a store through a mapping of the pin"),
        Operation("copy_file_range", "copy_file_range(2) into the pin"),
        Operation("prealloc", "fallocate(2) mode 0 across the pin"),
        Operation("keep_size", "fallocate(2) `KEEP_SIZE` behind the end"),
        Operation("chmod", "chmod(2)"),
        Operation("chown", "chown(2)"),
        Operation("utimes", "utimensat(2)"),
        Operation("link", "link(2)"),
        Operation("xattr", "setxattr(2) of any other attribute"),
        Operation("zero_range_tmpfs", "fallocate(2) `ZERO_RANGE` within the pin (tmpfs)", unsupported=True),
        Operation("collapse_range", "fallocate(2) `COLLAPSE_RANGE` (never passed on by the kernel)", unsupported=True),
        Operation("insert_range", "fallocate(2) `INSERT_RANGE` (never passed on by the kernel)", unsupported=True),
    )
}


def expected(case: Case) -> Outcome:
    """SPEC 2 (what conflicts), then SPEC 3 (what happens then), sentence by sentence."""
    operation, pinned, rules = case.operation, case.pinned, case.rules
    held = pinned is not None and pinned.holder != "dead"
    if operation.unsupported:  # "a holder is never bothered for an operation that would fail anyway"
        return Outcome(errno.EOPNOTSUPP, pin_stands=held)
    if not held or pinned is None or not operation.takes:
        return Outcome(None, pin_stands=held)
    if operation.named and rules.unlink == "defer":  # "the name goes, the inode and its bytes stay"
        return Outcome(None, pin_stands=True)
    if pinned.holder == "own" and rules.own == "allow":
        return Outcome(None, pin_stands=True)
    if pinned.holder == "own":  # SPEC 3.3: EBUSY "in both modes"
        return Outcome(errno.EBUSY, pin_stands=True)
    denies = {"pin": pinned.mode == "deny", "deny": True, "break": False}[rules.conflict]
    if denies or (operation.named and rules.unlink == "deny"):  # SPEC 3.2
        return Outcome(rules.number, pin_stands=True)
    return _broken(operation, pinned, rules)


def _broken(operation: Operation, pinned: Pinned, rules: Rules) -> Outcome:
    """SPEC 3.4 to 3.7: the holder is asked."""
    if pinned.holder == "answers":
        events, stands = ("break", "released by holder"), False
    else:
        events, stands = {
            "deny": (("break", "withdrawn"), True),
            "revoke": (("break", "revoked by policy"), False),
            "kill": (("break", "revoked by kill"), False),
        }[rules.on_timeout]
    if operation.nonblock:
        return Outcome(errno.EAGAIN, events, stands)
    return Outcome(rules.number if stands else None, events, stands)
