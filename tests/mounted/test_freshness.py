"""Files that change in the source while the kernel caches their data, without passthrough."""

from __future__ import annotations

import os

import pytest
from support.mounts import Mount

WITHOUT_TIMEOUTS = "passthrough=off", "attr_timeout=0", "entry_timeout=0"


@pytest.mark.parametrize("new", [b"other", b"x", b"longer than before" * 1000])
@pytest.mark.mount("passthrough=off")
def test_a_file_that_was_rewritten_in_the_source_is_read_anew_by_the_next_open(mount: Mount, new: bytes) -> None:
    file, source = mount.path / "file", mount.source / "file"
    source.write_bytes(b"first")
    assert file.read_bytes() == b"first"
    times = source.stat()
    source.write_bytes(new)
    assert file.read_bytes() == new
    source.write_bytes(b"first")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    assert file.read_bytes() == b"first"


@pytest.mark.mount(*WITHOUT_TIMEOUTS)
def test_a_file_that_is_open_is_read_as_it_is(mount: Mount) -> None:
    source = mount.source / "file"
    source.write_bytes(b"first")
    with open(mount.path / "file", "rb", buffering=0) as reader:
        assert reader.read() == b"first"
        with source.open("ab") as log:
            log.write(b", and more")
        assert reader.read() == b", and more"
        source.write_bytes(b"other, and more")
        assert os.pread(reader.fileno(), 100, 0) == b"other, and more"
