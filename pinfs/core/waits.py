"""The graph of what waits for what.

A waiter watches one obstacle at a time and looks for the next when that one goes, so that ten thousand holders need not
know a thousand breakers each.
"""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Obstacle:
    """Something that others wait for: the break of a pin, or an earlier reservation."""

    watchers: "dict[Waiter, None]" = field(default_factory=dict, init=False, repr=False)


@dataclass(slots=True, eq=False)
class Waiter(Obstacle):
    """Something that waits, and that others may wait for in their turn."""

    watching: Obstacle | None = field(default=None, init=False, repr=False)

    def watch(self, obstacle: Obstacle) -> None:
        """Wait for this next."""
        self.watching = obstacle
        obstacle.watchers[self] = None

    def unwatch(self) -> None:
        """Wait for nothing."""
        if self.watching is not None:
            self.watching.watchers.pop(self, None)
            self.watching = None
