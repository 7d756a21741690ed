"""How one handler serves two callers: the dispatcher's fast path, and trio tasks.

On the fast path the dispatcher steps a handler's coroutine itself, because starting a task costs as much as answering a
request. A handler that has to wait parks: it yields what it waits for. For a `OneShot` the dispatcher keeps the
coroutine and resumes it when the event is set. Before any other trio primitive the handler calls `await park()`, and
the dispatcher moves the rest of it into a task. In a task `OneShot.wait` is an ordinary wait, and `park` does nothing.
"""

from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

import trio

from pinfs.runtime.errors import logged

T = TypeVar("T")

_PARK: Final = object()

_stepping = 0
_deferred: list[Callable[[], None]] = []


class _FastPath:
    """Inside this context handlers are stepped, not awaited. The dispatcher enters it once for many requests."""

    def __enter__(self) -> None:
        global _stepping
        _stepping += 1

    def __exit__(self, *_: object) -> None:
        global _stepping
        _stepping -= 1


fast_path: Final = _FastPath()


class OneShot:
    """An event that is set once, and that one handler waits for.

    While the handler waits, `callback` is what `set` calls to resume it.
    """

    __slots__ = ("callback", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self.callback: Callable[[], object] | None = None

    def set(self) -> None:
        """End the wait. The handler does not run inside this call, so it may be made from anywhere."""
        self.is_set = True
        if self.callback is not None:
            self.callback()

    async def wait(self) -> None:
        if not self.is_set and _stepping:
            try:
                await _yield(self)
            finally:  # an interrupted or closed handler must not be resumed by a later set()
                self.callback = None
        if not self.is_set:  # in a task: the handler began there, or was moved into one
            event = trio.Event()
            self.callback = event.set
            await event.wait()


class Parked(Exception):
    """Raised by `run_straight` when the handler waits: for `trap`, a `OneShot`, or else in a task."""

    def __init__(self, trap: object) -> None:
        self.trap = trap


@coroutine
def _yield(trap: object) -> Generator[object, None, None]:
    yield trap


async def park() -> None:
    """Leave the fast path. Must come before the first trio primitive that a handler awaits."""
    if _stepping:
        await _yield(_PARK)


def run_straight(handler: Coroutine[Any, Any, T], failure: BaseException | None = None) -> T:
    """Run a handler, or resume a parked one, to its end without a task.

    `failure` is raised where the handler waits. Raises Parked when the handler has to wait (again): resume it by
    another `run_straight`, or by `await rest_of(handler)` in a trio task. What the handler raises passes through.
    """
    try:
        with fast_path:
            trap = handler.send(None) if failure is None else handler.throw(failure)
    except StopIteration as end:
        result: T = end.value
        return result
    raise Parked(known_trap(handler, trap))


def known_trap(handler: Coroutine[Any, Any, Any], trap: object) -> object:
    """The trap, if a parking primitive yielded it. RuntimeError: the handler awaited something else, and is closed."""
    if trap is not _PARK and not isinstance(trap, OneShot):
        handler.close()
        raise RuntimeError("a handler awaited something other than a OneShot or park() on the fast path")
    return trap


@coroutine
def rest_of(handler: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Resume a parked handler in a trio task. (A plain `await` refuses a coroutine that has already begun.)"""
    result: T = yield from handler
    return result


def defer(call: Callable[[], None]) -> None:
    """Postpone what no caller waits for (a log line) until the due replies are written; in a task, do it now."""
    if _stepping:
        _deferred.append(call)
    else:
        call()


def run_deferred() -> None:
    """Make the deferred calls. The dispatcher does so when it has nothing else to do."""
    while _deferred:
        calls = _deferred.copy()
        _deferred.clear()
        for call in calls:
            with logged("a deferred call"):
                call()
