"""Which arguments a parity run draws for each call. Few names and few slots, so that calls meet each other's traces."""

import struct

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from parity.pair import ACTORS

LONG = b"n" * 255
FILES = [b"a", b"b", b"c", b"d/a", b"d/b", b"e/a", b"d/s/a"]
DIRECTORIES = [b"d", b"e", b"d/s", b"e/s"]
ODD = [
    b"\xff\x01\n",
    LONG,
    LONG + b"n",
    b"d/" + LONG,
    b"a/",
    b"d/",
    b"d/.",
    b"d/..",
    b"d/../a",
    b".",
    b"..",
    b"a/x",
    b"x/y",
    b"",
]
TARGETS = [
    b"a",
    b"d",
    b"d/a",
    b"../a",
    b"../e",
    b"..",
    b".",
    b"l",
    b"missing",
    b"/nowhere/at all",
    b"t" * 4095,
    b"root/a",
    b"",
]


class Existing(int):
    """Stands for a path that exists when the step is made: the number picks one."""


class Opened(int):
    """Stands for an open file, which also says who makes the call. A second one is the same actor's."""


class Mapped(int):
    """Stands for a mapping, in the same way."""


_picks = st.integers(0, 255)
opened, mapped = _picks.map(Opened), _picks.map(Mapped)
files = st.sampled_from(FILES)
paths = st.one_of(
    _picks.map(Existing),
    _picks.map(Existing),
    st.sampled_from(FILES + DIRECTORIES),
    st.sampled_from(FILES + DIRECTORIES + ODD),
)
slots = st.integers(0, 3)
offsets = st.sampled_from([0, 0, 1, 511, 4095, 4096, 5000, 8192, 65536, 2**32 + 7, 2**40])
lengths = st.sampled_from([0, 1, 7, 512, 4096, 4097, 10000, 20000])
read_lengths = st.sampled_from(
    [1, 7, 512, 4096, 4097, 10000, 20000]
)  # of 0 bytes: tmpfs moves atime, the mount does not
letters = st.sampled_from([b"A", b"B", b"C", b"D", b"\0"])
fills = st.tuples(letters, lengths)
modes = st.sampled_from(
    [0o777, 0o755, 0o644, 0o600, 0o400, 0o200, 0o111, 0, 0o4755, 0o2755, 0o6777, 0o2644, 0o2666, 0o1777, 0o2770]
)
uids = st.sampled_from([-1, 0, 41001, 41002])
gids = st.sampled_from([-1, 0, 41001, 42000])
follow = st.booleans()


def flags(*names: str, rare: tuple[str, ...] = ()) -> SearchStrategy[str]:
    """Any set of these, written as "A|B"."""
    some = st.lists(st.sampled_from(names + rare), unique=True, max_size=3)
    return some.map("|".join)


ways = st.sampled_from(["RDONLY", "RDWR", "RDWR", "WRONLY"])
open_flags = st.builds(
    lambda way, more: "|".join(filter(None, [way, more])),
    ways,
    st.one_of(
        st.sampled_from(["", "CREAT", "CREAT|EXCL", "CREAT|TRUNC", "TRUNC", "APPEND|CREAT"]),
        flags(
            "CREAT",
            "EXCL",
            "TRUNC",
            "APPEND",
            "DIRECTORY",
            "NOFOLLOW",
            "PATH",
            "TMPFILE",
            "SYNC",
            "DSYNC",
            "NOATIME",
            "DIRECT",
        ),
    ),
)

_times = st.one_of(
    st.tuples(st.sampled_from([0, 1, 1_000_000_000, -1, 2**31, 2**33]), st.sampled_from([0, 1, 999_999_999])),
    st.just((0, (1 << 30) - 1)),  # UTIME_NOW
    st.just((0, (1 << 30) - 2)),  # UTIME_OMIT
    st.just((0, 1_000_000_000)),  # not a time: EINVAL
)

_ACL_USER, _ACL_GROUP, _ACL_MASK = 2, 8, 16
_UNDEFINED = 0xFFFFFFFF


def acl(user: int, owner: int, group: int, mask: int, other: int) -> bytes:
    """A POSIX ACL as the xattr carries it (linux/posix_acl_xattr.h): one named user, one named group, a mask."""
    entries = [(1, owner, _UNDEFINED), (_ACL_USER, user, 41002), (4, group, _UNDEFINED), (_ACL_GROUP, user, 42000)]
    entries += [(_ACL_MASK, mask, _UNDEFINED), (32, other, _UNDEFINED)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_permissions = st.integers(0, 7)
_acls = st.builds(acl, *[_permissions] * 5)
_minimal = struct.pack("<IHHIHHIHHI", 2, 1, 6, _UNDEFINED, 4, 4, _UNDEFINED, 32, 0, _UNDEFINED)  # same as a mode
_file_capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep: writing must drop it
_attributes = st.one_of(
    st.tuples(
        st.sampled_from(["user.a", "user.b", "trusted.t", "security.s"]), st.sampled_from([b"", b"v", b"w" * 300])
    ),
    st.tuples(st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"]), _acls),
    st.just(("system.posix_acl_access", _minimal)),
    st.just(("security.capability", _file_capability)),
    st.tuples(st.sampled_from(["bogus.x", "user.", "user." + "n" * 251, "system.posix_acl_access"]), st.just(b"no")),
)
_attribute_names = st.sampled_from(
    [
        "user.a",
        "user.b",
        "trusted.t",
        "security.s",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "bogus.x",
    ]
)
# COLLAPSE_RANGE and INSERT_RANGE are not passed on by the kernel (fuse_file_fallocate): EOPNOTSUPP
_fallocate_modes = st.sampled_from(
    [
        "",
        "KEEP_SIZE",
        "PUNCH_HOLE|KEEP_SIZE",
        "PUNCH_HOLE",
        "ZERO_RANGE",
        "ZERO_RANGE|KEEP_SIZE",
    ]
)
_lock_kinds = st.sampled_from(["RDLCK", "WRLCK", "UNLCK"])
_some_aligned = st.sampled_from([512, 4096, 8192, 16384, 777])
_aligned = st.one_of(st.just(0), _some_aligned)
_map_offsets = st.sampled_from([0, 1, 4095, 4096, 8000])
_access_modes = st.integers(0, 7)

actors = st.sampled_from([*ACTORS, "alice", "bob"])

CALLS: dict[str, tuple[SearchStrategy[object], ...]] = {
    "open": (slots, paths, open_flags, modes),
    "openat": (slots, opened, files, open_flags, modes),
    "reopen": (slots, opened, open_flags),
    "dup": (slots, opened),
    "close": (opened,),
    "read": (opened, read_lengths),
    "direct_read": (opened, _some_aligned, _aligned),
    "direct_write": (opened, st.tuples(letters, _aligned), _aligned),
    "pread": (opened, read_lengths, offsets),
    "write": (opened, fills),
    "pwrite": (opened, fills, offsets),
    "pwritev": (opened, st.lists(fills, min_size=1, max_size=3), offsets, flags("DSYNC", "SYNC", "APPEND", "HIPRI")),
    "truncate": (paths, offsets),
    "ftruncate": (opened, offsets),
    "fallocate": (opened, _fallocate_modes, offsets, lengths),
    "lseek": (opened, offsets, st.sampled_from(["DATA", "HOLE", "SET", "CUR", "END"])),
    "copy_file_range": (opened, opened, lengths, offsets, offsets),
    "sendfile": (opened, read_lengths, offsets),
    "fsync": (opened,),
    "fdatasync": (opened,),
    "append_from_now": (opened,),
    "fstat": (opened,),
    "fchmod": (opened, modes),
    "fchown": (opened, uids, gids),
    "futimens": (opened, _times, _times),
    "flock": (opened, st.sampled_from(["SH", "EX", "UN"])),
    "setlk": (opened, _lock_kinds, offsets, lengths),
    "getlk": (opened, _lock_kinds, offsets, lengths),
    "ofd_setlk": (opened, _lock_kinds, offsets, lengths),
    "mmap": (opened, lengths, st.booleans()),
    "load": (mapped, _map_offsets, lengths),
    "store": (mapped, _map_offsets, fills),
    "msync": (mapped,),
    "munmap": (mapped,),
    "mkdir": (paths, modes),
    "rmdir": (paths,),
    "unlink": (paths,),
    "rename": (paths, paths, st.sampled_from(["", "", "", "NOREPLACE", "EXCHANGE", "NOREPLACE|EXCHANGE"])),
    "link": (paths, paths, follow),
    "link_slot": (opened, files, st.booleans()),
    "symlink": (st.sampled_from(TARGETS), paths),
    "readlink": (paths,),
    "mknod": (paths, st.sampled_from(["IFO", "SOCK", "REG", "CHR", "BLK"]), modes, st.sampled_from([0, 0x103])),
    "listdir": (paths,),
    "stat": (paths,),
    "lstat": (paths,),
    "statx": (paths, flags("SYMLINK_NOFOLLOW")),
    "access": (paths, _access_modes, flags("EACCESS", "SYMLINK_NOFOLLOW")),
    "chmod": (paths, modes),
    "chown": (paths, uids, gids, follow),
    "utimens": (paths, _times, _times, flags("SYMLINK_NOFOLLOW")),
    "utimens_now": (paths, flags("SYMLINK_NOFOLLOW")),
    "umask": (st.sampled_from([0, 0o022, 0o077, 0o777]),),
    "setxattr": (paths, _attributes, flags("CREATE", "REPLACE"), follow),
    "getxattr": (paths, _attribute_names, follow),
    "listxattr": (paths, follow),
    "removexattr": (paths, _attribute_names, follow),
    "fsetxattr": (opened, _attributes),
}
"""By the name of the call: the strategies of its arguments."""
