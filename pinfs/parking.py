"""How one handler serves two callers: the dispatcher, which runs it straight through, and trio tasks.

The dispatcher steps a handler's coroutine itself, because starting a task costs as much as answering a request. A
handler that has to wait says so with `await park()` before it touches any trio primitive. On the short way that
yields PARK to the dispatcher, which moves the rest of the coroutine into a task; in a task it does nothing.
"""

from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

PARK: Final = object()

_stepping = False


class Parked(Exception):
    """Raised by `run_straight` when the handler wants to wait: the rest of it belongs into a task."""


@coroutine
def park() -> Generator[object, None, None]:
    """Leave the short way. Must come before the first trio primitive that a handler awaits."""
    if _stepping:
        yield PARK


def run_straight(handler: Coroutine[Any, Any, T]) -> T:
    """Run a handler to its end without a task.

    Raises Parked when the handler says `await park()`; `await handler` in a trio task then goes on where it stopped.
    Whatever else the handler raises passes through.
    """
    global _stepping
    _stepping = True
    try:
        trap = handler.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _stepping = False
    if trap is not PARK:
        handler.close()
        raise RuntimeError("a handler awaited something other than park() on the short way")
    raise Parked


@coroutine
def rest_of(handler: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Go on with a parked handler, in a trio task. (A plain `await` refuses a coroutine that has already begun.)"""
    result: T = yield from handler
    return result
