"""How one handler serves two callers: the dispatcher, which runs it straight through, and trio tasks.

The dispatcher steps a handler's coroutine itself, because starting a task costs as much as answering a request. A
handler that has to wait says what for. For a `OneShot` the dispatcher keeps the coroutine, and goes on with it when the
moment has come. Before it touches any trio primitive it says `await park()`: the dispatcher moves the rest of it into
a task. In a task both do what a reader would expect.
"""

import logging
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

import trio

log = logging.getLogger("pinfs.parking")

T = TypeVar("T")

_PARK: Final = object()

_stepping = 0
_deferred: list[Callable[[], None]] = []


class _FastPath:
    """Inside of it handlers are stepped, not awaited. Entered once for many of them, because it costs them all."""

    def __enter__(self) -> None:
        global _stepping
        _stepping += 1

    def __exit__(self, *_: object) -> None:
        global _stepping
        _stepping -= 1


fast_path: Final = _FastPath()


class OneShot:
    """Comes once; one handler waits for it. On the short way `then` is called when it comes."""

    __slots__ = ("_has_come", "callback")

    def __init__(self) -> None:
        self._has_come = False
        self.callback: Callable[[], object] | None = None

    @property
    def is_set(self) -> bool:
        return self._has_come

    def set(self) -> None:
        """From now on nobody waits for it. Does not run the waiting handler: may be called from anywhere."""
        self._has_come = True
        if self.callback is not None:
            self.callback()

    async def wait(self) -> None:
        if not self._has_come and _stepping:
            await _give_back(self)
        if not self._has_come:  # we are in a task, or have been moved into one
            event = trio.Event()
            self.callback = event.set
            await event.wait()


class Parked(Exception):
    """Raised by `run_straight` when the handler waits: `trap` is a `OneShot`, or something that wants a task."""

    def __init__(self, trap: object) -> None:
        self.trap = trap


@coroutine
def _give_back(trap: object) -> Generator[object, None, None]:
    yield trap


async def park() -> None:
    """Leave the short way. Must come before the first trio primitive that a handler awaits."""
    if _stepping:
        await _give_back(_PARK)


def run_straight(handler: Coroutine[Any, Any, T], failure: BaseException | None = None) -> T:
    """Run a handler, or go on with one that was parked, to its end without a task.

    `failure` is raised where it waits. Raises Parked when it has to wait (again): `run_straight` goes on with it then,
    or `await rest_of(handler)` in a trio task. Whatever else the handler raises passes through.
    """
    try:
        with fast_path:
            trap = handler.send(None) if failure is None else handler.throw(failure)
    except StopIteration as end:
        result: T = end.value
        return result
    raise Parked(known_trap(handler, trap))


def known_trap(handler: Coroutine[Any, Any, Any], trap: object) -> object:
    """The trap, if it is one of ours. RuntimeError: the handler has awaited something else, and is closed."""
    if trap is not _PARK and not isinstance(trap, OneShot):
        handler.close()
        raise RuntimeError("a handler awaited something other than a moment or park() on the short way")
    return trap


@coroutine
def rest_of(handler: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Go on with a parked handler, in a trio task. (A plain `await` refuses a coroutine that has already begun.)"""
    result: T = yield from handler
    return result


def defer(chore: Callable[[], None]) -> None:
    """Do what nobody waits for (write to the log, say) after the replies that are due; in a task at once."""
    if _stepping:
        _deferred.append(chore)
    else:
        chore()


def run_deferred() -> None:
    """What was left for later; the dispatcher calls it when nothing else is to be done."""
    while _deferred:
        chores = _deferred.copy()
        _deferred.clear()
        for chore in chores:
            try:
                chore()
            except Exception:
                log.exception("a chore failed")
