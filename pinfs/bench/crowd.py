"""The remote control of `holder.py`, and the crowd: pins on other files, held by one other process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

from pinfs.bench import holder
from pinfs.bench.places import Place

PINS_PER_FILE: Final = 100


class Holder:
    """Another process that holds pins and leases."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, command: str, *arguments: object) -> Any:
        """Send a command and read its first answer. Raises the OSError of the other process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError("the holder has ended")
        value = json.loads(line)
        if isinstance(value, dict):
            raise OSError(value["errno"], os.strerror(value["errno"] or 0))
        return value

    def wait_asleep(self) -> None:
        """Wait until the process sleeps, so that its remaining work is not measured with the wake-up."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()


@contextmanager
def started_holder() -> Iterator[Holder]:
    """A holder for the length of the block; killed at the end, which releases its pins."""
    command = [sys.executable, "-P", holder.__file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Holder(process)
    finally:
        process.kill()
        process.communicate()


class Crowd:
    """A growing number of pins in one place, on files of their own."""

    def __init__(self, process: Holder, place: Place, said: Callable[[str], None]) -> None:
        self._process, self._place, self._said = process, place, said
        self._directory = f"{place.work}/crowd"
        self._files = 0
        self.pins = 0
        self.seconds = 0.0
        Path(self._directory).mkdir()

    def grow(self, pins: int) -> None:
        """Register pins until there are `pins`. OSError: EDQUOT where the policy's limits are lower."""
        while self.pins < pins:
            self._add_file(min(PINS_PER_FILE, pins - self.pins))
            if self._files % 50 == 0:
                self._said(f"{self.pins} of {pins} pins registered")

    def _add_file(self, pins: int) -> None:
        path = f"{self._directory}/{self._files}"
        with open(path, "wb") as file:
            file.truncate(pins * holder.PAGE)
        self._files += 1
        start = perf_counter()
        self.pins += self._process.tell("pin_many", path, pins)
        self.seconds += perf_counter() - start


class CrowdSize(NamedTuple):
    """`seconds`: how long it took to register the pins."""

    path: str
    pins: int
    seconds: float


class Crowds:
    """The crowds of all places, each created at its first use."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._stack = ExitStack()
        self._crowds: dict[str, Crowd] = {}

    def __enter__(self) -> "Crowds":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, place: Place) -> Crowd:
        """The crowd of that place."""
        if place.path not in self._crowds:
            process = self._stack.enter_context(started_holder())
            self._crowds[place.path] = Crowd(process, place, self._said)
        return self._crowds[place.path]

    def sizes(self) -> list[CrowdSize]:
        """The sizes of all crowds."""
        return [CrowdSize(path, crowd.pins, crowd.seconds) for path, crowd in self._crowds.items()]
