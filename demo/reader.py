"""A program that maps a file and reads it again and again, as a database, a model server or a DMA engine does.

    reader.py FILE [--pin deny|lease] [--ignore]

With --pin it pins what it maps. The pin is an extended attribute, so any language can set it. When a
removal breaks a lease, its holder gets SIGIO: it unmaps, releases the pin and ends; with --ignore it reads on and never
answers.
A line on its standard input is answered when all bytes have been read once more.
"""

import argparse
import mmap
import os
import select
import signal
import sys
from types import FrameType
from typing import Any

PAGE = mmap.PAGESIZE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--pin", choices=["deny", "lease"])
    parser.add_argument("--ignore", action="store_true")
    options = parser.parse_args()

    signals: list[int] = []  # of breaks

    def on_signal(number: int, _: FrameType | None) -> None:
        signals.append(number)

    signal.signal(signal.SIGIO, on_signal)
    with open(options.file, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    if options.pin:
        os.setxattr(options.file, "user.pinfs.pin.demo", f"0:{len(mapping)},mode={options.pin}".encode())
    say(f"mapped {len(mapping) >> 20} MiB" + (f", {options.pin} pin on all of it" if options.pin else ""))

    while options.ignore or not signals:
        if mapping[::PAGE].count(b"x") != len(mapping) // PAGE:  # a page that is not in the file any more: SIGBUS
            sys.exit("these are not the bytes that I mapped")
        if select.select([sys.stdin], [], [], 0.01)[0]:
            if not sys.stdin.readline():
                return
            say("still reading, every page is there")
    let_go(options.file, mapping)


def let_go(path: str, mapping: mmap.mmap) -> None:
    """The answer to a break. (By getxattr: setxattr would need the inode's lock, which the waiting truncate has.)"""
    mapping.close()
    os.getxattr(path, "user.pinfs.release.demo")
    say("SIGIO: unmapped the file and released the pin")


def say(*words: Any) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    main()
