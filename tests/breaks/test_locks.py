"""What goes on while a breaker waits, and what the kernel holds back (docs/semantics.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import acts as common
from support.actor import eventually
from support.mounts import Mount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE
from breaks.conftest import PATIENT
from breaks.seeing import Channel, pin_of, waiting

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"
Call = tuple[Callable[..., Any], tuple[Any, ...]]

ON_THE_FILE: dict[str, Callable[[str], Call]] = {
    "getxattr": lambda d: (os.getxattr, (f"{d}/f", "user.pinfs.pins")),
    "stat": lambda d: (os.stat, (f"{d}/f",)),
    "open, read and close": lambda d: (common.read_file, (f"{d}/f",)),
    "a store through a mapping": lambda d: (acts.operate, ("mmap_store", d)),
}
UNDER_ITS_LOCK: dict[str, Callable[[str], Call]] = {
    "setxattr": lambda d: (os.setxattr, (f"{d}/f", "trusted.other", b"1")),
    "chmod": lambda d: (os.chmod, (f"{d}/f", 0o600)),
    "write": lambda d: (acts.operate, ("write", d)),
    "truncate": lambda d: (os.truncate, (f"{d}/f", acts.SIZE)),
}
IN_ITS_DIRECTORY: dict[str, Callable[[str], Call]] = {
    "listing": lambda d: (os.listdir, (d,)),
    "creating": lambda d: (common.write_file, (f"{d}/created", b"")),
}
ELSEWHERE: dict[str, Callable[[str], Call]] = {
    "creating elsewhere": lambda d: (common.write_file, (f"{d}-elsewhere", b"")),
    "renaming elsewhere": lambda d: (os.rename, (f"{d}-elsewhere", f"{d}-renamed")),
}
GOES_ON = {
    "truncate": ON_THE_FILE | IN_ITS_DIRECTORY | ELSEWHERE,
    "punch_hole": ON_THE_FILE | IN_ITS_DIRECTORY | ELSEWHERE,
    "open_trunc": ON_THE_FILE | UNDER_ITS_LOCK | IN_ITS_DIRECTORY | ELSEWHERE,
    "unlink_last": ON_THE_FILE | ELSEWHERE,
    "rename_over": ON_THE_FILE | ELSEWHERE,
}
IS_HELD_BACK = {
    "truncate": UNDER_ITS_LOCK,
    "punch_hole": UNDER_ITS_LOCK,
    "open_trunc": {},
    "unlink_last": UNDER_ITS_LOCK | IN_ITS_DIRECTORY,
    "rename_over": UNDER_ITS_LOCK | IN_ITS_DIRECTORY,
}


@pytest.mark.parametrize("operation", GOES_ON)
def test_what_goes_on_and_what_is_held_back(patient: Mount, file: Path, operation: str) -> None:
    patient.policy(PATIENT + 'unlink = "break"')
    (file.parent / "new").write_bytes(ORIGINAL)
    holder, breaker = patient.actor(), patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    pin = pin_of(patient, file)["id"]
    breaking = breaker.start(acts.operate, operation, str(file.parent))
    waiting(patient)
    eventually(lambda: breaking.state() == "S")  # it can be interrupted
    for name, call in GOES_ON[operation].items():
        function, args = call(str(file.parent))
        assert patient.actor().errno(function, *args) is None, name
    held_back = []
    for call in IS_HELD_BACK[operation].values():
        function, args = call(str(file.parent))
        held_back.append(patient.actor().start(function, *args))
    for pending in held_back:
        eventually(lambda pending=pending: pending.state() == "D")  # type: ignore[misc]
    assert channel.tell(f"release {pin}") is None
    assert breaking.error() is None
    for pending in held_back:
        pending.error()
