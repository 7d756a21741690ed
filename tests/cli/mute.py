"""A daemon that hangs: it mounts a `fuse.pinfs`, answers INIT, takes every request after that and answers none.

Prints a line once it has mounted. SIGTERM does not end it, the end of its connection does not either.
"""

import os
import signal
import struct
import sys

from pinfs.linux.syscalls import mount

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""struct fuse_init_out of protocol 7.31, include/uapi/linux/fuse.h."""


def main(source: str, point: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fd = os.open("/dev/fuse", os.O_RDWR)
    mount(source, point, "fuse.pinfs", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other")
    unique = IN_HEADER.unpack_from(os.read(fd, 1 << 18))[2]
    reply = INIT_OUT.pack(7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 1, 0, 0)
    os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique) + reply)
    print("mounted", flush=True)
    try:
        while True:
            os.read(fd, 1 << 18)
    except OSError:  # aborted
        while True:
            signal.pause()


main(*sys.argv[1:])
