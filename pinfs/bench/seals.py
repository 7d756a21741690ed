"""What a seal costs: rows that come twice, on a file that the mount seals and on one that it does not.

A rule of the policy makes the difference, for the row's own directory, and is taken back after the row.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from pinfs.bench.pins import pin_release, pin_truncate, pinned
from pinfs.bench.places import Place, Room, mount_of, pinfs_status
from pinfs.bench.rows import Batch, Prepare, Rows, Skip, us_each

rows: Final = Rows()
SEALED: Final = "sealed"
UNSEALED: Final = "no seal"
_SEAL: Final = {SEALED: "auto", UNSEALED: "off"}


def pairs(name: str, prepare: Prepare, calls: int) -> None:
    """Two rows that differ in the seal alone."""
    for how, seal in _SEAL.items():
        rows.row("seal", row_name(name, how), calls)(partial(_with_rule, prepare, seal))


def row_name(name: str, how: str) -> str:
    """Of the row that measures `name` SEALED or UNSEALED."""
    return f"{name}, {how}"


def _with_rule(prepare: Prepare, seal: str, room: Room, calls: int) -> Iterator[Batch]:
    with rule(room, seal):
        yield from prepare(room, calls)


@contextmanager
def rule(room: Room, seal: str) -> Iterator[None]:
    """Files in the room are sealed (`auto`) or not (`off`), whatever the mount's policy. Skip: that cannot be had."""
    if not room.place.pinfs:
        yield
        return
    control = _control(room.place)
    before = control.read_text()
    ours = f'{before}\n[[rule]]\npath = "**/{os.path.basename(room.path)}/**"\nseal = "{seal}"\n'
    try:
        control.write_text(ours)
    except PermissionError:
        raise Skip("only root may change the policy") from None
    in_force = control.read_text()
    try:
        yield
    finally:
        if control.read_text() == in_force:
            control.write_text(before)


def _control(place: Place) -> Path:
    mount = mount_of(place.path)
    status = pinfs_status(mount)
    if not status.get("seal"):
        raise Skip(f"no seals: {status.get('seal_unavailable_because')}")
    return Path(mount.point, ".pinfs/policy")


def open_pinned(room: Room, calls: int) -> Iterator[Batch]:
    def open_and_close(path: str) -> None:
        os.close(os.open(path, os.O_RDWR))

    with pinned(room):
        yield lambda: us_each(open_and_close, [f"{room.path}/file"] * calls)


def chmod_pinned(room: Room, calls: int) -> Iterator[Batch]:
    with pinned(room):
        yield lambda: us_each(partial(os.chmod, f"{room.path}/file"), [0o600, 0o640] * (calls // 2))


pairs("pin + release", pin_release, 500)
pairs("ftruncate beside a pin", pin_truncate, 500)
pairs("open of a pinned file for writing", open_pinned, 500)
pairs("chmod of a pinned file", chmod_pinned, 500)
