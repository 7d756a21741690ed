#!/usr/bin/env python3
"""Serve model weights straight from a mapped file, and reload them when the file is overwritten in place.

    python3 weights_server.py /mnt/model.bin    in another terminal:   cp new-model.bin /mnt/model.bin

cp truncates, then writes. Without a pin the server would read torn weights, or die with SIGBUS. With a lease it is
notified before the first byte goes: it drops its mapping, lets the truncate pass, and maps the new weights when all are
there. Ends with Ctrl-C, or after RELOADS reloads if a second argument says so.
"""

import errno
import hashlib
import mmap
import os
import sys

import trio

import pinfs.client.trio


def infer(fd: int, size: int) -> str:
    """Stands for a model's work: reads every mapped byte."""
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as weights:
        return hashlib.sha256(weights).hexdigest()[:16]


async def serve_one(fd: int, size: int, stay: bool) -> None:
    """Serve until the file is about to be overwritten, or, not to `stay`, once."""
    async with pinfs.client.trio.pin(fd, 0, size, mode="lease", note="weights_server") as pin:
        print(f"serving {infer(fd, size)} under pin {pin.id}", flush=True)
        if stay and (event := await pin.next_break()):
            print(f"{event.op}: dropped the weights", flush=True)


async def serve(path: str, reloads: int | None) -> None:
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size  # the next weights will have the same
    while True:
        try:
            await serve_one(fd, size, stay=reloads != 0)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ENXIO):  # the truncate is under way, the weights are not all there
                raise
            await trio.sleep(0.05)
            continue
        if reloads == 0:
            return
        reloads = None if reloads is None else reloads - 1


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: weights_server.py FILE [RELOADS]")
    trio.run(serve, sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else None)
