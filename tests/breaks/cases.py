"""Which cases there are: the cross product, without what cannot make a difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .oracle import OPERATIONS, Case, Operation, Pinned, Rules

MODES = ("deny", "lease")
OWNERS = ("process", "handle")
HOLDERS = ("answers", "silent", "stopped", "dead", "own")
CONFLICTS = ("pin", "deny", "break")
ON_TIMEOUT = ("deny", "revoke", "kill")
OWN = ("deny", "allow")
UNLINK = ("defer", "deny", "break")
ERRNOS = ("EBUSY", "ETXTBSY")
PINS: tuple[Pinned | None, ...] = (None, *(Pinned(*way) for way in product(MODES, OWNERS, HOLDERS)))
ON_DISK = "zero_range"


@dataclass(frozen=True)
class Batch:
    """Cases that one policy text covers: the mount's own values, and for each directory a [[rule]]."""

    conflict: str
    on_timeout: str
    disk: bool = False

    @property
    def kills(self) -> bool:
        return self.on_timeout == "kill" and self.conflict != "deny"

    def cases(self) -> Iterator[Case]:
        for operation in OPERATIONS.values():
            if (operation.name == ON_DISK) is self.disk:
                for pinned, rules in product(PINS, self._rules(operation)):
                    yield Case(operation, pinned, rules)

    def _rules(self, operation: Operation) -> Iterator[Rules]:
        """What takes nothing is tried under the policies that differ most, the rest under all that can matter."""
        if not operation.takes:
            if self.conflict == self.on_timeout:  # once for the strictest
                yield Rules(self.conflict, "deny", self.on_timeout, "deny", "ETXTBSY")
            elif (self.conflict, self.on_timeout) == ("pin", "deny"):  # and for the default
                yield Rules()
            return
        for own, unlink, errno in product(OWN, UNLINK if operation.named else UNLINK[:1], ERRNOS):
            yield Rules(self.conflict, own, self.on_timeout, unlink, errno)


BATCHES = [Batch(*keys) for keys in product(CONFLICTS, ON_TIMEOUT)]
DISK_BATCHES = [Batch(*keys, disk=True) for keys in product(CONFLICTS, ON_TIMEOUT)]


def is_quick(case: Case) -> bool:
    """Whether the deadline of the break has to pass; elsewhere it must not, however busy the machine is."""
    return case.pinned is not None and case.pinned.holder in ("silent", "stopped")


def directory(case: Case) -> str:
    """The directory whose rule holds for a case."""
    rules = case.rules
    return f"{rules.own}-{rules.unlink}-{rules.errno}-{'quick' if is_quick(case) else 'patient'}"


def policy(batch: Batch, cases: list[Case], quick_s: float, patient_s: float) -> str:
    """The TOML text for a batch."""
    lines = [
        f'conflict = "{batch.conflict}"',
        f'on_timeout = "{batch.on_timeout}"',
        f"break_timeout = {patient_s}",
        "retry_after = 0",
    ]
    for name in sorted({directory(case) for case in cases}):
        own, unlink, errno, pace = name.split("-")
        lines += ["[[rule]]", f'path = "{name}/**"', f'own = "{own}"', f'unlink = "{unlink}"', f'errno = "{errno}"']
        lines += [f"break_timeout = {quick_s if pace == 'quick' else patient_s}"]
    return "\n".join(lines) + "\n"
