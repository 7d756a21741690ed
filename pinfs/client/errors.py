"""What an errno means to a holder, and what to do about it."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ADVICE = {
    errno.EINVAL: "the mount does not understand this range or option",
    errno.ENXIO: "the range does not lie inside the file; length 0 pins to the end, wherever that is",
    errno.EAGAIN: "a removal of an overlapping range is under way; try again when it has finished",
    errno.EDQUOT: "a limit of pins is reached (max_pins, max_pins_per_user, max_pinned_bytes_per_user); release some",
    errno.EACCES: "a pin takes permission to write to the file, an ioctl takes a descriptor that is open for writing",
    errno.EPERM: "not allowed; a process that the daemon cannot see (pid namespaces) pins by ioctl, for a handle",
    errno.ESRCH: "there is no such process in the mount's pid namespace",
    errno.ENODATA: "there is no such pin: it was released, revoked, or belongs to another process",
    errno.ENOENT: "there is no such pin: it was released, revoked, or belongs to another process",
    errno.ENOTTY: "this pinfs is mounted without its bridge, which carries ioctls; pin by attribute",
}


BY_EVENTFD = {
    errno.EBADF: "the eventfd is not open in this process",
    errno.EPERM: "the daemon may not fetch the eventfd: it needs CAP_SYS_PTRACE, or the same user, and pidfd_getfd(2)",
    errno.EINVAL: "the descriptor is not an eventfd, or the mount does not understand the range or an option",
}
NOT_BREAKING = {errno.ENODATA: "the pin is not being broken, so there is no deadline to move"}


class NotPinfsError(OSError):
    """The file does not lie on a pinfs mount, so nothing can be promised about it (EOPNOTSUPP)."""

    def __init__(self, name: str, advice: str = "") -> None:
        super().__init__(errno.EOPNOTSUPP, "; ".join(filter(None, ("not on a pinfs mount", advice))), name)


@contextmanager
def advice(what: str, name: str, special: Mapping[int, str] | None = None) -> Iterator[None]:
    """Say of an OSError what failed and what to do. It keeps its errno, and so its class (PermissionError...)."""
    try:
        yield
    except OSError as exc:
        hint = (ADVICE | dict(special or {})).get(exc.errno or 0)
        if hint is None:
            raise
        raise OSError(exc.errno, f"cannot {what}: {hint}", name) from exc
