"""The table of docs/promises.md says what happens: every way to take a pinned byte, on real mounts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import NewMount
from support.mounts import umount

from breaks.promises import COMMAND, GENERATED, KINDS, MODES, NoDiskError, Results, block, results, rows
from breaks.removals import CONTENT, MOUNT, REMOVALS

NOT_HERE = ", pin or none"
"""In a cell: the kernel or the backing has no such operation. Other kernels and versions of mkfs have."""


@pytest.fixture(scope="module", params=KINDS)
def tried(fuse: None, root: None, request: pytest.FixtureRequest) -> Results:
    try:
        return results(request.param)
    except NoDiskError as failure:
        pytest.skip(str(failure))


def test_the_table_in_the_documentation_is_current(tried: Results) -> None:
    page = block(GENERATED.read_text()).splitlines(keepends=True)
    known = {tuple(_cells(row)[:2]): _cells(row)[2:] for row in page}
    for row in rows(tried):
        removal, cells = tuple(_cells(row)[:2]), _cells(row)[2:]
        pairs = [pair for pair in zip(known[removal], cells, strict=True) if NOT_HERE not in "".join(pair)]
        assert [old for old, _ in pairs] == [new for _, new in pairs], (removal, COMMAND)


def test_the_documentation_has_every_way() -> None:
    page = [tuple(_cells(row)[:2]) for row in block(GENERATED.read_text()).splitlines() if row.startswith("| ")]
    assert page[2:] == [(removal.text, removal.on) for removal in REMOVALS.values()], COMMAND


def test_without_a_pin_each_way_takes_the_page_or_is_not_there(tried: Results) -> None:
    """Otherwise a row would say nothing about pins."""
    unpinned = {trial: seen for trial, seen in tried.items() if trial.mode == "none"}
    assert {trial for trial, seen in unpinned.items() if seen.errno is None and not seen.changed} == set()
    assert [trial for trial, seen in unpinned.items() if seen.notified] == []


def test_no_system_call_on_the_mount_takes_a_pinned_page(tried: Results) -> None:
    """Whatever the table says."""
    through = {trial: seen for trial, seen in tried.items() if REMOVALS[trial.removal].where[trial.column] == MOUNT}
    pinned = {trial: seen for trial, seen in through.items() if trial.mode in MODES[1:] and trial.column == "mount"}
    assert [trial for trial, seen in pinned.items() if seen.changed] == []


def test_no_mount_option_of_the_backing_takes_a_page(base: Path, new_mount: NewMount) -> None:
    """As root, while the daemon lives: a smaller tmpfs, a read-only one, none at all."""
    backing = base / "backing"
    backing.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", backing], check=True)
    try:
        mount = new_mount(source=backing)
        (mount.path / "f").write_bytes(CONTENT)
        mount.actor().pin(mount.path / "f", "p", "0:0,mode=deny")
        for options in ("size=4k", "ro", "rw"):
            subprocess.run(["mount", "-o", f"remount,{options}", backing], check=False, stderr=subprocess.DEVNULL)
            assert (backing / "f").read_bytes() == (mount.path / "f").read_bytes() == CONTENT
        with pytest.raises(OSError, match="busy"):
            umount(backing)
        mount.stop()
    finally:
        umount(backing)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
