"""Verbs run in this process, against a fake mount, with a pipe or a terminal for stdout."""

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cli.fakemount import FakeMount
from click.testing import CliRunner, Result

from pinfs.cli import screen
from pinfs.cli.main import cli
from pinfs.linux import mountinfo

LIMIT_S = 30.0


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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the verb waits between two readings; Ctrl-C comes at the third."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(screen, "LONG_S", 1000.0)  # however busy the machine is
    return waited


class Terminal:
    """What a verb in a process of its own shows on a terminal, and what is typed there."""

    def __init__(self, master: int, child: int) -> None:
        self._master = master
        self._pidfd = os.pidfd_open(child)
        self.child = child
        self._ended = False
        self.shown = ""

    def until(self, words: str) -> str:
        """All that was shown, once these words are. Fails unless they come within LIMIT_S."""
        while words not in self.shown:
            ready = select.select([self._master], [], [], LIMIT_S)[0]
            assert ready, f"no {words!r} in {self.shown!r}"
            self.shown += os.read(self._master, 1 << 16).decode(errors="replace")
        return self.shown

    def types(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Its exit status; `shown` is complete then."""
        while not select.select([self._pidfd], [], [], 0.0)[0]:
            if select.select([self._pidfd, self._master], [], [], LIMIT_S)[0] == []:
                os.kill(self.child, signal.SIGKILL)
            self._read()
        self._read()
        self._ended = True
        os.close(self._pidfd)
        _pid, status = os.waitpid(self.child, 0)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """For a test that has failed."""
        if not self._ended:
            os.kill(self.child, signal.SIGKILL)
            self.end()

    def _read(self) -> None:
        while select.select([self._master], [], [], 0.0)[0]:
            self.shown += os.read(self._master, 1 << 16).decode(errors="replace")


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sequence[str]], Terminal]]:
    """Start a verb with a terminal of 120 columns and 30 lines as its input and output."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "30")

    terminals: list[Terminal] = []

    def start(arguments: Sequence[str]) -> Terminal:
        child = os.fork()
        if child == 0:
            try:
                for standard in range(3):
                    os.dup2(slave, standard)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # it keeps no pipe of the test's from its end
                sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
                cli.main(list(arguments), prog_name="pinfs")
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            finally:
                os._exit(99)
        terminals.append(Terminal(master, child))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.kill()
    os.close(slave)
    os.close(master)
