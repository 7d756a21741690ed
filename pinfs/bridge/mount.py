"""Mounting and unmounting, as root by mount(2), as a user by fusermount3. Nothing here waits for the file system."""

import array
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pinfs.fs.identity import DIRECTORY as CLUSTER_DIRECTORY
from pinfs.fs.identity import enclosing_cluster, read_tokens
from pinfs.interface.names import FSTYPE
from pinfs.linux import mountinfo, syscalls
from pinfs.linux.filesystems import unservable_because
from pinfs.linux.proc import processes, read_comm, used_paths
from pinfs.linux.syscalls import MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

log = logging.getLogger("pinfs.mount")


class MountError(Exception):
    """Mounting is not possible; the text is for people and says what to do about it."""


class StaleMountError(MountError):
    """The mount point has a mount whose daemon has ended."""


class AlreadyServedError(MountError):
    """Another pinfs serves this source."""


@dataclass(frozen=True)
class MountFlags:
    """Options of mount(8) that concern the mount itself."""

    allow_other: bool = False
    read_only: bool = False
    suid: bool = False
    dev: bool = False
    exec_: bool = True
    atime: bool = True

    @property
    def bits(self) -> int:
        """For mount(2)."""
        return (
            (MS_RDONLY if self.read_only else 0)
            | (0 if self.suid else MS_NOSUID)
            | (0 if self.dev else MS_NODEV)
            | (0 if self.exec_ else MS_NOEXEC)
            | (0 if self.atime else MS_NOATIME)
        )

    def names(self) -> Iterator[str]:
        """For fusermount3, which adds nosuid and nodev itself."""
        yield "ro" if self.read_only else "rw"
        if not self.exec_:
            yield "noexec"
        if not self.atime:
            yield "noatime"


# Before the mount


def open_source(source: str, *, shared: bool = False) -> int:
    """A descriptor of the source directory, with the lock (flock(2)) of the one pinfs that may serve it; `shared`: of
    one of those that honour each other's pins (-o cluster=...). So these and one without the option exclude each other:
    on this host always, on others where the file system carries the locks of directories to them (CephFS, GFS2 and
    OCFS2 do, NFS does not).

    Keep it open for as long as the mount lives. Raises AlreadyServedError, MountError.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise MountError(f"the source {source} cannot be served: {_words(e)}") from e
    if why := unservable_because(fd):
        os.close(fd)
        raise MountError(f"the source {source} cannot be served: {why}")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as e:
        is_shared = not shared and e.errno == errno.EWOULDBLOCK and not _is_locked(fd, fcntl.LOCK_SH)
        os.close(fd)
        if e.errno != errno.EWOULDBLOCK:
            raise MountError(f"the source {source} cannot be locked: {_words(e)}") from e
        raise AlreadyServedError(_served_text(source, shared, is_shared)) from e
    if shared and (above := enclosing_cluster(fd)):
        os.close(fd)
        raise AlreadyServedError(
            f"{source} lies inside {above}, which belongs to a cluster ({CLUSTER_DIRECTORY}): its hosts would not know "
            "of pins on this mount"
        )
    return fd


def _served_text(source: str, shared: bool, is_shared: bool) -> str:
    text = f"another pinfs already serves {source}"
    if shared:
        return f"{text}, without cluster=...: it would not know of the pins of this one"
    if is_shared:
        return f"{text}, with cluster=...: it would not know of the pins of this one; give this one the same options"
    return f"{text}: two of them would not know of each other's pins"


def warn_of_cluster(source_fd: int) -> None:
    """For a mount without cluster=...: hosts that have left a token may serve the source, and its lock is no obstacle
    where locks of directories stay on each host (NFS)."""
    with suppress(OSError):
        if hosts := read_tokens(source_fd):
            log.warning(
                "hosts of a cluster have served the source (%s), and would not know of the pins of this mount (%s)",
                ", ".join(sorted(hosts)),
                CLUSTER_DIRECTORY,
            )


def check_not_nested(source: str) -> None:
    """Raises AlreadyServedError where the source of another mount lies inside this one, or the other way round.

    The table of mounts names the candidates, their locks tell that they are served. So a mount in another namespace or
    under a name of its own (-o fsname) is not noticed. Mounts of users other than root and the caller are not looked
    at: those users must not be able to prevent a mount.
    """
    ours = [entry for entry in mountinfo.mounts() if entry.fstype == FSTYPE]
    for name in {entry.source for entry in ours if _mounted_by(entry) in (0, os.geteuid())}:
        try:
            is_in_the_way = _are_nested(source, name) and _is_served(name)
        except OSError:
            continue  # not a path, or removed
        if is_in_the_way:
            raise AlreadyServedError(
                f"another pinfs already serves {name}, and {source} "
                f"{'lies inside' if _lies_in(source, os.stat(name)) else 'contains'} that: "
                "two of them would not know of each other's pins"
            )


def _are_nested(one: str, other: str) -> bool:
    first, second = os.stat(one), os.stat(other)
    return not _same(first, second) and (_lies_in(one, second) or _lies_in(other, first))


def _is_served(source: str) -> bool:
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _is_locked(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _is_locked(source_fd: int, against: int) -> bool:
    """Whether another descriptor has a lock that excludes this kind of it (LOCK_SH, LOCK_EX)."""
    try:
        fcntl.flock(source_fd, against | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(source_fd, fcntl.LOCK_UN)
    return False


def has_acls(source_fd: int) -> bool:
    """Whether the source's file system has POSIX ACLs, which the kernel then has to look at for permissions."""
    try:
        os.getxattr(source_fd, "system.posix_acl_access")
    except OSError as e:
        return e.errno == errno.ENODATA
    return True


def check_mountpoint(mountpoint: str, source_fd: int, *, replace_stale: bool = False) -> str:
    """The real path of a mount point that can be used. Raises StaleMountError, MountError."""
    try:
        os.statvfs(mountpoint)  # a stale mount may still answer stat() from the kernel's cache
        st = os.stat(mountpoint)
    except OSError as e:
        if e.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountError(f"the mount point {mountpoint} cannot be used: {_words(e)}") from e
        _clear_stale(mountpoint, e, replace_stale)
        return check_mountpoint(mountpoint, source_fd)
    if not stat.S_ISDIR(st.st_mode):
        raise MountError(f"the mount point {mountpoint} is not a directory")
    real = os.path.realpath(mountpoint)
    source = os.fstat(source_fd)
    if _lies_in(real, source):
        raise MountError(f"the mount point {mountpoint} lies inside the source: pinfs would serve itself")
    if _lies_in(f"/proc/self/fd/{source_fd}", st):
        raise MountError(f"the source lies inside the mount point {mountpoint}: it would hide what it serves")
    return real


def _clear_stale(mountpoint: str, why: OSError, replace_stale: bool) -> None:
    if not replace_stale:
        raise StaleMountError(
            f"{mountpoint} is a stale mount ({_words(why)}): its daemon has ended. "
            f"Remove it with `pinfs umount {mountpoint}`, or mount with -o replace_stale"
        )
    log.info("replacing the stale mount on %s", mountpoint)
    unmount(mountpoint, lazy=True)


def _lies_in(path: str, directory: os.stat_result) -> bool:
    """Whether a directory is `directory` or lies below it."""
    at = Path(os.path.realpath(path))
    return any(_same(os.stat(above), directory) for above in (at, *at.parents))


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


# Mounting


def mount(source: str, mountpoint: str, flags: MountFlags) -> int:
    """Mount; the connection's descriptor (non-blocking). Raises MountError."""
    if os.geteuid() == 0:
        return _mount_as_root(source, mountpoint, flags)
    return _mount_as_user(source, mountpoint, flags)


def _mount_as_root(source: str, mountpoint: str, flags: MountFlags) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise MountError(f"/dev/fuse cannot be opened: {_words(e)}{_hint(e)}") from e
    options = [f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    options += ["default_permissions", *(["allow_other"] if flags.allow_other else [])]
    try:
        syscalls.mount(source, mountpoint, FSTYPE, flags.bits, ",".join(options))
    except OSError as e:
        os.close(fd)
        raise MountError(f"mounting on {mountpoint} failed: {_words(e)}{_hint(e)}") from e
    return fd


def _hint(e: OSError) -> str:
    hints = {
        errno.ENOENT: " (is the kernel module loaded? `modprobe fuse`)",
        errno.ENODEV: " (is the kernel module loaded? `modprobe fuse`)",
        errno.EPERM: " (in a container: --device /dev/fuse --cap-add SYS_ADMIN)",
    }
    return hints.get(e.errno or 0, "")


def _mount_as_user(source: str, mountpoint: str, flags: MountFlags) -> int:
    """fusermount3 mounts and sends the descriptor through the socket whose number it finds in _FUSE_COMMFD."""
    program = _fusermount()
    options = [f"fsname={_escaped(source)}", "subtype=pinfs", "default_permissions", *flags.names()]
    if flags.allow_other:
        options.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            result = subprocess.run(
                [program, "-o", ",".join(options), "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        if result.returncode:
            raise MountError(f"mounting on {mountpoint} failed: {os.fsdecode(result.stderr).strip()}")
        fd = _received_descriptor(ours)
    os.set_blocking(fd, False)
    return fd


def _fusermount() -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is missing: install the package fuse3, or mount as root")
    return program


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _received_descriptor(connection: socket.socket) -> int:
    size = array.array("i").itemsize
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fd = int.from_bytes(data[:size], "little")
            os.set_inheritable(fd, False)
            return fd
    raise MountError("fusermount3 sent no descriptor")


# Unmounting


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2), or fusermount3 -u for a user. May block while the file system answers: not for the event loop.

    OSError: EBUSY (in use; never with `lazy`), EINVAL (nothing is mounted there). MountError: no fusermount3.
    """
    if os.geteuid() != 0:
        _unmount_as_user(mountpoint, lazy)
    else:
        syscalls.umount2(mountpoint, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))


def _unmount_as_user(mountpoint: str, lazy: bool) -> None:
    command = [_fusermount(), "-u", *(["-z"] if lazy else []), "--", mountpoint]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        text = os.fsdecode(result.stderr).strip()
        raise OSError(errno.EBUSY if "busy" in text else errno.EINVAL, text, mountpoint)


def device_of(mountpoint: str) -> int | None:
    """The device number (os.makedev) of the topmost pinfs on a mount point, by the table of mounts; None: no pinfs.

    A stat of the mount would be a request to ourselves. The number tells one mount from the next at the same path.
    """
    there = [entry for entry in mountinfo.mounts() if entry.point == mountpoint]
    return there[-1].dev if there and there[-1].fstype == FSTYPE else None


def _mounted_by(entry: mountinfo.MountEntry) -> int:
    return int(entry.options.partition("user_id=")[2].partition(",")[0])


def users(mountpoint: str) -> list[str]:
    """The processes that keep a mount busy, as far as they can be seen: "PID (name)". Never waits for the mount."""
    below = mountpoint.rstrip("/") + "/"
    return [
        f"{pid} ({read_comm(pid) or 'gone'})"
        for pid in processes()
        if any((path + "/").startswith(below) for path in used_paths(pid))
    ]


def _words(e: OSError) -> str:
    return os.strerror(e.errno) if e.errno else str(e)
