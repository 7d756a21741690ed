"""Linux, as far as the keeper needs it."""

import _socket
import os
import resource

from .peer import Peer

MAX_STORED = 65536
RESERVED = 64  # descriptors for everything but the store


def started(argv: list[bytes]) -> Peer:
    """A process that loads the daemon's program, in a session of its own. Raises OSError."""
    said = os.memfd_create("pinfs-stderr")
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        os.close(said)
        raise
    if not pid:
        _become(argv, theirs.fileno(), said)
    theirs.close()
    return Peer(pid, os.pidfd_open(pid), ours, argv, said)


def _become(argv: list[bytes], sock: int, said: int) -> None:
    """In the forked child; does not return. Its stderr is `said` until it is loaded: then it takes the one it gets by
    PINFS_STDERR."""
    try:
        os.setsid()
        os.set_inheritable(sock, True)
        stderr = os.dup(2)
        os.set_inheritable(stderr, True)
        os.dup2(said, 2)
        os.execve(argv[0], argv, {**os.environb, b"PINFS_KEEPER": b"%d" % sock, b"PINFS_STDERR": b"%d" % stderr})
    except OSError as e:
        os.write(2, (e.strerror or "").encode())
    finally:
        os._exit(127)


def raise_descriptor_limit() -> int:
    """Have as many descriptors as the hard limit allows (getrlimit(2)); how many of them the store may take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_STORED if hard < 0 else max(0, min(MAX_STORED, hard - RESERVED))


def close_all_but(kept: set[int]) -> None:
    """What the starter happened to have open is not for the keeper to hold as long as the mount lives."""
    for fd in sorted({int(name) for name in os.listdir("/proc/self/fd")} - kept):
        try:
            os.close(fd)
        except OSError:
            pass  # that of the listing


def detach(device: int, point: bytes) -> bool:
    """Take a mount away if it is still the one on top of its mount point. False: that failed."""
    if _top_device(point) != device:
        return True
    if os.geteuid():
        return _succeeds([b"fusermount3", b"-u", b"-z", b"--", point])
    import ctypes  # not above: it would be a third of the keeper's memory

    failed: int = ctypes.CDLL(None).umount2(point, 2 | 8)  # MNT_DETACH, UMOUNT_NOFOLLOW
    return not failed


def _succeeds(command: list[bytes]) -> bool:
    try:
        return os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)[1] == 0
    except OSError:
        return False


def _top_device(point: bytes) -> int:
    """The device number (os.makedev) of what is mounted on `point`, by the table of mounts; -1: nothing is."""
    found = -1
    with open("/proc/self/mountinfo", "rb") as table:
        for fields in (line.split(b" ") for line in table):
            if _unescaped(fields[4]) == point:
                major, minor = fields[2].split(b":")
                found = os.makedev(int(major), int(minor))
    return found


def _unescaped(field: bytes) -> bytes:
    """Without the octal digits that stand for space, tab, newline and backslash (seq_path)."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
