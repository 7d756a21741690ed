"""The time by which decisions are made: that of trio, asked as cheaply as can be."""

import trio

from pinfs.linux.calls import clock


class Clock:
    """Seconds on trio's clock. To ask trio takes three calls of the interpreter, and each pin asks twice. In a daemon
    trio runs on the system's clock (`follow_system`), which is asked itself then."""

    def __init__(self) -> None:
        self._follows_system = False
        self._ahead_s = 0.0

    def follow_system(self) -> None:
        """In a run of trio, on its own clock: CLOCK_MONOTONIC, from a beginning of its own."""
        now = clock()
        self._ahead_s = trio.current_time() - now  # never behind trio's: a deadline that trio wakes for has passed
        self._follows_system = True

    def now(self) -> float:
        """The time."""
        return clock() + self._ahead_s if self._follows_system else trio.current_time()
