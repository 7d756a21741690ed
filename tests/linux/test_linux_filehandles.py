"""File handles (name_to_handle_at(2)), asked for by several threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinfs.linux.filehandles import handle_of

ROUNDS = 3000


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    """The interpreter changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_switches")
def test_each_thread_gets_the_handle_of_its_own_file(tmp_path: Path) -> None:
    """Threads look names up on remote sources, while the event loop tells other hosts the names of pinned files."""
    fds = [os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in "abcd"]
    try:
        right = [handle_of(fd) for fd in fds]
    except OSError:
        pytest.skip("this file system has no handles")
    wrong: list[bytes] = []

    def ask(fd: int, handle: bytes) -> None:
        for _ in range(ROUNDS):
            found = handle_of(fd)
            if found != handle:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(fds, right, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fd in fds:
        os.close(fd)
    assert len(set(right)) == len(fds)
    assert not wrong
