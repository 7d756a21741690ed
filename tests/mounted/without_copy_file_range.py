"""Runs a command in which copy_file_range(2) fails with EDQUOT, by a filter of system calls (seccomp(2))."""

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBER = {"x86_64": 326, "aarch64": 285}[platform.machine()]
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # enum of BPF instructions (linux/bpf_common.h)
RET_ERRNO, RET_ALLOW = 0x0005_0000, 0x7FFF_0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2

PROGRAM = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (JUMP_IF_EQUAL, 0, 1, NUMBER),
        (RETURN, 0, 0, RET_ERRNO | errno.EDQUOT),
        (RETURN, 0, 0, RET_ALLOW),
    )
)


def main() -> None:
    code = ctypes.create_string_buffer(PROGRAM)
    filter_ = ctypes.create_string_buffer(struct.pack("=H6xQ", len(PROGRAM) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, MODE_FILTER, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
