"""Pins that a take-over restores in the background: files that are waited for come first."""

from __future__ import annotations

from collections.abc import Iterator

import trio
import trio.testing

from pinfs.fs.pendingpins import SLICE, PendingPins


class Restoring:
    """Pins are numbers here; `order`: the files in the order in which they were complete."""

    def __init__(self, **files: int) -> None:
        self.restored: list[int] = []
        self.order: list[int] = []
        self.pending = PendingPins(self.restored.append, self.order.append)
        self.ended = False
        self.pending.on_end = self._end
        self.ids = {name: number for number, name in enumerate(files, 1)}
        self.pending.begin({self.ids[name]: list(range(pins, 0, -1)) for name, pins in files.items()})

    def _end(self) -> None:
        self.ended = True

    async def asked_for(self, *names: str) -> list[str]:
        """In which order callers that ask for these files are answered."""
        answered: list[str] = []

        async def ask(name: str) -> None:
            await self.pending.wait_for(self.ids[name])
            answered.append(name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(self.pending.run)
        return answered


async def test_pins_of_a_file_come_oldest_first() -> None:
    restoring = Restoring(a=3)
    assert await restoring.asked_for("a") == ["a"]
    assert restoring.restored == [1, 2, 3]
    assert restoring.ended


async def test_a_file_that_is_asked_for_comes_first() -> None:
    restoring = Restoring(a=SLICE, b=SLICE, c=SLICE)
    assert await restoring.asked_for("c") == ["c"]
    assert restoring.order == [3, 1, 2]


async def test_of_files_that_are_asked_for_the_one_with_few_pins_comes_first() -> None:
    """Its callers do not wait for the pins of the other one."""
    restoring = Restoring(many=20 * SLICE, few=2 * SLICE)
    assert await restoring.asked_for("many", "few") == ["few", "many"]


async def test_one_that_comes_later_overtakes() -> None:
    restoring = Restoring(many=20 * SLICE, few=2 * SLICE)
    pending, at = restoring.pending, {}

    async def ask_later() -> None:
        while len(restoring.restored) < 5 * SLICE:
            await trio.lowlevel.checkpoint()
        await pending.wait_for(restoring.ids["few"])
        at["few"] = len(restoring.restored)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pending.wait_for, restoring.ids["many"])
        nursery.start_soon(ask_later)
        nursery.start_soon(pending.run)
    assert at["few"] < 10 * SLICE
    assert restoring.order == [2, 1]


async def test_all() -> None:
    restoring = Restoring(a=SLICE, b=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restoring.pending.wait_for_all)
        nursery.start_soon(restoring.pending.run)
    assert len(restoring.restored) == SLICE + 1
    await restoring.pending.wait_for_all()
    await restoring.pending.wait_for(1)


async def test_files_are_known_before_their_pins_are_found() -> None:
    pending = PendingPins(lambda pin: None, lambda file: None)
    files: dict[int, list[int]] = {1: [], 2: []}
    steps: list[bool] = []

    def collected() -> Iterator[None]:
        for pin in range(3):
            files[2].append(pin)
            steps.append(1 in pending.files)
            yield
        files[1].append(9)

    pending.begin(files, collected())
    assert set(pending.files) == {1, 2}
    await pending.run()
    assert steps == [True] * 3
    assert not pending.files
