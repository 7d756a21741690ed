"""Real pins: pages of a file of the mount that fio has registered with io_uring, and that the kernel writes to.

fio's buffers lie inside FILE (`--iomem=mmapshared:FILE`); it reads a file of z's, so z's appear in FILE for as long as
the pinned pages are FILE's.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounted.world import run
from support.actor import eventually
from support.mounts import Mount

BUFFERS = 1 << 20
BUSY_TICKS = 5
"""1/100 s of processor time, thousands of requests in fio's loop."""


@pytest.fixture
def data(base: Path) -> Path:
    """What fio reads: on tmpfs, outside of the mount."""
    path = base / "data"
    path.write_bytes(b"z" * (4 << 20))
    return path


@contextmanager
def fio(buffers: Path, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A fio whose buffers are pinned pages of a file; it reads until the end of the block."""
    buffers.touch()
    os.truncate(buffers, BUFFERS)  # fio does not make the file as long as it needs it
    command = [
        "fio",
        "--name=reader",
        "--thread",
        "--ioengine=io_uring",
        "--fixedbufs=1",
        f"--iomem=mmapshared:{buffers}",
    ]
    command += [f"--filename={data}", "--rw=read", "--bs=64k", "--iodepth=8", "--time_based", "--runtime=600"]
    process = subprocess.Popen([*command, "--output-format=terse"], stdout=subprocess.PIPE)
    try:
        eventually(lambda: pinned_kib(process.pid) >= 512 and b"z" in buffers.read_bytes())
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def pinned_kib(pid: int) -> int:
    """The memory that the kernel says is pinned (proc_pid_status(5), VmPin)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields.get("VmPin", "0 kB").split()[0])


def works_on(process: subprocess.Popen[bytes]) -> None:
    """Returns when fio has done a good deal of work from now on."""
    begin = ticks(process.pid)
    eventually(lambda: ticks(process.pid) >= begin + BUSY_TICKS)


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_pinned_pages_stay_in_the_file(shared_mount: Mount, shared_dir: Path, data: Path) -> None:
    buffers = shared_dir / "buffers"
    with fio(buffers, data) as process:
        os.setxattr(buffers, "user.pinfs.pin.fio", f"0:0,pid={process.pid}".encode())
        assert run("truncate", "-s", "0", buffers).stderr.endswith("Device or resource busy\n")
        assert run("fallocate", "-p", "-o", "0", "-l", str(BUFFERS), buffers).stderr.endswith(
            "Device or resource busy\n"
        )
        with buffers.open("r+b", buffering=0) as opened:
            opened.write(bytes(BUFFERS))  # data may change in place, and the device goes on writing there
        works_on(process)
        assert b"z" in buffers.read_bytes()
    eventually(lambda: not shared_mount.pins())
    assert run("truncate", "-s", "0", buffers).returncode == 0


@pytest.mark.parametrize("place", ["mount without a pin", "tmpfs"])
def test_unpinned_pages_are_detached_without_a_word(shared_dir: Path, base: Path, data: Path, place: str) -> None:
    """What pinfs is there to prevent: the truncate succeeds, and what the device writes from then on is lost."""
    buffers = (base if place == "tmpfs" else shared_dir) / "buffers"
    with fio(buffers, data) as process:
        os.truncate(buffers, 0)
        os.truncate(buffers, BUFFERS)
        works_on(process)
        assert pinned_kib(process.pid) >= 512
        assert buffers.read_bytes() == bytes(BUFFERS)


def test_a_lease_lets_fio_end_before_the_truncate(shared_mount: Mount, shared_dir: Path, data: Path) -> None:
    """SIGTERM as the lease's signal is all that a program needs that knows nothing of pinfs: its end is its answer."""
    buffers = shared_dir / "buffers"
    with fio(buffers, data) as process:
        lease = f"0:0,mode=lease,signal=TERM,pid={process.pid}"
        os.setxattr(buffers, "user.pinfs.pin.fio", lease.encode())
        breaker = shared_mount.actor()
        cut = breaker.start(os.truncate, str(buffers), 0)
        process.wait(20)
        cut.result()
    assert buffers.stat().st_size == 0


def test_a_pin_is_needed_before_the_pages_not_after(shared_mount: Mount, shared_dir: Path) -> None:
    """Bytes that a removal is taking away can't be pinned any more (SPEC 3.1), so nobody registers what is going."""
    buffers = shared_dir / "buffers"
    buffers.write_bytes(bytes(BUFFERS))
    holder, breaker, late = (shared_mount.actor() for _ in range(3))
    holder.pin(buffers, "p", "0:4096,mode=lease,signal=none")
    fd = late(os.open, str(buffers), os.O_RDWR)
    with shared_mount.trace() as trace:
        opening = breaker.start(os.open, str(buffers), os.O_WRONLY | os.O_TRUNC)
        trace.until("break")
        assert (
            late.errno(os.setxattr, fd, "user.pinfs.pin.late", b"8192:4096") == errno.EOPNOTSUPP
        )  # EAGAIN: interfaces.md
        holder.release(buffers, "p")
        opening.result()


def reads_a_second(buffers: Path, data: Path) -> float:
    """How fast fio reads into pinned pages of `buffers`, in a run of 0.3 s."""
    with buffers.open("wb") as file:
        file.truncate(BUFFERS)
    command = ["fio", "--name=reader", "--thread", "--ioengine=io_uring", "--fixedbufs=1", "--output-format=json"]
    command += [f"--iomem=mmapshared:{buffers}", f"--filename={data}", "--rw=read", "--bs=64k", "--iodepth=8"]
    command += ["--time_based", "--runtime=300ms"]
    job = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["jobs"][0]
    return float(job["read"]["iops"])


def test_pinned_pages_of_a_mount_are_as_fast_as_those_of_tmpfs(shared_dir: Path, base: Path, data: Path) -> None:
    """Because they are the same pages. The best of runs in turns, since other programs can only slow one down; half of
    them would be enough to see another layer. Three runs of each say it on a quiet machine."""
    runs: list[tuple[float, float]] = []
    for _ in range(7):
        runs.append((reads_a_second(shared_dir / "buffers", data), reads_a_second(base / "buffers", data)))
        here, there = map(max, zip(*runs, strict=True))
        if len(runs) >= 3 and here >= 0.8 * there:  # 0.95 to 1.05 on a quiet machine
            return
    pytest.fail("; ".join(f"{here:.0f} reads a second on the mount, {there:.0f} on tmpfs" for here, there in runs))
