"""Kinds of file systems, by what statfs(2) says of them (linux/magic.h), and what their calls may wait for."""

import os
from enum import StrEnum
from typing import Final

from pinfs.linux.mountinfo import mount_of
from pinfs.linux.syscalls import file_system_magic

TMPFS_MAGIC: Final = 0x01021994
RAMFS_MAGIC: Final = 0x858458F6
HUGETLBFS_MAGIC: Final = 0x958458F6
IN_MEMORY: Final = frozenset({TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC})

EXT_MAGIC: Final = 0xEF53
XFS_MAGIC: Final = 0x58465342
BTRFS_MAGIC: Final = 0x9123683E
F2FS_MAGIC: Final = 0xF2F52010
ON_DISK: Final = frozenset(
    {
        EXT_MAGIC,
        XFS_MAGIC,
        BTRFS_MAGIC,
        F2FS_MAGIC,
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # zfs
        0x4D44,  # vfat
        0x2011BAB0,  # exfat
        0x5346544E,  # ntfs
        0x7366746E,  # ntfs3
    }
)
CAN_BE_DAX: Final = frozenset({EXT_MAGIC, XFS_MAGIC})


DIRECTORY_DELEGATIONS: Final = "/sys/module/nfsv4/parameters/directory_delegations"
DELEGATED_NAMES: Final = (
    "this kernel's NFS client asks for delegations of directories, and may then take a name for that of a file which "
    "another host has replaced"
)
DELEGATED_NAMES_FIX: Final = (
    f"echo N > {DIRECTORY_DELEGATIONS}, `options nfsv4 directory_delegations=N` in /etc/modprobe.d for the next boot, "
    "and mount the NFS directory anew (or with vers=4.0 or 3)"
)


def keeps_delegated_names(fd: int) -> bool:
    """Whether the kernel may believe old names of an NFS directory, whatever the server is asked. `fd`: O_PATH will do.

    With NFS 4.1 a server delegates a directory in the reply to a question for its attributes. Linux 7.3 takes what has
    changed in these for a change of its own, and believes the names that it knew before, until another client changes
    the directory once more. Kernels that ask for delegations have this parameter.
    """
    mount = mount_of(fd)
    if mount is None or mount.fstype != "nfs4" or "vers=4.0" in mount.options.split(","):
        return False
    try:
        with open(DIRECTORY_DELEGATIONS, "rb") as answer:
            return answer.read(1) in b"Y1"
    except FileNotFoundError:
        return False


def cuts_may_wait(fd: int) -> bool:
    """Whether a call that takes blocks from a file may wait for pages that the kernel holds, or for another program.

    `fd` (O_PATH will do): any file of the file system. In memory and on ordinary disks pages that are held leave the
    file and live on, so that a cut waits for the disk at most, as every call on it does. On DAX the pages are the
    blocks: the cut waits until they are let go. What other programs and machines serve (FUSE, NFS, 9p...), stacked file
    systems and kinds that are not known here may do either.
    """
    kind = file_system_magic(fd)
    if kind in IN_MEMORY:
        return False
    return kind not in ON_DISK or (kind in CAN_BE_DAX and _device_can_be_dax(os.fstat(fd).st_dev))


def _device_can_be_dax(device: int) -> bool:
    """What sysfs says of the block device (queue/dax; a partition has that of its disk). True where it does not say.

    The device counts, not the file: with dax=inode each file of it may change (xfs(5), ext4 documentation).
    """
    directory = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in ("queue", "../queue"):
        try:
            with open(f"{directory}/{queue}/dax", "rb") as answer:
                return answer.read().strip() != b"0"
        except OSError:
            continue
    return True


class PagePins(StrEnum):
    """Whether the kernel lets devices hold pages of a file for long (FOLL_LONGTERM: RDMA, io_uring, VFIO)."""

    YES = "yes"
    READING = "reading"  # by the device; also the page cache of FUSE
    NO = "no"
    UNKNOWN = "unknown"


def page_pins(fd: int) -> PagePins:
    """What the kernel allows for the files of a file system; `fd` (O_PATH will do): any of them.

    By its kind, as no probe shows it without writing: in memory all, on disks no pins for writing, because written
    pages have to be announced to the file system (writable_file_mapping_allowed() in mm/gup.c, Linux 6.5), on DAX none
    (vma_is_fsdax()). With dax=inode, the default on such devices, each file has its own answer.
    """
    kind = file_system_magic(fd)
    if kind in IN_MEMORY:
        return PagePins.YES
    if kind in CAN_BE_DAX and _device_can_be_dax(os.fstat(fd).st_dev):
        mount = mount_of(fd)
        options = [] if mount is None else mount.options.split(",")
        if "dax=always" in options:
            return PagePins.NO
        return PagePins.READING if "dax=never" in options else PagePins.UNKNOWN
    return PagePins.READING if kind in ON_DISK else PagePins.UNKNOWN


SERVED: Final = frozenset(
    {
        0x65735546,  # FUSE, virtiofs
        0x6969,  # NFS
        0x517B,  # SMB
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2
        0x01021997,  # 9P
        0x00C36400,  # Ceph
        0x5346414F,  # AFS
        0x6B414653,  # AFS of the kernel
        0x73757245,  # Coda
        0x0BD00BD0,  # Lustre
        0x47504653,  # GPFS
        0x19830326,  # BeeGFS
        0x20030528,  # OrangeFS
        0x7461636F,  # OCFS2
        0x01161970,  # GFS2
        0x0187,  # autofs
    }
)
"""Served by other programs and machines, or locked by them. Magic numbers of linux/magic.h and of the projects."""


def unservable_because(fd: int) -> str:
    """Why pinfs must not serve the file system below `fd` (O_PATH will do); "" where it can.

    hugetlbfs has no write(2), and the full stack depth, which keeps passthrough from it (hugetlbfs_fill_super). So a
    mapping would be one of FUSE's own small pages, which can never be written back.
    """
    if file_system_magic(fd) == HUGETLBFS_MAGIC:
        return (
            "hugetlbfs has neither passthrough nor write(2), so what programs store in a mapping would be lost; "
            "for huge pages use a tmpfs with huge=always"
        )
    return ""


def calls_may_stall(fd: int) -> bool:
    """Whether every call on the file system below `fd` (O_PATH will do) may wait for another program or machine, and so
    for ever. Stacked file systems do not tell what they lie on: these count as prompt."""
    return file_system_magic(fd) in SERVED
