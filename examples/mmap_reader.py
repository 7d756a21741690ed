#!/usr/bin/env python3
"""Map a file under a lease, and unmap it when the file is to be truncated.

    python3 mmap_reader.py /mnt/FILE            in another terminal:   truncate -s 0 /mnt/FILE

Without the pin the truncate would go through at once, and the next access to the mapping would be a SIGBUS.
"""

import mmap
import os
import sys
import threading

import pinfs


def main(path: str) -> None:
    let_go, gone = threading.Event(), threading.Event()

    def on_break(event: pinfs.Event) -> None:
        """Runs in a thread of its own; when it returns, the pin is released and the truncate goes on."""
        print(f"{event.op or 'a removal'} wants the bytes from {event.from_} on", flush=True)
        let_go.set()
        gone.wait()

    fd = os.open(path, os.O_RDWR)
    with pinfs.pin(fd, mode="lease", on_break=on_break, note="mmap_reader") as pin:
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as memory:
            print(f"mapped {len(memory)} bytes under pin {pin.id}", flush=True)
            rounds = 0
            while not let_go.is_set():
                sum(memory[:: mmap.PAGESIZE])  # touches every page
                rounds += 1
        print(f"unmapped after {rounds} rounds", flush=True)
        gone.set()
    os.close(fd)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: mmap_reader.py FILE")
    main(sys.argv[1])
