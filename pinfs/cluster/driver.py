"""One member at work: its calls to etcd, its watch and its clock are tasks, of which none waits for another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import trio

from pinfs.cluster.etcd import Restored
from pinfs.cluster.membership import State
from pinfs.cluster.messages import Batch, Refused, Request, Unknown
from pinfs.cluster.outputs import Call, Fenced, Left, Output, Watch
from pinfs.cluster.protocol import Member
from pinfs.cluster.store import Store

log = logging.getLogger("pinfs.cluster")

LONGEST_SLEEP_S: Final = 1.0
"""trio's clock stops in suspend, and the member's does not: so much later than the host the fence may wake up."""
WATCH_PAUSE_S: Final = 0.2
"""After a watch that etcd refuses, before everything is read anew for the next one."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """`moved` is called after each step of the member, before anything that it has said is passed on to `hear`."""

    moved: Callable[[Driver], None]
    hear: Callable[[Driver, Output], None]


Step: TypeAlias = Callable[[float], list[Output]]


class Driver:
    """`start` begins; its tasks run in the nursery until the member has left, or the nursery is cancelled."""

    def __init__(self, member: Member, store: Store, clock: Callable[[], float], hooks: Hooks) -> None:
        self.member = member
        self.has_joined = False
        self.is_fenced = False
        self.has_left = trio.Event()
        self._store = store
        self._clock = clock
        self._hooks = hooks
        self._nursery: trio.Nursery | None = None
        self._alarm = trio.CancelScope()
        self._watch = trio.CancelScope()

    def start(self, nursery: trio.Nursery, step: Step) -> None:
        """`step`: Member.join, or a resume."""
        self._nursery = nursery
        self.feed(step)
        nursery.start_soon(self._ticks)

    def feed(self, step: Step) -> None:
        """Something comes in, and what the member says is done at once: the answer to a removal of a file without a
        mark is heard before this returns. `step` gets the clock."""
        outputs = step(self._clock())
        self._hooks.moved(self)
        for output in outputs:
            self._do(output)
        self._alarm.deadline = trio.current_time() + self._sleep_s()

    def _do(self, output: Output) -> None:
        assert self._nursery is not None
        match output:
            case Call(number, request):
                self._nursery.start_soon(self._carry, number, request)
            case Watch(stream, from_revision):
                self._watch.cancel()
                self._watch = trio.CancelScope()
                self._nursery.start_soon(self._follow, self._watch, stream, from_revision)
            case Left():
                self._watch.cancel()
                self._alarm.cancel()
                self.has_left.set()
                self._hooks.hear(self, output)
            case Fenced():
                self.is_fenced = True
                self._watch.cancel()
                self._hooks.hear(self, output)
            case _:
                self._hooks.hear(self, output)

    async def _carry(self, number: int, request: Request) -> None:
        answer = await self._store.ask(request)
        if isinstance(answer, Restored):
            self.feed(self.member.etcd_restored)
            answer = Unknown()
        self.feed(partial(self.member.answered, number, answer))

    async def _follow(self, scope: trio.CancelScope, stream: int, from_revision: int) -> None:
        def take(batch: Batch) -> None:
            self.feed(partial(self.member.watched, stream, batch))

        with scope:
            ended = await self._store.follow(from_revision, take)
            if isinstance(ended, Refused):
                log.warning("the watch of etcd ended, and everything is read anew: %s", ended.why)
                await trio.sleep(WATCH_PAUSE_S)
                self.feed(partial(self.member.watch_lost, stream))
            else:
                self.feed(self.member.etcd_restored)

    async def _ticks(self) -> None:
        """The fence is one of the member's deadlines (I4 of the protocol), so this task waits for nothing else."""
        while not self.has_left.is_set():
            with trio.CancelScope(deadline=trio.current_time() + self._sleep_s()) as self._alarm:
                await trio.sleep_forever()
            if self.member.state is not State.LEFT:
                self.feed(self.member.tick)

    def _sleep_s(self) -> float:
        return min(LONGEST_SLEEP_S, max(0.0, self.member.next_deadline() - self._clock()))
