"""What pinfs knows of the machine: numbers, layouts, and the size of a page."""

import errno
import mmap
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinfs.bridge.negotiate import BUFFER_SIZE, MAX_WRITE, max_pages
from pinfs.bridge.wire import IN_SIZE
from pinfs.client import ioctl
from pinfs.linux import abi
from pinfs.linux import ioctl as numbers
from pinfs.linux.abi import PAGE_SIZE, UnsupportedABIError, mismatch_of, require_supported_abi

KERNEL_NUMBERS = {
    "FS_IOC_GETFLAGS": "linux/fs.h",
    "FS_IOC_SETFLAGS": "linux/fs.h",
    "FS_IOC_FSGETXATTR": "linux/fs.h",
    "FS_IOC_FSSETXATTR": "linux/fs.h",
    "FS_IOC_FIEMAP": "linux/fiemap.h",
    "FICLONE": "linux/fs.h",
}


def test_this_machine_is_known() -> None:
    require_supported_abi()
    assert platform.machine() in abi.KNOWN_MACHINES


@pytest.mark.parametrize(
    ("machine", "mismatch"),
    [
        (("linux", "x86_64", 8, "little"), ""),
        (("linux", "aarch64", 8, "little"), ""),
        (("linux", "i686", 8, "little"), ""),
        (("linux", "i686", 4, "little"), "32 bits"),
        (("linux", "x86_64", 4, "little"), "32 bits"),
        (("linux", "aarch64", 8, "big"), "big-endian"),
        (("linux", "ppc64le", 8, "little"), "ppc64le"),
        (("darwin", "arm64", 8, "little"), "darwin"),
    ],
)
def test_what_is_known(machine: tuple[str, str, int, str], mismatch: str) -> None:
    assert mismatch in mismatch_of(*machine)
    assert bool(mismatch) == bool(mismatch_of(*machine))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(abi, "KNOWN_MACHINES", frozenset({"vax"}))
    require_supported_abi.cache_clear()
    yield
    require_supported_abi.cache_clear()


def test_an_unknown_machine_is_an_error_and_no_wrong_struct(elsewhere) -> None:
    with open("/dev/null", "r+b") as file, pytest.raises(UnsupportedABIError, match="x86_64 and aarch64") as failure:
        ioctl.pin(file.fileno(), ioctl.PinRequest(0, 0, ioctl.DENY))
    assert failure.value.errno == errno.ENOTSUP


def test_nothing_is_mounted_on_an_unknown_machine(elsewhere, tmp_path: Path) -> None:
    import trio

    from pinfs.bridge.mount import MountError
    from pinfs.config.options import load
    from pinfs.serve.daemon import serve

    with pytest.raises(MountError, match="x86_64 and aarch64"):
        trio.run(serve, load([], None), str(tmp_path), str(tmp_path))


def test_the_page_of_this_machine() -> None:
    assert PAGE_SIZE == mmap.PAGESIZE == os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_a_request_carries_as_much_with_any_page_size(page_size: int) -> None:
    assert max_pages(page_size) * page_size == MAX_WRITE
    assert 1 <= max_pages(page_size) <= 256  # fs.fuse.max_pages_limit
    assert BUFFER_SIZE >= IN_SIZE + 40 + MAX_WRITE  # fuse_in_header, fuse_write_in and the bytes (fuse_dev_do_read)


def test_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    includes = "".join(f"#include <{header}>\n" for header in sorted(set(KERNEL_NUMBERS.values())))
    shows = "".join(f'printf("%lu\\n", (unsigned long){name});' for name in KERNEL_NUMBERS)
    source = tmp_path / "numbers.c"
    source.write_text(
        f"#include <stdio.h>\n#include <linux/ioctl.h>\n{includes}int main(void) {{ {shows} return 0; }}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "numbers", source], check=True)
    answer = subprocess.run([tmp_path / "numbers"], capture_output=True, check=True, text=True)
    assert [int(line) for line in answer.stdout.split()] == [getattr(numbers, name) for name in KERNEL_NUMBERS]


def test_numbers_of_fuse() -> None:
    """Not in older headers: _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, uint32_t)."""
    assert (numbers.FUSE_DEV_IOC_BACKING_OPEN, numbers.FUSE_DEV_IOC_BACKING_CLOSE) == (0x4010E501, 0x4004E502)


@pytest.mark.parametrize(("kind", "nr", "size"), [("P", 256, 0), ("P", 0, 1 << 14), (256, 0, 0), ("P", -1, 0)])
def test_what_is_no_ioctl(kind: str | int, nr: int, size: int) -> None:
    with pytest.raises(ValueError, match="not an ioctl"):
        numbers.iow(kind, nr, size)
