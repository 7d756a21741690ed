"""The kinds of mounts that are compared with their backing, and what each may do otherwise (docs/promises.md)."""

import os
from dataclasses import dataclass
from pathlib import Path

from mounted.world import USER, as_user
from support import mounts


@dataclass(frozen=True)
class Mode:
    """`left_out`: calls that are not made and flags that are not used; `unseen`: facts that are not compared (see
    calls.Side); `known`: the differences in set-id bits that are documented (calls.KNOWN)."""

    options: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    known: tuple[str, ...] = (
        "root writes",
        "a member of the group writes",
        "root allocates",
        "a stranger to the group cuts",
    )


STRAIGHT = Mode(("dev",))  # as the native directory is mounted
ON_TMPFS = Mode(
    STRAIGHT.options,
    ("ZERO_RANGE",),  # which tmpfs refuses; the kernel has dropped file capabilities by then (docs/promises.md)
)
THROUGH_THE_DAEMON = Mode(
    (*STRAIGHT.options, "passthrough=off"),
    # What is stored reaches the backing, and its times, when the kernel writes it back; what is loaded from a hole
    # gives the file no page in the backing, as it does on a plain tmpfs.
    (*ON_TMPFS.left_out, "store", "load"),
    ("atime",),  # what is read from the kernel's cache moves none
)
PYFUSE3_ALONE = Mode(
    (*STRAIGHT.options, "bridge=off"),
    (*THROUGH_THE_DAEMON.left_out, "fallocate", "TMPFILE", "DATA", "HOLE", "REPLACE"),
    (*THROUGH_THE_DAEMON.unseen, "data", "data ranges", "btime", "mask"),
    (*THROUGH_THE_DAEMON.known, "an owner sets an ACL"),
)
EXPORTED = Mode((*STRAIGHT.options, "nfs_export=on"), ON_TMPFS.left_out)
BY_A_USER = Mode(
    (),
    (*THROUGH_THE_DAEMON.left_out, "mknod"),  # anybody may make device 0:0, and fusermount3 mounts with nodev
    THROUGH_THE_DAEMON.unseen,
    (),  # one uid without a capability, on both sides
)


SEALED = Mode(
    STRAIGHT.options,
    ON_TMPFS.left_out,
    ("ctime", "atime"),  # a seal that is set or lifted moves the first, and after that a read the second (relatime)
)


class SealedMount(mounts.Mount):
    """All its files are sealed."""

    program = Path(__file__).with_name("sealed_mount.py")


class ServedMount(mounts.Mount):
    """Its source is taken for one that another program serves: all calls on it are made in threads."""

    program = Path(__file__).with_name("served_mount.py")


class UsersMount(mounts.Mount):
    """Mounted by USER with fusermount3: nobody else may enter, not even root."""

    def __init__(self, base: Path) -> None:
        for directory in (base / "source", base / "mnt", base / "native"):
            directory.mkdir()
            os.chown(directory, USER, USER)
        super().__init__(base, prefix=as_user(USER))

    def _wait_usable(self) -> None:
        if not mounts.wait_mounted(self.path, self.process, mounts.START_LIMIT_S):
            raise mounts.DaemonError(f"the daemon did not mount\n{self.log()}")
