"""Whether seals work, found out by trying (SPEC 12)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinfs.bridge import sealprobe
from pinfs.bridge.passthrough import Passthrough
from pinfs.bridge.sealprobe import seal_unavailable_because

LIMIT_S = 30.0

pytestmark = pytest.mark.usefixtures("root", "fuse")


@pytest.fixture
def source(base: Path) -> Iterator[int]:
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    assert not [thread for thread in threading.enumerate() if "_open_root" in thread.name]
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("passthrough", [True, False])
def test_it_works_here(source: int, passthrough: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert seal_unavailable_because(source, passthrough=passthrough, stack_depth=1) == ""
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kernel_that_opens_no_sealed_file_for_writing(source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO, as Linux 7.3 answers: here since the handle passes through to nothing."""

    class PassesToNothing(Passthrough):
        def open(self, fd: int) -> int:
            return 0

    monkeypatch.setattr(sealprobe, "Passthrough", PassesToNothing)
    why = seal_unavailable_because(source, passthrough=True, stack_depth=1)
    assert why == "with passthrough, this kernel opens no sealed file for writing: Input/output error"


def test_a_probe_that_gets_no_answer_ends(source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealprobe, "LIMIT_S", 0.2)
    monkeypatch.setattr(sealprobe._Server, "_serve_one", lambda self: os.read(self._connection, 1 << 21))
    assert "opens no sealed file" in seal_unavailable_because(source, passthrough=True, stack_depth=1)


@pytest.mark.parametrize("directory", ["/proc", "/sys"])
def test_file_systems_without_the_flag(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "no nameless files" in seal_unavailable_because(fd, passthrough=False, stack_depth=1)
    finally:
        os.close(fd)


def test_without_the_capability(source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, flags: int) -> None:
        raise PermissionError(1, "refused by the test")

    monkeypatch.setattr(sealprobe, "set_flags", refuse)
    assert "CAP_LINUX_IMMUTABLE" in seal_unavailable_because(source, passthrough=False, stack_depth=1)


KILLED_IN_THE_PROBE = """
import os, signal, sys
from pinfs.bridge import sealprobe, wire

answer = os.write

def killed(fd, reply):
    if sys.argv[2] == "open" and len(reply) == wire.OUT_SIZE + wire.OPEN_OUT.size:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(fd, reply)

class Calls:  # of the module, in which the process ends where the answer to OPEN would be written
    write = staticmethod(killed)
    def __getattr__(self, name):
        return getattr(os, name)

sealprobe.os = Calls()
source = os.open(sys.argv[1], os.O_RDONLY)
print(sealprobe.seal_unavailable_because(source, passthrough=True, stack_depth=1))
"""


@pytest.mark.parametrize(("moment", "status"), [("open", -signal.SIGKILL), ("never", 0)])
def test_a_daemon_that_is_killed_in_it_ends(base: Path, source: int, moment: str, status: int) -> None:
    """The opener waits for an answer that never comes, and no signal ends that: the connection has to."""
    command = [sys.executable, "-c", KILLED_IN_THE_PROBE, str(base), moment]
    probe = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said, _ = probe.communicate(timeout=LIMIT_S)
    assert said == ("" if status else "\n")
    assert probe.returncode == status
