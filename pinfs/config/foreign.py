"""Mount options known from other FUSE file systems (mount.fuse3(8), fuse(8) of libfuse 2), and what pinfs has in their
place.

Options that ask for what pinfs does anyway are accepted in silence (`options.py`). Of the rest, those without an effect
on what programs see are accepted with a warning, and those that would change it are refused.
"""

from collections.abc import Mapping
from typing import Final

_SIZES = "pinfs and the kernel agree on the size of requests (up to 1 MiB)"
_CACHE = "entry_timeout and attr_timeout say what the kernel may remember of names and attributes"
_REQUESTS = "pinfs decides how requests are carried"
_INODES = "inode numbers are those of the source"
_FORGOTTEN = "inode numbers are those of the source, and for NFS servers there is nfs_export=on"
_THREADS = "one thread answers requests; `pinfs bench` measures how fast"

WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "auto_unmount": "pinfs unmounts when it ends; after a kill -9 use `pinfs umount`, or mount with replace_stale",
    "max_read": _SIZES,
    "max_write": _SIZES,
    "max_readahead": "the kernel's read-ahead stays as it is (/sys/class/bdi)",
    "max_background": _REQUESTS,
    "congestion_threshold": _REQUESTS,
    "big_writes": _SIZES,
    "large_read": _SIZES,
    "blksize": _SIZES,
    "kernel_cache": _CACHE,
    "auto_cache": _CACHE,
    "noauto_cache": _CACHE,
    "auto_inval_data": _CACHE,
    "no_auto_inval_data": _CACHE,
    "no_writeback_cache": "pinfs has no write-back cache of its own",
    "no_rofd_flush": _REQUESTS,
    "async_read": _REQUESTS,
    "sync_read": _REQUESTS,
    "async_dio": _REQUESTS,
    "no_async_dio": _REQUESTS,
    "atomic_o_trunc": "pinfs always opens and truncates in one step",
    "splice_read": _REQUESTS,
    "splice_write": _REQUESTS,
    "splice_move": _REQUESTS,
    "no_splice_read": _REQUESTS,
    "no_splice_write": _REQUESTS,
    "no_splice_move": _REQUESTS,
    "clone_fd": _THREADS,
    "max_idle_threads": _THREADS,
    "max_threads": _THREADS,
    "use_ino": _INODES,
    "readdir_ino": _INODES,
    "noforget": _FORGOTTEN,
    "remember": _FORGOTTEN,
    "hard_remove": "removed files that are open go on as in the source, without .fuse_hidden files",
    "intr": "callers can always be interrupted",
    "intr_signal": "callers can always be interrupted",
}
"""Accepted with a warning: what holds instead."""

_OWNERS = "owners and modes are those of the source: chown and chmod there, or give pinfs an id-mapped mount of it"
_DEVICE = "pinfs opens /dev/fuse itself: start it as the user who is to mount"
_MODULES = "mount the wanted subdirectory itself as SOURCE; names and links are those of the source"
_SYNC = "mount the source's file system with it, or open files with O_SYNC"

REFUSED: Final[Mapping[str, str]] = {
    "negative_timeout": "use entry_timeout, which also holds for names that do not exist",
    "ac_attr_timeout": "use attr_timeout",
    "umask": _OWNERS,
    "uid": _OWNERS,
    "gid": _OWNERS,
    "fd": _DEVICE,
    "rootmode": _DEVICE,
    "user_id": _DEVICE,
    "group_id": _DEVICE,
    "blkdev": "pinfs serves directories: mount the device, then give its directory to pinfs",
    "setuid": "start pinfs as that user: setpriv, or User= in a unit",
    "drop_privileges": "start pinfs as an ordinary user, whom it then serves alone",
    "direct_io": "let the program open with O_DIRECT",
    "writeback_cache": "use passthrough (pinfs status shows it): writes then go to the source's page cache",
    "nopath": "there is no such mode: names are always right",
    "no_remote_lock": "locks are those of this machine",
    "no_remote_flock": "locks are those of this machine",
    "no_remote_posix_lock": "locks are those of this machine",
    "modules": _MODULES,
    "subdir": _MODULES,
    "rellinks": _MODULES,
    "norellinks": _MODULES,
    "from_code": _MODULES,
    "to_code": _MODULES,
    "debug": "use log_level=debug",
    "sync": _SYNC,
    "dirsync": _SYNC,
    "mand": "Linux has no mandatory locks any more; a deny pin keeps bytes from being removed",
    "remount": "use `pinfs policy set` for the policy; for all else unmount and mount again",
    "bind": "mount the pinfs, then `mount --bind` its mount point",
    "context": "label the source",
    "fscontext": "label the source",
    "defcontext": "label the source",
    "rootcontext": "label the source",
}
"""Refused: what to use instead."""
