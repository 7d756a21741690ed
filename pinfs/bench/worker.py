"""One of several processes that do the same work at once. A program of its own; standard library only.

`worker.py GATE GATE WORK DIRECTORY CALLS [ARGUMENT...]` answers `"ready"` when its files are there. Each gate is the
read end of a pipe. A batch begins when there is something to read in the first, the next in the second, then in the
first again, and so on; the benchmark reads it, so that one write wakes all processes at once. The answer to a batch is
when it began and ended (CLOCK_MONOTONIC, nanoseconds), or `{"errno": N}` after an OSError. The process ends when the
gate at which it waits has no writer.
"""

import gc
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final

PAGE: Final = 4096
PAGES: Final = 256
"""Of the file that is read and written."""

Work = tuple[Callable[[Any], object], Sequence[Any]]  # a call, and the argument of each turn


def mixed(directory: str, calls: int) -> Work:
    """A file comes, is renamed, changed, looked at, and goes."""

    def live(path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        renamed = path + ".renamed"
        os.rename(path, renamed)
        os.chmod(renamed, 0o600)
        os.stat(renamed)
        os.unlink(renamed)

    return live, [f"{directory}/{turn:06}" for turn in range(calls)]


def open_close(directory: str, calls: int) -> Work:
    """open(2) for reading and close(2) of one file."""
    path = _file(directory, 1)

    def pair(path: str) -> None:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    return pair, [path] * calls


def pin_release(directory: str, calls: int, name: str, value: str) -> Work:
    """An attribute is set and removed; on pinfs it is a pin."""
    fd = os.open(_file(directory, 1), os.O_RDWR | os.O_CLOEXEC)

    def pair(value: bytes) -> None:
        os.setxattr(fd, name, value)
        os.removexattr(fd, name)

    pair(value.encode())  # raises OSError where there are no attributes
    return pair, [value.encode()] * calls


def write_read(directory: str, calls: int) -> Work:
    """A page of a file is written and read."""
    fd = os.open(_file(directory, PAGES), os.O_RDWR | os.O_CLOEXEC)
    block, buffers = os.urandom(PAGE), [bytearray(PAGE)]

    def pair(offset: int) -> None:
        os.pwrite(fd, block, offset)
        os.preadv(fd, buffers, offset)

    return pair, [turn % PAGES * PAGE for turn in range(calls)]


WORKS: Final[dict[str, Callable[..., Work]]] = {
    "mixed": mixed, "open_close": open_close, "pin_release": pin_release, "write_read": write_read,
}  # fmt: skip


def _file(directory: str, pages: int) -> str:
    path = f"{directory}/file"
    with open(path, "wb") as file:
        file.write(os.urandom(pages * PAGE))
    return path


def span(call: Callable[[Any], object], arguments: Sequence[Any]) -> list[int]:
    """When a batch began and ended."""
    start_ns = time.monotonic_ns()
    for argument in arguments:
        call(argument)
    return [start_ns, time.monotonic_ns()]


def signals(gates: Sequence[int]) -> Iterator[None]:
    """One for each batch, until the gates have no writer."""
    for gate in cycle(gates):
        waiting = select.poll()
        waiting.register(gate, select.POLLIN)
        ((_, events),) = waiting.poll()
        if not events & select.POLLIN:
            return
        yield


def _answer(value: object) -> None:
    # Not print: what its buffer keeps after EPIPE would be an error at exit.
    os.write(sys.stdout.fileno(), json.dumps(value).encode() + b"\n")


def main(first: str, second: str, work: str, directory: str, calls: str, *arguments: str) -> None:
    """Work at each signal; the first OSError is the last answer."""
    gc.disable()
    try:
        os.mkdir(directory)
        batch = partial(span, *WORKS[work](directory, int(calls), *arguments))
        _answer("ready")
        for _ in signals((int(first), int(second))):
            _answer(batch())
    except BrokenPipeError:
        pass  # the benchmark has ended
    except OSError as error:
        _answer({"errno": error.errno})


if __name__ == "__main__":
    main(*sys.argv[1:])
