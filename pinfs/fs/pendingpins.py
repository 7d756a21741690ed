"""Pins that a take-over has not restored yet: very many take seconds, and no caller should wait for those of other
files (SPEC 13)."""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from pinfs.runtime.parking import OneShot

SLICE: Final = 256
"""Pins that are restored between two turns of other tasks: some 2 ms."""


class PendingPins:
    """Pins by file. `restore` takes one of what `begin` was given; `complete` is called with the node id of a file that
    has all."""

    def __init__(self, restore: Callable[[int], None], complete: Callable[[int], None]) -> None:
        self.files: dict[int, list[int]] = {}
        """The pins that are still to come, by node id, the next one last: whether a file is in it is the way to ask."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when nothing is to come any more."""
        self._restore = restore
        self._complete = complete
        self._collected: Iterable[None] = ()
        self._waiters: dict[int, list[OneShot]] = {}

    def begin(self, files: dict[int, list[int]], collected: Iterable[None] = ()) -> None:
        """All that is to come, of each file the last first. `collected` fills the lists of `files`, some with each
        step."""
        self.files = files
        self._collected = collected

    async def wait_for(self, nodeid: int) -> None:
        """Return when the file has its pins."""
        while nodeid in self.files:
            ready = OneShot()
            self._waiters.setdefault(nodeid, []).append(ready)
            await ready.wait()

    async def wait_for_all(self) -> None:
        """Return when nothing is to come any more."""
        while self.files:
            await self.wait_for(next(iter(self.files)))

    async def run(self) -> None:
        """Restore all, a slice at a time; files that are waited for come first, and of those the ones with few pins."""
        for _ in self._collected:
            await trio.lowlevel.checkpoint()
        while self.files:
            nodeid = self._fewest_waited_for() if self._waiters else next(iter(self.files))
            if nodeid in self.files:
                self._restore_some(nodeid)
            if nodeid not in self.files:
                self._wake(nodeid)
            await trio.lowlevel.checkpoint()
        self.on_end()

    def _fewest_waited_for(self) -> int:
        return min(self._waiters, key=lambda nodeid: len(self.files.get(nodeid, ())))

    def _restore_some(self, nodeid: int) -> None:
        slots = self.files[nodeid]
        for _ in range(min(SLICE, len(slots))):
            self._restore(slots.pop())
        if not slots:
            del self.files[nodeid]
            self._complete(nodeid)

    def _wake(self, nodeid: int) -> None:
        for ready in self._waiters.pop(nodeid, ()):
            ready.set()
