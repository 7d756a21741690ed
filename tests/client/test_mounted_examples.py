"""The examples, run as a reader of the documents would run them."""

import errno
import hashlib
import json
import os
import shutil
import struct
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

    def __init__(self, *command: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO), **environment},
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
        def __init__(self, *command: object, **environment: str) -> None:
            super().__init__(*command, **environment)
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
def fake_cudart(tmp_path: Path) -> dict[str, str]:
    """The environment of a program that finds a CUDA runtime loaded, and a GPU made of memory."""
    library = tmp_path / "libcudart_fake.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, REPO / "tests/support/fake_cudart.c"], check=True)
    return {"LD_PRELOAD": str(library)}


def safetensors(byte: bytes, count: int) -> tuple[bytes, str]:
    """A file with two tensors, and the hash of their data."""
    data = byte * count
    header = {
        "a": {"dtype": "F32", "shape": [count // 8], "data_offsets": [0, count // 2]},
        "b": {"dtype": "U8", "shape": [2, count // 4], "data_offsets": [count // 2, count]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data, hashlib.sha256(data).hexdigest()


def test_gpu_weights(run, file: Path, tmp_path: Path, fake_cudart: dict[str, str]) -> None:
    """With memory in place of a GPU; tests/devices has the GPU."""
    weights, digest = safetensors(b"\x07", SIZE)
    file.write_bytes(weights)
    server = run(sys.executable, EXAMPLES / "gpu_weights.py", file, "--plain", "--check", "--reloads", 1, **fake_cudart)
    first = server.line()
    assert first.startswith(f"serving 2 tensors, {SIZE} bytes, fetched at ")
    assert first.endswith(digest)
    assert [(pin.start, pin.length, pin.mode) for pin in pinfs.pins(file)] == [(len(weights) - SIZE, SIZE, "lease")]
    weights, digest = safetensors(b"\x08", SIZE // 2)
    (tmp_path / "new").write_bytes(weights)
    subprocess.run(["cp", tmp_path / "new", file], check=True)
    status, lines = server.end()
    assert status == 0
    assert lines[0] == "a removal began: unregistered, and the pin is released"
    assert lines[1].startswith(f"serving 2 tensors, {SIZE // 2} bytes")
    assert lines[1].endswith(digest)


def test_gpu_weights_of_numpy(run, file: Path, fake_cudart: dict[str, str]) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (25, 10), }"
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x05" * 1000)
    server = run(sys.executable, EXAMPLES / "gpu_weights.py", file, "--plain", "--check", "--reloads", 0, **fake_cudart)
    status, lines = server.end()
    assert status == 0
    assert lines[0].startswith("serving 1 tensors, 1000 bytes")
    assert lines[0].endswith(hashlib.sha256(b"\x05" * 1000).hexdigest())


def test_gpu_weights_without_a_gpu(file: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "gpu_weights.py", file, "--plain"],
        check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("gpu_weights: no ")
    assert len(result.stderr.splitlines()) == 1


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
