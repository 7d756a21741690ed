"""Huge pages below the mount: a tmpfs with huge=always has them, hugetlbfs cannot be served (docs/devices.md)."""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices.guest import Guest, firmware
from facts.raw import RawFuse
from mounted.world import mounted, run
from support import acts
from support.mounts import REPO, Mount, fresh_mount
from support.uring import Ring

import pinfs

PAGE = 4096
HUGE = 2 << 20
SIZE = 4 * HUGE
KEEP_SIZE, PUNCH_HOLE = 1, 2


@pytest.fixture(scope="module")
def _huge_mount(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    if not Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").exists():
        pytest.skip("this kernel has no transparent huge pages")
    where = tmp_path_factory.mktemp("huge")
    with mounted("huge", where, "tmpfs", "huge=always,size=64m") as source, fresh_mount(source=source) as mount:
        yield mount


@pytest.fixture
def mount(_huge_mount: Mount) -> Iterator[Mount]:
    with _huge_mount.lent() as mount:
        yield mount


@pytest.fixture
def below(mount: Mount) -> Path:
    """A file of huge pages in the source, written there: a machine that has none free makes it of small ones."""
    below = mount.source / mount.new_dir().name / "file"
    below.write_bytes(b"x" * SIZE)
    if huge_kib(below) != SIZE >> 10:
        pytest.skip("the memory of this machine is too fragmented for huge pages")
    return below


@pytest.fixture
def file(mount: Mount, below: Path) -> Path:
    """The same file on the mount."""
    return mount.path / below.relative_to(mount.source)


def huge_kib(path: Path) -> int:
    """How much of the file a new mapping has by huge pages (proc_pid_smaps(5), ShmemPmdMapped)."""
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        assert all(mapping[at] for at in range(0, SIZE, PAGE))
        return mapped_huge_kib("self", path)


def mapped_huge_kib(process: int | str, path: Path) -> int:
    """The same of a process's mapping, as far as it has been touched."""
    _, _, rest = Path(f"/proc/{process}/smaps").read_text().partition(f" {path}\n")
    return int(rest.partition("ShmemPmdMapped:")[2].split()[0])


def test_a_mapping_of_the_mount_has_the_huge_pages_of_the_source(file: Path) -> None:
    """It is the source's own, and the kernel chose an address that is a multiple of their size."""
    assert huge_kib(file) == SIZE >> 10


def test_a_pin_is_as_exact_as_on_small_pages(mount: Mount, file: Path, below: Path) -> None:
    """A punch beside the pin goes through, within the same huge page as well, and takes no pinned byte."""
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "p", f"{HUGE}:{PAGE}")
    fd = breaker(os.open, str(file), os.O_RDWR)
    for offset, result in ((HUGE, errno.EBUSY), (0, None), (HUGE + PAGE, None)):
        assert breaker.errno(acts.fallocate, fd, PUNCH_HOLE | KEEP_SIZE, offset, PAGE) == result
    assert breaker.errno(os.ftruncate, fd, HUGE) == errno.EBUSY
    data = below.read_bytes()
    assert data[HUGE - PAGE : HUGE + 3 * PAGE] == b"x" * 2 * PAGE + bytes(PAGE) + b"x" * PAGE
    assert data[:PAGE] == bytes(PAGE)


@pytest.mark.usefixtures("installed")
def test_a_guest_has_huge_pages(file: Path, tmp_path: Path) -> None:
    """qemu maps RAM at addresses of its own choice, which the example has it align."""
    with Guest(["sh", REPO / "examples/guest_ram.sh", file, f"{SIZE >> 20}M"], firmware(tmp_path)) as guest:
        assert mapped_huge_kib(guest.process.pid, file) >= HUGE >> 10


def test_registered_huge_pages_stay_in_the_file(mount: Mount, file: Path, below: Path) -> None:
    """io_uring pins them for long, while another program punches the small page beside the pin."""
    breaker = mount.actor()
    with Ring() as ring:
        registrar = pinfs.Registrar(ring.register, ring.unregister, lambda: None)
        registration = pinfs.register(file, registrar, 0, HUGE + PAGE)
        fd = breaker(os.open, str(file), os.O_RDWR)
        breaker(acts.fallocate, fd, PUNCH_HOLE | KEEP_SIZE, HUGE + PAGE, PAGE)
        with registration.copying():
            registration.memory[HUGE : HUGE + 5] = b"store"
        assert below.read_bytes()[HUGE:][: PAGE + 1] == b"store" + b"x" * (PAGE - 5) + b"\0"
        breaker(os.ftruncate, fd, 0)
        assert registration.wait(20)


# --- hugetlbfs


@pytest.fixture
def hugetlbfs(root: None, base: Path) -> Iterator[Path]:
    """Without reserved pages: none of these tests comes so far that it needs one."""
    with mounted("none", base / "hugetlbfs", "hugetlbfs") as path:
        yield path


def test_hugetlbfs_is_refused_with_what_to_use_instead(hugetlbfs: Path, base: Path) -> None:
    point = base / "point"
    point.mkdir()
    refused = run(sys.executable, REPO / "mount.py", hugetlbfs, point)
    assert refused.returncode == 6
    assert f"the source {hugetlbfs} cannot be served: hugetlbfs has neither passthrough nor write(2)" in refused.stderr
    assert "use a tmpfs with huge=always" in refused.stderr


def test_the_doctor_says_so(hugetlbfs: Path) -> None:
    findings = json.loads(run(sys.executable, "-m", "pinfs.cli.main", "doctor", hugetlbfs, "--json").stdout)["findings"]
    (finding,) = [finding for finding in findings if finding["check"] == "backing"]
    assert finding["level"] == "fail"
    assert finding["fix"].startswith("mount -t tmpfs -o huge=always")


def test_the_kernel_keeps_passthrough_and_writes_from_hugetlbfs(hugetlbfs: Path, base: Path) -> None:
    with RawFuse(base, passthrough=True) as raw, (hugetlbfs / "f").open("w+b", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            raw.backing_open(file.fileno())
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            file.write(b"x")
