"""Pins that were released, until nothing of them is left in etcd."""

import trio


class Releases:
    """By the numbers of the pins."""

    def __init__(self) -> None:
        self._ends: dict[int, trio.Event] = {}

    def begin(self, pin: int) -> None:
        self._ends[pin] = trio.Event()

    def over(self, pin: int) -> None:
        end = self._ends.pop(pin, None)
        if end is not None:
            end.set()

    def all_over(self) -> None:
        """Nothing is to be waited for any more."""
        for pin in [*self._ends]:
            self.over(pin)

    async def wait(self, pin: int) -> None:
        """Returns when a removal that begins from now on does not meet the pin on any host."""
        end = self._ends.get(pin)
        if end is not None:
            await end.wait()
