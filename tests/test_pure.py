"""Where modules are compiled, PINFS_PURE=1 runs their sources, in each process of a mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NewMount
from support.actor import eventually
from survival.surviving import surviving

import pinfs.bridge.dispatch
from pinfs.pure import is_compiled

PACKAGE = Path(pinfs.__file__).parent
HAS_EXTENSIONS = any((PACKAGE / "bridge").glob("channel.*.so"))
TOLD = """
import sys
from pinfs.pure import is_compiled
early = is_compiled()
import pinfs.serve.daemon
assert is_compiled() is early
files = [module.__file__ or "" for name, module in sys.modules.items() if name.startswith("pinfs.")]
print(early, sum(file.endswith(".so") for file in files))
"""

modes = pytest.mark.parametrize("pure", ["", "1"], ids=["as it is", "pure"])


def mapped(pid: int) -> set[str]:
    """The compiled modules of pinfs in a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = (Path(line.split(maxsplit=5)[-1]) for line in lines)
    return {path.name.partition(".")[0] for path in paths if path.suffix == ".so" and path.is_relative_to(PACKAGE)}


def is_right(pid: int, pure: str) -> bool:
    return bool(mapped(pid)) is (HAS_EXTENSIONS and not pure)


@modes
def test_a_process_runs_one_kind(pure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINFS_PURE", pure)
    told = subprocess.run([sys.executable, "-c", TOLD], check=True, text=True, capture_output=True).stdout.split()
    compiled = HAS_EXTENSIONS and not pure
    assert told[0] == str(compiled)
    assert (told[1] != "0") is compiled


def test_this_process_says_which_it_is() -> None:
    assert is_compiled() is bool(mapped(os.getpid())) is (HAS_EXTENSIONS and not os.environ.get("PINFS_PURE"))


@modes
def test_a_program_loads_nothing_for_it(pure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What imports pinfs as a client pays for the question only where it is asked."""
    monkeypatch.setenv("PINFS_PURE", pure)
    program = "import pinfs, sys; print('pinfs.pure' in sys.modules, any('bridge' in name for name in sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], check=True, text=True, capture_output=True).stdout
    assert told.split() == [str(bool(pure)), "False"]


@modes
def test_a_mount_runs_one_kind(pure: str, new_mount: NewMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINFS_PURE", pure)
    mount = new_mount()
    assert is_right(mount.pid, pure)


@modes
def test_the_next_daemon_is_of_the_same_kind(
    root: None, fuse: None, pure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINFS_PURE", pure)
    with surviving("tmpfs", ()) as mount:
        assert is_right(mount.status()["pid"], pure)
        killed = mount.kill()
        assert killed
        eventually(lambda: mount.daemon not in (0, killed))
        heir = mount.status()["pid"]
        assert heir != killed
        assert is_right(heir, pure)
