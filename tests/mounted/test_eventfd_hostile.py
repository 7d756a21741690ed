"""What a program may name as an eventfd, so that the daemon would wait for it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NewMount
from mounted.test_eventfd_errors import ANY_WAY
from support.actor import Actor
from support.mounts import Mount


@pytest.fixture
def silent(new_mount: NewMount) -> Iterator[Mount]:
    """A file system of the user's own, whose server is about to be stopped. The kernel sends it a FLUSH at the first
    close(2) of any of its files (and none to pinfs with its bridge)."""
    mount = new_mount("bridge=off")
    (mount.source / "file").touch()
    yield mount
    mount.process.send_signal(signal.SIGCONT)


@ANY_WAY
def test_a_file_whose_server_is_silent(
    mount: Mount, silent: Mount, name_it: Callable[[Actor, Path, int], None]
) -> None:
    """close(2) of it would wait for the server (fuse_flush())."""
    file, holder = mount.path / "directory" / "file", mount.actor()
    file.parent.mkdir()
    file.write_bytes(b"x")
    fd = holder(os.open, str(silent.path / "file"), os.O_RDWR)
    silent.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OSError) as refused:
        name_it(holder, file, fd)
    assert refused.value.errno == errno.EINVAL
    assert mount.status()["pins"] == 0
