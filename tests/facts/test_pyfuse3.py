"""What pyfuse3 does, as far as `bridge=off` and the reasons for the bridge depend on it (docs: kernel facts)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyfuse3
import pytest
from facts import raw as fuse
from facts.raw import RawFuse
from facts.tiny import Tiny, inode_of
from support import acts
from support.actor import eventually, where

MISSING = ("fallocate", "ioctl", "lseek", "copy_file_range", "tmpfile", "syncfs", "statx", "interrupt")


@pytest.mark.parametrize("name", MISSING)
def test_it_has_no_handler_for(name: str) -> None:
    """Each is a reason for the bridge. When one of these fails, `bridge=off` can serve what it tells of."""
    assert not hasattr(pyfuse3.Operations, name)


def test_o_trunc_arrives_in_open_and_no_setattr_follows(tiny: Tiny) -> None:
    caller = tiny.actor()
    fd = caller(os.open, tiny.name, os.O_RDWR | os.O_TRUNC)
    assert tiny.until("open").value & os.O_TRUNC
    caller(os.ftruncate, fd, 77)
    assert tiny.until("setattr").value == 77  # the first setattr of all is this one
    assert [call.name for call in tiny.seen].count("setattr") == 1


def test_fallocate_and_ioctl_fail_without_reaching_the_daemon(tiny: Tiny) -> None:
    caller = tiny.actor()
    fd = caller(os.open, tiny.name, os.O_RDWR)
    assert caller.errno(acts.fallocate, fd, 3, 0, 4096) == errno.EOPNOTSUPP
    assert caller.errno(acts.ioctl, fd, 0x5001, b"") == errno.ENOTTY


def test_an_unexpected_exception_ends_the_mount(tiny: Tiny) -> None:
    """So every handler needs the one boundary that turns it into EIO."""
    assert tiny.actor().errno(os.open, str(tiny.path / "broken"), os.O_RDONLY) is not None
    assert tiny.process.wait(fuse.LIMIT_S) != 0


def test_the_pid_of_a_context_is_a_thread_id(tiny: Tiny) -> None:
    caller = tiny.actor()
    thread, _ = caller(acts.in_thread, os.truncate, tiny.name, 5)
    assert tiny.until("setattr").pid == thread != caller.pid


def test_the_pid_of_a_caller_that_is_not_visible_is_0(base: Path) -> None:
    with Tiny(base, prefix=["unshare", "--pid", "--fork", "--kill-child"]) as tiny:
        tiny.actor()(os.truncate, tiny.name, 5)
        assert tiny.until("setattr").pid == 0


def test_waiting_handlers_use_up_the_tasks(base: Path) -> None:
    """With as many waiting as there are tasks nothing else is served: waiting has to be limited, or done elsewhere."""
    with Tiny(base, max_tasks=3) as tiny:
        breakers = [tiny.actor() for _ in range(3)]
        cuts = []
        for number, breaker in enumerate(breakers):
            cuts.append(breaker.start(os.truncate, str(tiny.path / f"wait{number}"), 0))
            tiny.until("setattr", inode_of(f"wait{number}"))
        onlooker = tiny.actor()
        looking = onlooker.start(os.stat, tiny.path)
        eventually(lambda: "request_wait_answer" in where(onlooker.pid))
        assert not tiny.readable()  # the fourth has not been taken
        tiny.go("wait1")
        looking.result()
        cuts[1].result()
        tiny.go("wait0")
        tiny.go("wait2")


def test_an_open_descriptor_serves_as_its_mount_point(base: Path) -> None:
    """libfuse takes "/dev/fd/N" for a connection that is mounted already, so that pinfs mounts by itself."""
    with RawFuse(base, answer_init=False) as raw:
        with Tiny(base, connection=raw.fd) as tiny:
            assert tiny.actor()(os.stat, tiny.name).st_ino == inode_of("f")
