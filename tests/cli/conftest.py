"""Verbs run in this process, against a fake mount, with a pipe or a terminal for stdout."""

import os
import pty
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cli.fakemount import FakeMount
from click.testing import CliRunner, Result

from pinfs.cli.main import cli
from pinfs.linux import mountinfo


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table of mounts that the verbs read."""
    path = tmp_path / "mountinfo"
    path.write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(mountinfo, "PATH", str(path))
    return path


@pytest.fixture
def fake(tmp_path: Path, table: Path) -> FakeMount:
    mount = FakeMount(tmp_path / "a mount")
    table.write_text(table.read_text() + mount.row())
    return mount


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a verb; stdout is a pipe."""
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sequence[object]], str]]:
    """Run a verb with a terminal for stdout; returns what it wrote there."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run_there(arguments: Sequence[object]) -> str:
        with open(slave, "w", closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            cli.main([str(argument) for argument in arguments], prog_name="pinfs", standalone_mode=False)
        return os.read(master, 1 << 16).decode()

    yield run_there
    os.close(master)
    os.close(slave)
