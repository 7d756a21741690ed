"""What a host calls: the daemon's side of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from pinfs.cluster.keys import RemovalKey
from pinfs.cluster.outputs import MayCut, RemovalRefused, Told, Waits

Heard: TypeAlias = Callable[[MayCut | Waits | RemovalRefused], None]
"""What a breaker hears of its removal."""
Matched: TypeAlias = Callable[[dict[int, int]], Iterable[int]]
"""Gets the numbers of the pins of the daemon before, by the tokens that this daemon has for them: pins whose tokens are
missing are lost, and their holders have to hear that. Returns the numbers of pins that have ended meanwhile."""


class Daemon(Protocol):
    """What a host calls, synchronously. An exception is logged, and no reason to stop."""

    def joined(self) -> None:
        """Pins and removals may be asked for."""

    def told(self, told: Told) -> None:
        """A removal of another host needs pins of this one: outputs.Told."""

    def told_over(self, removal: RemovalKey) -> None:
        """A removal that was told is over, or has been given up, or all pins that it needs are gone: comes after
        `fenced` as well."""

    def fenced(self, pins: tuple[int, ...], why: str) -> None:
        """This host is cut off: the holders of these pins have to hear that they are gone, at once. The next member
        joins by itself."""

    def keep(self, state: dict[str, Any]) -> None:
        """What the next daemon needs for `Host.resume`: strings and numbers. Comes before `joined`, and at each
        beat."""
