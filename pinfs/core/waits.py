"""The graph of what waits for what.

A waiter watches one obstacle at a time and looks for the next when that one goes, so that ten thousand holders need not
know a thousand breakers each.
"""


class Obstacle:
    """Something that others wait for: the break of a pin, or an earlier reservation."""

    __slots__ = ("watchers",)

    def __init__(self) -> None:
        self.watchers: dict[Waiter, None] = {}


class Waiter(Obstacle):
    """Something that waits, and that others may wait for in their turn."""

    __slots__ = ("watching",)

    def __init__(self) -> None:
        super().__init__()
        self.watching: Obstacle | None = None

    def watch(self, obstacle: Obstacle) -> None:
        """Wait for this next."""
        self.watching = obstacle
        obstacle.watchers[self] = None

    def unwatch(self) -> None:
        """Wait for nothing."""
        watching = self.watching
        if watching is not None:
            watching.watchers.pop(self, None)
            self.watching = None
