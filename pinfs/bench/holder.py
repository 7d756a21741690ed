"""The other process of the benchmark, which holds pins and leases. A program of its own; standard library only.

Reads one JSON list a line, `[command, argument...]`, and answers with one JSON value a line: `{"errno": N}` after an
OSError. The process ends with its standard input, and its pins with it.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

PAGE: Final = 4096
GIVE_UP_S: Final = 30.0  # so that this process ends even without a break


def pin_many(path: str, count: int) -> int:
    """Pins on `count` pages of one file."""
    fd = os.open(path, os.O_RDWR)
    for page in range(count):
        os.setxattr(fd, f"user.pinfs.pin.{page}", b"%d:%d" % (page * PAGE, PAGE))
    os.close(fd)
    return count


def hold_pin(path: str) -> list[int]:
    """Hold a lease pin until it is broken."""
    fd = os.open(path, os.O_RDWR)
    os.setxattr(fd, "user.pinfs.pin.bench", b"0:4096,mode=lease,signal=IO")
    return _release_when_signalled(fd, lambda: os.getxattr(fd, "user.pinfs.release.bench"))


def hold_pin_by_eventfd(path: str) -> list[int]:
    """The same, told by an eventfd."""
    fd, eventfd = os.open(path, os.O_RDWR), os.eventfd(0)
    try:
        os.setxattr(fd, "user.pinfs.pin.bench", b"0:4096,mode=lease,signal=none,eventfd=%d" % eventfd)
        return _release_when(fd, lambda: os.eventfd_read(eventfd), lambda: os.getxattr(fd, "user.pinfs.release.bench"))
    finally:
        os.close(eventfd)


def hold_lease(path: str) -> list[int]:
    """Hold the kernel's own lease (fcntl(2), F_SETLEASE) until it is broken."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return _release_when_signalled(fd, lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK))


def _release_when_signalled(fd: int, release: Callable[[], object]) -> list[int]:
    def wait() -> None:
        if signal.sigtimedwait({signal.SIGIO}, GIVE_UP_S) is None:
            raise TimeoutError

    return _release_when(fd, wait, release)


def _release_when(fd: int, wait: Callable[[], object], release: Callable[[], object]) -> list[int]:
    """CLOCK_MONOTONIC nanoseconds of the end of `wait` and of the start of the release."""
    _answer("held")
    try:
        wait()
        told_ns = time.monotonic_ns()
        let_go_ns = time.monotonic_ns()
        release()
        return [told_ns, let_go_ns]
    finally:
        os.close(fd)


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)


COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    "pin_many": pin_many,
    "hold_pin": hold_pin,
    "hold_pin_by_eventfd": hold_pin_by_eventfd,
    "hold_lease": hold_lease,
}


def main() -> None:
    """Run commands until the end of the input."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            _answer(COMMANDS[command](*arguments))
        except OSError as error:
            _answer({"errno": error.errno})


if __name__ == "__main__":
    main()
