"""What the book tells: each decision that concerns a holder, a breaker or the count."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pinfs.core.pins import Break, Pin
from pinfs.core.removals import Removal

EventKind: TypeAlias = Literal[
    "pinned", "break", "answered", "withdrawn", "released", "revoked", "kill", "refused", "proceeded", "limit"
]


@dataclass(slots=True, eq=False)
class BookEvent:
    """Something that has happened in the book at `now`, in seconds.

    `by`: holder, death, close, root, policy, kill. `why`: the reason of a refusal, of a withdrawal, or the limit.
    """

    kind: EventKind
    now: float
    pin: Pin | None = None
    removal: Removal | None = None
    breaking: Break | None = None
    by: str | None = None
    why: str | None = None
