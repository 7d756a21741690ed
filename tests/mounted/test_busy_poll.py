"""A mount whose daemon looks for the next request before it sleeps (`-o busy_poll`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from support.mounts import Mount


def test_a_mount_with_busy_polling(new_mount: Callable[..., Mount]) -> None:
    """Pins, breaks and names are as ever; a caller that waits does not keep the daemon from others."""
    mount = new_mount("busy_poll=50")
    file, holder, breaker = mount.path / "f", mount.actor(), mount.actor()
    file.write_bytes(bytes(8192))
    holder.pin(file, "a", "0:4096,mode=lease,signal=none")
    with mount.trace() as trace:
        truncate = breaker.start(os.truncate, str(file), 0)
        trace.until("break")
        (mount.path / "g").write_bytes(b"x" * 100)
        os.rename(mount.path / "g", mount.path / "h")
        assert os.stat(mount.path / "h").st_size == 100
        holder.release(file, "a")
        trace.until("proceeded")
    assert truncate.result() is None
    assert file.stat().st_size == 0
    assert holder.errno(os.stat, str(mount.path / "g")) == errno.ENOENT
