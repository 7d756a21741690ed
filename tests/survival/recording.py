"""Records the journal of a daemon at work, for versions to come: `python -m survival.recording` in tests/, as root.

A recording is JSON: the journal itself, the layout of its records, what lay in the source, which processes used it, and
what the daemon said of its pins. `survival.replaying` takes over from it.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import struct
import zlib
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from support import acts
from support.actor import Actor, Actors, eventually

from pinfs.client import ioctl
from pinfs.journal import records, slots
from pinfs.journal.slots import VERSION

from .surviving import Surviving, journal_fd, surviving

RECORDED = Path(__file__).with_name("recorded")
LONG = "n" * 100
NAMES = 300
POLICY = """
break_timeout = 600
[[rule]]
path = "silent"
break_timeout = 0.1
retry_after = 3600
"""


def path_of(version: int) -> Path:
    return RECORDED / f"version-{version}.json"


# Layouts


def layout() -> dict[str, Any]:
    """How this version lays out a journal: all that a reader of it has to know, by name."""
    found: dict[str, Any] = {}
    for module in (slots, records):
        for name, value in vars(module).items():
            if isinstance(value, struct.Struct):
                found[name] = value.format
            elif isinstance(value, type) and issubclass(value, IntEnum) and value is not IntEnum:
                found |= {f"{name}.{member.name}": int(member) for member in value}
            elif isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
                found[name] = list(value._fields)
            elif name.strip("_").isupper() and type(value) is int and name not in NO_LAYOUT:
                found[name] = value
    return found


NO_LAYOUT = {"VERSION", "COLLECTED_AT_ONCE", "CHUNK_SLOTS", "MAX_SLOTS", "MAX_TEXT", "SLOT_NUMBER", "SLOT_NUMBER_BITS"}
"""Numbers that say how much there may be, not where it lies."""


# Recording


class Cast(NamedTuple):
    """Those that use the mount."""

    holder: Actor
    reader: Actor
    breaker: Actor
    opener: Actor

    @property
    def pids(self) -> dict[str, int]:
        return {name: actor.pid for name, actor in self._asdict().items()}


def play(mount: Surviving, cast: Cast) -> None:
    """Something of each kind that a journal holds."""
    root = mount.path
    (root / "directory" / LONG).mkdir(parents=True)
    (root / "many").mkdir()
    for number in range(NAMES):
        (root / "many" / f"{number:03}-{'m' * 50}").touch()
    for name in ("file", "left", "leased", "opened", "silent", "removed", f"directory/{LONG}/deep"):
        (root / name).write_bytes(b"x" * 8192)
    (root / "link").symlink_to("file")
    os.link(root / "file", root / "directory" / "other")
    os.link(root / "file", root / "directory" / LONG / LONG)
    holder, reader, breaker, opener = cast
    reader(os.open, str(root / ".pinfs/trace"), os.O_RDONLY | os.O_NONBLOCK)
    holder(os.open, str(root / ".pinfs/events"), os.O_RDONLY | os.O_NONBLOCK)
    holder.pin(root / "file", "short", "0:4096")
    holder.pin(root / "file", "long" * 12, "4096:4096,mode=lease,signal=none,dirty=yes,note=of the record")
    told = holder(os.eventfd, 0)
    holder.pin(root / "directory" / LONG / "deep", "told", f"0:0,mode=lease,signal=none,eventfd={told}")
    pinned = reader(os.open, str(root / "file"), os.O_RDWR)
    reader(acts.ioctl, pinned, ioctl.PIN, ioctl.PinRequest(0, 10, ioctl.DENY, note=b"of a handle").pack())
    removed = reader(os.open, str(root / "removed"), os.O_RDWR)
    os.unlink(root / "removed")
    reader(os.fstat, removed)
    reader(os.open, str(root), os.O_TMPFILE | os.O_RDWR, 0o600)
    reader(acts.list_some, str(root / "many"))
    reader.pin(root / "silent", "silent", "0:0,mode=lease,signal=none")
    assert breaker.errno(os.truncate, str(root / "silent"), 0)
    for name in ("left", "leased", "opened"):
        holder.pin(root / name, name, "0:0,mode=lease,signal=none")
    assert breaker.errno(os.open, str(root / "left"), os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK) == errno.EAGAIN
    breaker.start(os.truncate, str(root / "leased"), 0)
    opener.start(os.open, str(root / "opened"), os.O_WRONLY | os.O_TRUNC)
    eventually(lambda: mount.status()["waiting"] == 2)


def record() -> dict[str, Any]:
    """A recording of this version."""
    actors = Actors()
    with surviving("tmpfs", ("passthrough=off",), ends=False) as mount:
        mount.policy(POLICY)
        cast = Cast(*(actors.actor() for _ in Cast._fields))
        play(mount, cast)
        pins = mount.pins()
        with mount.gap():
            fd = os.open(journal_fd(mount.keeper), os.O_RDONLY)
            image = _used(fd)
            os.close(fd)
            source = {_key(path.lstat()): _kind(path) for path in (mount.source, *mount.source.rglob("*"))}
            names = {str(p.relative_to(mount.source)): _key(p.lstat()) for p in mount.source.rglob("*")}
        recording = {
            "version": VERSION,
            "layout": layout(),
            "journal": base64.b64encode(zlib.compress(image, 9)).decode(),
            "source": source,
            "names": names,
            "root": _key(mount.source.lstat()),
            "processes": cast.pids,
            "pins": pins,
        }
        for actor in cast:
            actor.kill()
    return recording


def _used(fd: int) -> bytes:
    """Of the journal, without what was never used."""
    return os.pread(fd, os.fstat(fd).st_size, 0).rstrip(b"\0")


def _key(st: os.stat_result) -> str:
    return f"{st.st_dev}:{st.st_ino}"


def _kind(path: Path) -> str:
    return "link" if path.is_symlink() else "directory" if path.is_dir() else "file"


def main() -> None:
    recording = record()
    path_of(VERSION).write_text(json.dumps(recording, indent=0, sort_keys=True) + "\n")
    print(f"{path_of(VERSION)}: {len(recording['pins'])} pins, {len(recording['journal'])} characters of journal")


if __name__ == "__main__":
    main()
