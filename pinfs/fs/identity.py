"""What hosts call files, a source, and their cluster, so that all of them mean the same (docs/hosts.md).

Two kinds of error are possible with names of files, and they are not alike. Two files with one name cost a round trip,
or a removal that is refused without need. One file with two names costs pinned bytes. So a name has the inode number,
which a shared file system must show alike on all hosts, and beside it only what is known to be alike as well: a hash of
the file handle, on the kinds of file systems whose handles are the server's, or the disk's. FUSE has handles too
(glusterfs, virtiofs), but these are numbers of one connection; there, on stacked file systems and on kinds that are not
known here, the inode number has to do. It is not given away while a file is pinned, because the holder's daemon has the
file open. Times of birth are left out: kernels of different ages tell them, or do not.

What hosts have to leave for each other lies in a directory `.pinfs-cluster` (mode 0700) in the root of the source: the
name of the cluster, and one token for each host. Not in an attribute (user.*): that would be one place more, as the
tokens need files in any case, and NFS has such attributes since 4.2 only. The directory can be seen through the mount,
like any other, and root may remove it; a cluster whose name is lost is another one from the next mount on. Where users
may write the root of the source, one of them may have made a directory of this name, or a symbolic link: whatever a
user could change there is refused (`open_directory`).

Whatever asks the file system may wait for its server: call it in a thread, but `FileNames.name`.
"""

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from pinfs.linux.filehandles import handle_of
from pinfs.linux.filesystems import EXT_MAGIC, IN_MEMORY, ON_DISK
from pinfs.linux.syscalls import file_system_magic

NFS_MAGIC: Final = 0x6969
CEPH_MAGIC: Final = 0x00C36400
ALIKE_ON_ALL_HOSTS: Final = frozenset(
    {
        NFS_MAGIC,  # the server's handle, wrapped (nfs_encode_fh)
        CEPH_MAGIC,  # the inode number, which is never used again (ceph_encode_fh)
        0x0BD00BD0,  # Lustre: FIDs
        0x01161970,  # GFS2: block and formal number
        0x7461636F,  # OCFS2: block and generation
    }
)
"""Shared file systems whose handles the server makes, or the disk has."""

DIRECTORY: Final = ".pinfs-cluster"
SHARED_WITHIN_S: Final = 90.0
"""How long the token of a host may take to be seen by the others: an NFS client believes what it has read of a
directory for up to 60 seconds (acdirmax of nfs(5))."""

_NAME_FILE: Final = "name"
_NOTE: Final = "the cluster of the pinfs mounts of this directory; keep it, and remove it from copies"
_TOKEN: Final = re.compile(r"host-([A-Za-z0-9._-]{1,64})", re.ASCII)
_TEXT_MAX: Final = 256
_HASH_BYTES: Final = 8
_BY_OTHERS: Final = 0o022
_NOBODY: Final = 65534


def handles_are_alike(fd: int) -> bool:
    """Whether a file of the file system below `fd` (O_PATH will do) has the same handle on all hosts. A disk is one
    host's; what several daemons of that host have mounted is the same too."""
    kind = file_system_magic(fd)
    return kind in ALIKE_ON_ALL_HOSTS or kind in ON_DISK or kind in IN_MEMORY


class FileNames:
    """The names of the files of one source. `name` waits for no server: neither the number nor the handle of an inode
    that is known takes a call to it."""

    def __init__(self, source_fd: int) -> None:
        self._with_handles = handles_are_alike(source_fd)

    def name(self, fd: int, ino: int) -> str:
        """Of the file that `fd` (O_PATH will do) refers to, whose st_ino is `ino`, on the source's own device: up to 40
        hexadecimal digits and dots, the first part `ino`. 2 us."""
        if self._with_handles:
            with suppress(OSError):  # a kind of which some have handles (tmpfs by configuration)
                return f"{ino:x}.{_hash(handle_of(fd))}"
        return f"{ino:x}"


def file_name(fd: int) -> str:
    """The same for a single file, of which nothing is known yet. Raises OSError."""
    return FileNames(fd).name(fd, os.fstat(fd).st_ino)


def place(source_fd: int) -> str:
    """What tells two source directories apart, alike on all hosts: hexadecimal digits and dots, up to 60.

    Where it differs, hosts of one cluster serve two directories: a copy (`cp -a` and rsync take the name of the cluster
    along), or two exports. Where it is the same they serve one, as far as its file system tells: FUSE has only the
    number of its root. `read_tokens` shows what is not shared after all.
    """
    kind = file_system_magic(source_fd)
    fsid = os.fstatvfs(source_fd).f_fsid if kind in (CEPH_MAGIC, EXT_MAGIC) or kind in IN_MEMORY else 0
    # Of others f_fsid is nothing (NFS, FUSE), or the number that the device has on this host (xfs).
    return f"{kind:x}.{file_name(source_fd)}" + (f".{fsid:x}" if fsid else "")


def _hash(handle: bytes) -> str:
    return hashlib.blake2b(handle, digest_size=_HASH_BYTES).hexdigest()


# The name of the cluster


def cluster_name(source_fd: int, create: bool) -> str:
    """The UUID of the cluster over this source. `create`: where there is none yet, give it one; of several hosts that
    do so at the same time one wins, and all get the same answer.

    FileNotFoundError: there is none. EINVAL: the file has something else. EACCES, EROFS and their like: the source does
    not let this host; then the operator has to give the cluster a name (cluster_name=).
    """
    try:
        return _read_name(source_fd)
    except FileNotFoundError:
        if not create:
            raise
    with _directory(source_fd, create=True) as fd:
        _publish(fd, f"{uuid.uuid4()}\n# {_NOTE}\n")
    return _read_name(source_fd)


def enclosing_cluster(source_fd: int) -> str:
    """The directory above the source, on its file system, that has the name of a cluster in it; "" if there is none.
    One is enough that is mounted here; that a directory below the source has one is not noticed."""
    device = os.fstat(source_fd).st_dev
    at = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
    below = os.fstat(source_fd)
    try:
        while (st := os.fstat(at)).st_dev == device and not os.path.samestat(st, below):
            with suppress(OSError):
                os.stat(f"{DIRECTORY}/{_NAME_FILE}", dir_fd=at, follow_symlinks=False)
                return os.readlink(f"/proc/self/fd/{at}")
            below, above = st, os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = above
    finally:
        os.close(at)
    return ""


def open_directory(at_fd: int, name: str = DIRECTORY, *, create: bool = False) -> int:
    """A descriptor of the directory `name` in `at_fd`, which nobody but root, this daemon's user and the owner of
    `at_fd` can change. Errors of open(2); EPERM: others can."""
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=at_fd)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at_fd)
    st = os.fstat(fd)
    if st.st_uid not in _trusted(at_fd) or st.st_mode & _BY_OTHERS:
        os.close(fd)
        raise OSError(errno.EPERM, "users can change it", name)
    return fd


def _trusted(at_fd: int) -> set[int]:
    """Root is a user of its own on exports with root_squash."""
    users = {0, os.geteuid(), os.fstat(at_fd).st_uid}
    return users | {_NOBODY} if file_system_magic(at_fd) == NFS_MAGIC else users


@contextmanager
def _directory(source_fd: int, *, create: bool = False) -> Iterator[int]:
    fd = open_directory(source_fd, create=create)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_name(source_fd: int) -> str:
    with _directory(source_fd) as fd:
        text = _read(fd, _NAME_FILE)
    try:
        return str(uuid.UUID(text.split()[0]))
    except (ValueError, IndexError):
        raise OSError(errno.EINVAL, "has no UUID in it", f"{DIRECTORY}/{_NAME_FILE}") from None


def _publish(directory_fd: int, text: str) -> None:
    """A file that is there with all its text, or not at all; nothing happens if another host was faster."""
    new = f"{_NAME_FILE}.{uuid.uuid4().hex}"
    _write_new(directory_fd, new, text)
    try:
        os.link(new, _NAME_FILE, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except FileExistsError:
        pass
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        with suppress(FileExistsError):  # no hard links: a reader may find it empty for a moment, and fails then
            _write_new(directory_fd, _NAME_FILE, text)
    finally:
        with suppress(OSError):
            os.unlink(new, dir_fd=directory_fd)


# Is the source shared?


def write_token(source_fd: int, host: str, incarnation: str) -> None:
    """Leave `HOST INCARNATION` where the other hosts of the cluster look for it, in place of this host's last one.
    Raises OSError: the others cannot see then whether the source is shared."""
    new = f".{uuid.uuid4().hex}"
    with _directory(source_fd, create=True) as fd:
        _write_new(fd, new, f"{host} {incarnation}\n")
        try:
            os.rename(new, _token(host), src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=fd)
            raise


def remove_token(source_fd: int, host: str, incarnation: str) -> None:
    """When the host leaves. Nothing happens if the token is another's, or has gone."""
    with suppress(OSError), _directory(source_fd) as fd:
        if _read(fd, _token(host)).split() == [host, incarnation]:
            os.unlink(_token(host), dir_fd=fd)


def read_tokens(source_fd: int) -> dict[str, str]:
    """The incarnations by host, of all tokens that can be seen here; empty where there are none. Raises OSError."""
    try:
        fd = open_directory(source_fd)
    except FileNotFoundError:
        return {}
    tokens = {}
    try:
        for host in [found[1] for name in os.listdir(fd) if (found := _TOKEN.fullmatch(name))]:
            with suppress(FileNotFoundError, ValueError):  # it leaves just now; or it is none of pinfs
                written_by, incarnation = _read(fd, _token(host)).split()
                if written_by == host:
                    tokens[host] = incarnation
    finally:
        os.close(fd)
    return tokens


def not_seen(members: Iterable[Mapping[str, Any]], own: str, tokens: Mapping[str, str]) -> list[str]:
    """The hosts of which no life is both a member and has its token here: they serve another directory. `members`
    (`host`, `incarnation`) as `.pinfs/status` shows them, `own`: this host, which is left out."""
    lives: dict[str, set[str]] = {}
    for member in members:
        lives.setdefault(member["host"], set()).add(member["incarnation"])
    return sorted(host for host, alive in lives.items() if host != own and tokens.get(host) not in alive)


def _token(host: str) -> str:
    name = f"host-{host}"
    if not _TOKEN.fullmatch(name):
        raise OSError(errno.EINVAL, "not a name of a host", host)
    return name


# Files of the directory


def _write_new(directory_fd: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(directory_fd: int, name: str) -> str:
    """The beginning of a small file. O_NONBLOCK: whatever has its name, this does not wait for it."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return os.read(fd, _TEXT_MAX).decode(errors="replace")
    finally:
        os.close(fd)
