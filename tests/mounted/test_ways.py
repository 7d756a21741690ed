"""Every way known to take bytes from a file, tried on a pinned one: the table in docs/promises.md."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import acts
from support.actor import Actor
from support.mounts import REPO, Mount, force_umount

pytestmark = pytest.mark.usefixtures("root")

SIZE = 1 << 16
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 0x01, 0x02, 0x08, 0x10, 0x20
NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP"}


class Trial:
    """A file that is pinned whole, on the mount or in the source, another file beside it, and a handle for writing and
    a mapping from before the pin."""

    path: Path
    other: Path

    def __init__(self, mount: Mount, holder: Actor, name: str, where: Path) -> None:
        made = mount.path / name
        made.write_bytes(b"A" * SIZE)
        (mount.path / f"{name}.other").write_bytes(b"o")
        self.path, self.other = where / name, where / f"{name}.other"
        self.before = os.open(self.path, os.O_RDWR)
        self.mapping = mmap.mmap(self.before, SIZE)
        self.witness = os.open(mount.source / name, os.O_RDONLY)
        holder.pin(made, "p", "0:0")

    def of(self, way: str) -> str:
        try:
            WAYS[way](self)
        except OSError as failure:
            said = NAMES.get(failure.errno or 0, errno.errorcode[failure.errno or 0])
        else:
            said = "done"
        if os.pread(self.witness, SIZE, 0) != b"A" * SIZE:
            return f"{said}, bytes lost"
        return "the name goes, the bytes stay" if said == "done" else said

    def close(self) -> None:
        self.mapping.close()
        os.close(self.before)
        os.close(self.witness)


WAYS: dict[str, Callable[[Trial], object]] = {
    "truncate": lambda on: os.truncate(on.path, 0),
    "ftruncate": lambda on: os.ftruncate(on.before, 100),
    "open with O_TRUNC": lambda on: os.open(on.path, os.O_WRONLY | os.O_TRUNC),
    "fallocate PUNCH_HOLE": lambda on: acts.fallocate(on.before, PUNCH | KEEP_SIZE, 0, 4096),
    "fallocate ZERO_RANGE": lambda on: acts.fallocate(on.before, ZERO, 0, 4096),
    "fallocate COLLAPSE_RANGE": lambda on: acts.fallocate(on.before, COLLAPSE, 0, 4096),
    "fallocate INSERT_RANGE": lambda on: acts.fallocate(on.before, INSERT, 0, 4096),
    "madvise MADV_REMOVE": lambda on: on.mapping.madvise(mmap.MADV_REMOVE, 0, 4096),
    "unlink": lambda on: os.unlink(on.path),
    "rename over it": lambda on: os.rename(on.other, on.path),
}


@contextmanager
def trials(mount: Mount, holder: Actor, place: str, where: Path) -> Iterator[dict[str, Trial]]:
    made = {way: Trial(mount, holder, f"{place}{number}", where) for number, way in enumerate(WAYS)}
    yield made
    for trial in made.values():
        trial.close()


def outcomes(mount: Mount) -> list[dict[str, str]]:
    holder = mount.actor()
    seen = []
    with (
        trials(mount, holder, "m", mount.path) as through,
        trials(mount, holder, "b", mount.source) as behind,
        trials(mount, holder, "d", mount.source) as dead,
    ):
        seen += [{way: trial.of(way) for way, trial in place.items()} for place in (through, behind)]
        mount.process.kill()
        mount.process.wait()
        force_umount(mount.path)
        mount.reap()
        seen.append({way: trial.of(way) for way, trial in dead.items()})
    return seen


def table(columns: list[dict[str, str]]) -> str:
    lines = [
        "| on a file with a deny pin | through the mount | in the source | in the source, the daemon dead |",
        "|---|---|---|---|",
    ]
    lines += [f"| {way} | {' | '.join(column[way] for column in columns)} |" for way in WAYS]
    return "\n".join(lines)


@pytest.mark.mount(backing="disk")
def test_the_table_of_all_ways(mount: Mount) -> None:
    text = table(outcomes(mount))
    assert "lost" not in text
    assert text in (REPO / "docs/promises.md").read_text(), f"the table in docs/promises.md is to be:\n{text}"
