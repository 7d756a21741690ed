"""A ring of io_uring (io_uring_setup(2)), for one call at a time."""

import ctypes
import mmap
import os
import struct

FALLOCATE, READ, WRITE, FTRUNCATE = 17, 22, 23, 55  # IORING_OP_*
READ_FIXED = 4
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS = 0, 1
_GET_EVENTS = 1
_SQES = 0x10000000
_SQE = struct.Struct(
    "<BBHiQQII4x32x"
)  # opcode flags ioprio fd off addr len rw_flags, and user_data, which nobody needs
_CQE = struct.Struct("<QiI")

_libc = ctypes.CDLL(None, use_errno=True)


class Ring:
    """Operations on a descriptor through io_uring. `with` closes it."""

    def __init__(self) -> None:
        params = bytearray(120)  # struct io_uring_params
        self._fd = _checked(_libc.syscall(_SETUP, 1, (ctypes.c_char * 120).from_buffer(params)))
        _, self._tail, _, _, _, _, array = struct.unpack_from("<7I", params, 40)
        self._cq_head, self._cq_tail, self._cq_mask, _, _, self._cqes = struct.unpack_from("<6I", params, 80)
        self._rings = mmap.mmap(self._fd, 4096)
        self._sqes = mmap.mmap(self._fd, 4096, offset=_SQES)
        struct.pack_into("<I", self._rings, array, 0)

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def register(self, address: int, length: int) -> None:
        """Have the kernel pin memory as buffer 0 (io_uring_register(2)), for READ_FIXED."""
        iovec = (ctypes.c_size_t * 2)(address, length)
        _checked(_libc.syscall(_REGISTER, self._fd, _REGISTER_BUFFERS, iovec, 1))

    def unregister(self, address: int) -> None:
        """Give buffer 0 back."""
        _checked(_libc.syscall(_REGISTER, self._fd, _UNREGISTER_BUFFERS, None, 0))

    def call(self, opcode: int, fd: int, buffer: mmap.mmap | memoryview, size: int, offset: int) -> int:
        """The result of one read or write of `size` bytes. OSError as from pread(2) and pwrite(2)."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        return self.submit(opcode, fd, offset, address, size)

    def submit(self, opcode: int, fd: int, offset: int, address: int = 0, size: int = 0) -> int:
        """The result of one operation, whose arguments lie in these fields (io_uring_enter(2)). OSError as it says."""
        self._sqes[: _SQE.size] = _SQE.pack(opcode, 0, 0, fd, offset, address, size, 0)
        self._put(self._tail, self._get(self._tail) + 1)
        _checked(_libc.syscall(_ENTER, self._fd, 1, 1, _GET_EVENTS, None, 0))
        head = self._get(self._cq_head)
        assert head != self._get(self._cq_tail)
        at = self._cqes + (head & self._get(self._cq_mask)) * _CQE.size
        _, result, _ = _CQE.unpack_from(self._rings, at)
        self._put(self._cq_head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._rings, at)[0])

    def _put(self, at: int, value: int) -> None:
        struct.pack_into("<I", self._rings, at, value & 0xFFFFFFFF)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
