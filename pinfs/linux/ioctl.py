"""The numbers of ioctl(2): how they are composed (asm-generic/ioctl.h), and those of the kernel that pinfs uses.

x86_64 and aarch64 share this encoding; `pinfs.linux.abi` refuses machines that have another.
"""

from typing import Final

_WRITE, _READ = 1, 2  # as seen by the caller: it writes to the kernel, it reads from it
_SIZE_BITS = 14


def _ioc(direction: int, kind: int | str, nr: int, size: int) -> int:
    letter = ord(kind) if isinstance(kind, str) else kind
    if not (0 <= size < 1 << _SIZE_BITS and 0 <= nr < 256 and 0 <= letter < 256):
        raise ValueError(f"not an ioctl: kind {kind!r}, number {nr}, {size} bytes")
    return direction << 30 | size << 16 | letter << 8 | nr


def ior(kind: int | str, nr: int, size: int) -> int:
    """_IOR(): the caller reads a struct of `size` bytes. `kind`: the letter or number of the driver."""
    return _ioc(_READ, kind, nr, size)


def iow(kind: int | str, nr: int, size: int) -> int:
    """_IOW(): the caller hands over a struct of `size` bytes."""
    return _ioc(_WRITE, kind, nr, size)


def iowr(kind: int | str, nr: int, size: int) -> int:
    """_IOWR(): the caller hands over a struct of `size` bytes, the kernel fills it in."""
    return _ioc(_READ | _WRITE, kind, nr, size)


_LONG, _FSXATTR, _FIEMAP = 8, 28, 32  # sizeof(long), sizeof(struct fsxattr), sizeof(struct fiemap)
_FUSE = 229

FS_IOC_GETFLAGS: Final = ior("f", 1, _LONG)  # linux/fs.h; the size says long, the kernel reads and writes an int
FS_IOC_SETFLAGS: Final = iow("f", 2, _LONG)
FS_IOC_FSGETXATTR: Final = ior("X", 31, _FSXATTR)
FS_IOC_FSSETXATTR: Final = iow("X", 32, _FSXATTR)
FS_IOC_FIEMAP: Final = iowr("f", 11, _FIEMAP)
FICLONE: Final = iow(0x94, 9, 4)

FUSE_DEV_IOC_BACKING_OPEN: Final = iow(_FUSE, 1, 16)  # linux/fuse.h: struct fuse_backing_map
FUSE_DEV_IOC_BACKING_CLOSE: Final = iow(_FUSE, 2, 4)  # a backing id
