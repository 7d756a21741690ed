"""System calls that may never return: each is made in a thread, and its request waits outside of the event loop.

A thread that waits for a silent server cannot be ended, only left. So there is a limit on all of them, and a lower one
on those for one file: a file that does not answer leaves room for the others.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import trio

from pinfs.runtime.errors import logged
from pinfs.runtime.parking import park

T = TypeVar("T")

MAX_THREADS: Final = 256
"""Calls at a time, those included that their requests have left; with as many, further requests wait."""
MAX_FOR_ONE: Final = 16
"""Calls at a time for one key."""
PATIENCE_S: Final = 1.0
"""How long an interrupted request waits on: a server that is only slow gets to answer. Programs do not expect EINTR of
stat(2) whenever one of their children ends."""


def _nothing(*_: object) -> None: ...


class _Call(Generic[T]):
    """One call, from its start to its end in the thread. `is_left`: its request is answered already."""

    __slots__ = ("call", "ended", "failure", "is_left", "result")

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call
        self.ended = trio.Event()
        self.is_left = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        """In the thread."""
        try:
            self.result = self.call()
        except BaseException as e:
            self.failure = e

    def outcome(self) -> T:
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame: a cycle
        return self.result


class Threads:
    """The calls of one mount. `start` runs a function in a thread, and another one with its outcome there."""

    def __init__(self, start: Callable[..., None] = trio.lowlevel.start_thread_soon) -> None:
        self._start = start
        self._of: Counter[Hashable] = Counter()
        self._freed = trio.Event()

    def __len__(self) -> int:
        """Calls under way."""
        return self._of.total()

    async def run(
        self,
        key: Hashable,
        call: Callable[[], T],
        *,
        finished: Callable[[], None] = _nothing,
        undo: Callable[[T], object] = _nothing,
    ) -> T:
        """The result of `call`, or what it raises. `key`: what the call is for, a file as a rule.

        An interrupted request waits PATIENCE_S more, and then leaves the call to itself (trio.Cancelled). On the event
        loop, `finished` is called when the call has ended or will not be made, `undo` with a result that comes too
        late.
        """
        try:
            await park()
            while self._of.total() >= MAX_THREADS or self._of[key] >= MAX_FOR_ONE:
                await self._freed.wait()
        except BaseException:
            finished()
            raise
        made = _Call(call)
        self._begin(key, made, finished, undo)
        try:
            await made.ended.wait()
        except trio.Cancelled:
            with trio.CancelScope(deadline=trio.current_time() + PATIENCE_S, shield=True):
                await made.ended.wait()
            if not made.ended.is_set():
                made.is_left = True
                raise
        return made.outcome()

    def _begin(self, key: Hashable, made: _Call[T], finished: Callable[[], None], undo: Callable[[T], object]) -> None:
        token = trio.lowlevel.current_trio_token()

        def returned(_: object) -> None:  # in the thread
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._end, key, made, finished, undo)

        self._of[key] += 1
        self._start(made.run, returned, "backing")

    def _end(self, key: Hashable, made: _Call[T], finished: Callable[[], None], undo: Callable[[T], object]) -> None:
        self._of[key] -= 1
        if not self._of[key]:
            del self._of[key]
        freed, self._freed = self._freed, trio.Event()
        freed.set()
        made.ended.set()
        with logged("the end of a call in a thread"):
            finished()
        if made.is_left and made.failure is None:
            with logged("the end of a call in a thread"):
                undo(made.result)
