"""The crowd: pins on other files, held by one other process."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

from pinfs.bench import holder
from pinfs.bench.places import Place
from pinfs.bench.remote import Remote, started

PINS_PER_FILE: Final = 100


class Crowd:
    """A growing number of pins in one place, on files of their own."""

    def __init__(self, process: Remote, place: Place, said: Callable[[str], None]) -> None:
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
            process = self._stack.enter_context(started(holder.__file__))
            self._crowds[place.path] = Crowd(process, place, self._said)
        return self._crowds[place.path]

    def sizes(self) -> list[CrowdSize]:
        """The sizes of all crowds."""
        return [CrowdSize(path, crowd.pins, crowd.seconds) for path, crowd in self._crowds.items()]
