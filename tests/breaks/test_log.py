"""The log says of each removal that was refused or broke a pin: what, which bytes, by whom, and whose pin."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import Mount

from breaks import acts
from breaks.acts import INSIDE, PAGE
from breaks.conftest import PATIENT
from breaks.seeing import pin_of

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
DENY = f"{PAGE}:{PAGE}"
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"


def logged(mount: Mount, *wanted: str) -> None:
    """Returns when one line holds all of these."""
    eventually(lambda: any(all(word in line for word in wanted) for line in mount.log().splitlines()))


@pytest.mark.parametrize(
    ("policy", "value", "operation", "said"),
    [
        (PATIENT, DENY, "truncate", "refused (deny)"),
        (PATIENT, DENY, "unlink_last", "refused (deny)"),
        (PATIENT, LEASE, "ftruncate_nonblock", "refused (nonblock)"),
        (PATIENT, LEASE, "truncate", "waits for"),
        ("break_timeout = 0.1", LEASE, "punch_hole", "refused (timeout)"),
        ('break_timeout = 0.1\non_timeout = "revoke"', LEASE, "truncate", "is revoked (policy)"),
        ('break_timeout = 0.1\non_timeout = "kill"', LEASE, "truncate", "is killed"),
    ],
)
def test_each_conflict_has_its_line(
    patient: Mount, file: Path, policy: str, value: str, operation: str, said: str
) -> None:
    patient.policy(f'unlink = "deny"\n{policy}')
    holder, breaker = patient.actor(uid=1000), patient.actor()
    file.chmod(0o666)
    holder.pin(file, "p", value)
    pin = pin_of(patient, file)["id"]
    cut = breaker.start(acts.operate, operation, str(file.parent))
    op = {"ftruncate_nonblock": "truncate", "unlink_last": "unlink"}.get(operation, operation)
    start, end = {"unlink_last": (0, "end"), "punch_hole": (INSIDE, INSIDE + acts.HOLE)}.get(operation, (INSIDE, "end"))
    breaking = f"{op} of '{file.relative_to(patient.path)}' [{start}, {end}) by pid {breaker.pid} uid 0"
    held = f"pin {pin} [{PAGE}, {2 * PAGE}) of pid {holder.pid} uid 1000"
    if said.startswith("is "):
        logged(patient, held, said, f"for {op} of [{start}, {end})")
    else:
        logged(patient, breaking, said, held)
    if said == "waits for":
        holder.release(file, "p")
    cut.error()
