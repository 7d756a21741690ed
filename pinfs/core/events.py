"""What the book tells: each decision that concerns a holder, a breaker or the count."""

from typing import Literal, NamedTuple, TypeAlias

from pinfs.core.pins import Break, Pin
from pinfs.core.removals import Removal

EventKind: TypeAlias = Literal[
    "pinned", "break", "answered", "withdrawn", "released", "revoked", "kill", "refused", "proceeded", "limit"
]


class Mapper(NamedTuple):
    """A process that maps bytes of a file. `pinned_bytes`: memory of it that is pinned for devices (VmPin of
    proc_pid_status(5)), of this file or not."""

    pid: int
    comm: str
    pinned_bytes: int


class BookEvent:
    """Something that has happened in the book at `now`, in seconds.

    `by`: holder, death, close, root, policy, kill, cluster. `why`: the reason of a refusal, of a withdrawal, of a
    revocation by the cluster, or the limit. `mapped_by`: the processes that are known to map what a removal waited for
    in the kernel.
    """

    __slots__ = ("breaking", "by", "kind", "mapped_by", "now", "pin", "removal", "why")

    def __init__(
        self,
        kind: EventKind,
        now: float,
        pin: Pin | None = None,
        removal: Removal | None = None,
        breaking: Break | None = None,
        *,
        by: str | None = None,
        why: str | None = None,
        mapped_by: tuple[Mapper, ...] = (),
    ) -> None:
        self.kind: EventKind = kind
        self.now = now
        self.pin = pin
        self.removal = removal
        self.breaking = breaking
        self.by = by
        self.why = why
        self.mapped_by = mapped_by
