"""A GPU reads and writes a file of the mount: pytest -m gpu -s tests/devices (docs/devices.md has the results).

It takes an NVIDIA GPU, its driver and libcudart, root, /dev/fuse, and 4 GiB of memory; PyTorch is used where it is
installed. Elsewhere each test is skipped with the reason: pages that a real device holds are what is tested here.
tests/client/test_mounted_registered.py has the same rules with io_uring as the device.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib.util
import json
import mmap
import os
import platform
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.actor import Actor, eventually
from support.mounts import REPO, Mount

import pinfs
from devices.gpu import FROM_DEVICE, RUNS, SIZE, TO_DEVICE, Gpu, card, seconds
from pinfs.client.cuda import CudaError

pytestmark = pytest.mark.gpu
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPO, REPO / "tests", *sys.path)))}
SLOW_BUT_MAPPED, AS_FAST = 0.5, 0.9


@pytest.fixture
def file(gpu: Gpu, shared_mount: Mount, shared_dir: Path) -> Iterator[Path]:
    assert shared_mount.status()["passthrough"], "without passthrough there are no pages that a device can hold"
    yield sparse(shared_dir / "file")
    (shared_dir / "file").unlink(missing_ok=True)


@pytest.fixture
def elsewhere(gpu: Gpu, base: Path) -> Path:
    """A file on tmpfs, not on the mount."""
    return sparse(base / "file")


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


def sparse(path: Path) -> Path:
    path.touch()
    os.truncate(path, SIZE)
    return path


def both_ways(gpu: Gpu, address: int) -> tuple[float, float]:
    return gpu.speed(address, SIZE, TO_DEVICE), gpu.speed(address, SIZE, FROM_DEVICE)


def mapped(gpu: Gpu, file: Path) -> tuple[float, float]:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), SIZE) as memory:
        return both_ways(gpu, ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def registered(gpu: Gpu, file: Path) -> tuple[float, float]:
    with pinfs.register(file, gpu.runtime.registrar(gpu.wait), missing_ok=True) as registration:
        return both_ways(gpu, registration.address)


def page_locked(gpu: Gpu) -> tuple[float, float]:
    memory = gpu.page_locked(SIZE)
    try:
        return both_ways(gpu, memory.value or 0)
    finally:
        gpu.runtime.call("cudaFreeHost", memory)


def test_registered_memory_of_the_mount_is_as_fast_as_page_locked_memory(gpu: Gpu, file: Path, elsewhere: Path) -> None:
    rows = {
        "anonymous, page-locked": page_locked(gpu),
        "file on tmpfs, mapped": mapped(gpu, elsewhere),
        "file on tmpfs, registered": registered(gpu, elsewhere),
        "file on the mount, mapped": mapped(gpu, file),
        "file on the mount, registered": registered(gpu, file),
    }
    print(f"\n{card()}, Linux {platform.release()}; {SIZE >> 20} MiB, GB/s, medians of {RUNS}")
    print("| host memory | to the device | from the device |\n|---|---|---|")
    for name, (to, back) in rows.items():
        print(f"| {name} | {to:.1f} | {back:.1f} |")
    for way in (0, 1):
        fast, slow = rows["file on the mount, registered"][way], rows["file on the mount, mapped"][way]
        assert fast >= AS_FAST * rows["anonymous, page-locked"][way]
        assert fast >= AS_FAST * rows["file on tmpfs, registered"][way]
        assert slow <= SLOW_BUT_MAPPED * fast


def test_the_time_to_register_and_to_let_go(gpu: Gpu, file: Path) -> None:
    file.write_bytes(b"\1" * SIZE)  # pages that are there: what is measured is the pinning
    begun = time.perf_counter()
    registration = pinfs.register(file, gpu.runtime.registrar(gpu.wait))
    taken = time.perf_counter() - begun
    let_go = seconds(registration.release)
    print(f"\npin, map and register {SIZE >> 20} MiB: {taken * 1e3:.0f} ms; let go: {let_go * 1e3:.0f} ms")


def test_a_deny_pin_refuses_removals_and_what_the_gpu_writes_arrives(gpu: Gpu, file: Path, breaker: Actor) -> None:
    gpu.fill(0x5A)
    stop = threading.Event()
    with pinfs.register(file, gpu.runtime.registrar(gpu.wait), mode="deny") as registration:

        def write() -> None:
            while not stop.is_set():
                with registration.copying() as address:
                    gpu.copy(address, SIZE, FROM_DEVICE)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
            punch = ["fallocate", "-p", "-o", "0", "-l", "4096", str(file)]
            assert subprocess.run(punch, check=False, capture_output=True).returncode != 0
        finally:
            stop.set()
            writer.join()
        with registration.copying() as address:
            gpu.copy(address, SIZE, FROM_DEVICE)
    assert holds_only(file, 0x5A)
    assert breaker.errno(os.truncate, str(file), 0) is None


def test_without_a_pin_what_the_gpu_writes_is_lost_without_an_error(gpu: Gpu, elsewhere: Path) -> None:
    gpu.fill(0x5A)
    with pinfs.register(elsewhere, gpu.runtime.registrar(gpu.wait), missing_ok=True) as registration:
        os.truncate(elsewhere, 0)
        os.truncate(elsewhere, SIZE)
        gpu.copy(registration.address, SIZE, FROM_DEVICE)
    assert holds_only(elsewhere, 0)


def test_a_break_waits_for_the_stream_and_unregisters(gpu: Gpu, file: Path, breaker: Actor) -> None:
    calls: list[tuple[str, float]] = []
    plain = gpu.runtime.registrar(gpu.wait)

    def quiesce() -> None:
        calls.append(("break", time.perf_counter()))
        gpu.wait()
        calls.append(("quiet", time.perf_counter()))

    def unregister(address: int) -> None:
        plain.unregister(address)
        calls.append(("unregistered", time.perf_counter()))

    registration = pinfs.register(file, pinfs.Registrar(plain.register, unregister, quiesce))
    with registration.copying() as address:
        for _ in range(20):
            gpu.queue(address, SIZE, FROM_DEVICE)
    begun = time.perf_counter()
    breaker(os.truncate, str(file), 0)
    ended = time.perf_counter()
    assert registration.wait(20)
    assert [name for name, _ in calls] == ["break", "quiet", "unregistered"]
    assert calls[-1][1] <= ended
    gpu.runtime.call("cudaStreamQuery", gpu.stream)  # cudaErrorNotReady would be raised
    assert file.stat().st_size == 0
    times = ", ".join(f"{name} after {(at - begun) * 1e3:.0f} ms" for name, at in [*calls, ("truncated", ended)])
    print(f"\n20 copies of {SIZE >> 20} MiB under way: {times}")


@pytest.mark.mount("break_timeout=1")
def test_while_the_gpu_is_busy_beyond_the_deadline_the_pin_stands(gpu: Gpu, mount: Mount) -> None:
    file = sparse(mount.path / "file")
    gpu.fill(0x5A)
    registration = pinfs.register(file, gpu.runtime.registrar(gpu.wait))
    with registration.copying() as address:
        for _ in range(150):
            gpu.queue(address, SIZE, FROM_DEVICE)
    begun = time.perf_counter()
    assert mount.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
    refused = time.perf_counter() - begun
    assert registration.pin.state() == "held"
    assert registration.wait(20)
    print(f"\nthe breaker is refused after {refused:.2f} s, all is let go after {time.perf_counter() - begun:.2f} s")
    assert holds_only(file, 0x5A)
    assert mount.actor().errno(os.truncate, str(file), 0) is None


def test_a_killed_process_leaves_no_pin(gpu: Gpu, file: Path, shared_mount: Mount, breaker: Actor) -> None:
    command = [sys.executable, str(REPO / "tests/devices/holder.py"), str(file)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert holder.stdout
    with holder, holder.stdout:
        assert holder.stdout.readline() == b"registered\n"
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
        begun = time.perf_counter()
        holder.kill()
        holder.wait()
    eventually(lambda: not shared_mount.pins())
    print(f"\nits end, and that of its pin, took {time.perf_counter() - begun:.2f} s")
    assert breaker.errno(os.truncate, str(file), 0) is None


@pytest.mark.parametrize(("options", "backing"), [(["passthrough=off"], "tmpfs"), ([], "disk")])
def test_where_the_kernel_pins_no_pages_the_library_says_so(
    gpu: Gpu, new_mount: Callable[..., Mount], options: list[str], backing: str
) -> None:
    mount = new_mount(*options, backing=backing)
    file = mount.path / "file"
    file.write_bytes(bytes(1 << 20))
    with pytest.raises(CudaError, match="cudaHostRegister") as refused:
        pinfs.register(file, gpu.runtime.registrar())
    print(f"\n{options} {backing} (passthrough {mount.status()['passthrough']}): {refused.value}")
    assert pinfs.pins(file) == []
    gpu.fill(0)  # the error stays with the call that failed


@pytest.mark.parametrize("by", ["torch", "plain"])
def test_the_example_loads_weights_and_loads_them_anew(gpu: Gpu, file: Path, base: Path, by: str) -> None:
    if by == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    digests = [write_weights(path, byte) for path, byte in ((file, b"\x07"), (base / "new", b"\x08"))]
    command = [sys.executable, str(REPO / "examples/gpu_weights.py"), str(file), "--check", "--reloads", "1"]
    server = subprocess.Popen(
        command + ["--plain"] * (by == "plain"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert server.stdout
    with server, server.stdout as lines:
        first = lines.readline()
        subprocess.run(["cp", base / "new", file], check=True)
        dropped, second = lines.readline(), lines.readline()
        assert server.wait(60) == 0
    print(f"\n{by}: {first}{dropped}{second}")
    assert dropped == "a removal began: unregistered, and the pin is released\n"
    assert [first.split()[-1], second.split()[-1]] == digests


def write_weights(path: Path, byte: bytes) -> str:
    """A safetensors file of 1 GiB with one tensor; returns the hash of its data."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [SIZE // 2], "data_offsets": [0, SIZE]}}).encode()
    data = byte * SIZE
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return hashlib.sha256(data).hexdigest()


def holds_only(file: Path, byte: int) -> bool:
    """Read by read(2), not through the mapping that the GPU wrote to."""
    block = bytes([byte]) * (64 << 20)
    with file.open("rb", buffering=0) as opened:
        return file.stat().st_size == SIZE and all(opened.read(len(block)) == block for _ in range(SIZE // len(block)))
