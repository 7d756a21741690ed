"""The examples, run as a reader of the documents would run them."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actor import Actor
from support.mounts import REPO, Mount

import pinfs

SIZE = 1 << 20
EXAMPLES = REPO / "examples"


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(b"\x2a" * SIZE)
    return path


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


class Program:
    """A running example whose lines a test reads one by one."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip()

    def end(self) -> tuple[int, list[str]]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output.splitlines()


@pytest.fixture
def run() -> Iterator[type[Program]]:
    programs: list[Program] = []

    class Kept(Program):
        def __init__(self, *command: object) -> None:
            super().__init__(*command)
            programs.append(self)

    yield Kept
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate()


def test_mmap_reader(run, file: Path, breaker: Actor) -> None:
    reader = run(sys.executable, EXAMPLES / "mmap_reader.py", file)
    assert reader.line().startswith(f"mapped {SIZE} bytes under pin ")
    breaker(os.truncate, str(file), 0)
    status, lines = reader.end()
    assert status == 0
    assert lines[0] == "truncate wants the bytes from 0 on"
    assert lines[1].startswith("unmapped after ")


def test_pin_range(run, file: Path, breaker: Actor, tmp_path: Path) -> None:
    program = tmp_path / "pin_range"
    subprocess.run(["gcc", "-I", REPO / "pinfs" / "include", "-o", program, EXAMPLES / "pin_range.c"], check=True)
    holder = run(program, file, 5000, 100)
    assert holder.line().startswith("pinned: id ")
    assert holder.line() == "mapped: the first byte is 0x2a"
    assert [(info.start, info.length, info.owner) for info in pinfs.pins(file)] == [(5000, 100, "handle")]
    breaker(os.truncate, str(file), 5050)
    status, lines = holder.end()
    assert status == 0
    assert lines[0].startswith("breaking: bytes from 5050 are wanted, ")
    assert lines[1] == "released"


def test_numpy_memmap(run, file: Path) -> None:
    pytest.importorskip("numpy")
    status, lines = run(sys.executable, EXAMPLES / "numpy_memmap.py", file).end()
    assert status == 0
    assert lines[-1].endswith(f"the sum is {43 * SIZE}")
    assert file.read_bytes() == b"\x2b" * SIZE
    assert pinfs.pins(file) == []


def test_weights_server(run, file: Path, tmp_path: Path) -> None:
    server = run(sys.executable, EXAMPLES / "weights_server.py", file, 1)
    first = server.line()
    assert first.startswith("serving ")
    (tmp_path / "new").write_bytes(b"\x07" * SIZE)
    subprocess.run(["cp", tmp_path / "new", file], check=True)
    status, lines = server.end()
    assert status == 0
    assert lines[0].endswith(": dropped the weights")
    assert lines[1].startswith("serving ") and lines[1].split()[1] != first.split()[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pinfs` on the PATH, as an installed package has it."""
    program = tmp_path / "pinfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pinfs.cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.usefixtures("installed")
def test_io_uring_fio(run, file: Path, shared_mount: Mount, breaker: Actor) -> None:
    if not shared_mount.status()["passthrough"]:
        pytest.skip("registered buffers inside a file take passthrough")
    buffers = file.with_name("buffers")
    with shared_mount.trace() as trace:
        fio = run("sh", EXAMPLES / "io_uring_fio.sh", buffers, 1)
        trace.until("pinned")
        assert breaker.errno(os.truncate, str(buffers), 0) == errno.EBUSY
        status, lines = fio.end()
    assert status == 0
    assert any(";registered;" in line for line in lines)
    assert breaker.errno(os.truncate, str(buffers), 0) is None
