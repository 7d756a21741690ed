"""How threads create files for a caller, on a source that may never answer."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from pinfs.fs.backing import Backing
from pinfs.fs.inode import O_PATH_NOFOLLOW, stale
from pinfs.fs.leases import with_patience
from pinfs.fs.nonblocking import AT_ONCE, open_error
from pinfs.fs.openfile import OpenFile
from pinfs.fs.reaching import Found, found_as
from pinfs.fs.types import CallerLike

DEFAULT_ACL: Final = "system.posix_acl_default"


class Created(NamedTuple):
    """What open(2) with O_CREAT has given."""

    found: Found
    file: OpenFile

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """`close` closes a descriptor."""
        self.found.close()
        self.file.close(close)


def masked(directory_fd: int, mode: int, ctx: CallerLike) -> int:
    """The mode of what the caller creates: the daemon's own umask is 0, since all threads share one.

    A default ACL of the directory takes the place of the caller's (posix_acl_create()).
    """
    if not mode & ctx.umask:
        return mode
    try:
        os.getxattr(f"/proc/self/fd/{directory_fd}", DEFAULT_ACL)
    except OSError:
        return mode & ~ctx.umask
    return mode


def create_file(backing: Backing, directory_fd: int, name: bytes, mode: int, flags: int, ctx: CallerLike) -> Created:
    """`Opens.create`, but for the table: open(2) with O_CREAT. ESTALE: something else has the name."""
    mode = masked(directory_fd, mode, ctx)
    wanted = flags & ~(os.O_TRUNC | os.O_APPEND | os.O_DIRECT) | os.O_CREAT | os.O_NOFOLLOW | AT_ONCE

    def create() -> int:
        with backing.owned_by(ctx):
            return os.open(name, wanted, mode, dir_fd=directory_fd)

    try:
        fd = create()
    except BlockingIOError:
        fd = _after_lease(create, name, directory_fd, flags)
    except OSError as e:
        raise open_error(e) from e
    backing.check_room(fd)
    try:
        found = found_as(os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC))
    except BaseException:
        os.close(fd)
        raise
    made = Created(found, OpenFile.over(fd, flags))
    if not stat.S_ISREG(found.st.st_mode):
        made.close()
        raise stale()
    return made


def is_there(name: bytes, directory_fd: int) -> bool:
    """Whether open(2) with O_CREAT will find a file instead of creating one."""
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        return True
    return False


def _after_lease(create: Callable[[], int], name: bytes, directory_fd: int, flags: int) -> int:
    path_fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=directory_fd)
    try:
        return with_patience(create, path_fd, flags)
    finally:
        os.close(path_fd)
