"""Operations that ask and wait, as generators without an event loop.

A task yields a request, and goes on with its answer; or it yields `Until`, and goes on when the condition holds (True)
or at the deadline (False).
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pinfs.cluster.messages import Answer, Request


@dataclass(frozen=True, slots=True)
class Until:
    """`deadline`: local seconds."""

    condition: Callable[[], bool]
    deadline: float = math.inf


Steps: TypeAlias = Generator[Request | Until, Any, None]


def never() -> bool:
    """The condition of a task that waits for its deadline alone."""
    return False


@dataclass(slots=True, eq=False)
class Task:
    """`lasting`: goes on after the fence."""

    steps: Steps
    lasting: bool = False
    until: Until | None = field(default=None, init=False)


class Tasks:
    """`send` sends a request and returns the number of its call.

    Conditions are looked at whenever anything has come in, all of them: so the number of tasks has to be bounded.
    """

    def __init__(self, send: Callable[[Request], int]) -> None:
        self._send = send
        self._calls: dict[int, Task] = {}
        self._waiting: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._calls)

    def start(self, steps: Steps, lasting: bool = False) -> None:
        """Runs a new task up to its first request or wait."""
        self.run(Task(steps, lasting))

    def run(self, task: Task) -> None:
        """Does so with a task that its owner keeps, in order to end it."""
        self._resume(task, None)

    def answered(self, number: int, answer: Answer) -> None:
        """The answer to a call; one that no task waits for any more is dropped."""
        task = self._calls.pop(number, None)
        if task is not None:
            self._resume(task, answer)

    def advance(self, now: float) -> bool:
        """Runs every task whose condition holds or whose deadline has come. Has any of them moved?"""
        moved = False
        for task in [*self._waiting]:
            until = task.until
            if until is None or task not in self._waiting:
                continue
            met = until.condition()
            if met or now >= until.deadline:
                del self._waiting[task]
                self._resume(task, met)
                moved = True
        return moved

    def end(self, task: Task, reason: Exception) -> None:
        """The task gets the exception where it waits, and has to end there."""
        self._waiting.pop(task, None)
        for number in [number for number, other in self._calls.items() if other is task]:
            del self._calls[number]
        try:
            task.steps.throw(reason)
        except (StopIteration, type(reason)):
            return
        raise RuntimeError("a task went on after its end")

    def end_all(self, reason: Exception) -> None:
        """Ends all tasks but the lasting ones, and the one that calls this."""
        for task in [*self._waiting, *self._calls.values()]:
            if not task.lasting:
                self.end(task, reason)

    def next_deadline(self) -> float:
        """Local seconds; infinity: none."""
        return min((task.until.deadline for task in self._waiting if task.until), default=math.inf)

    def _resume(self, task: Task, value: object) -> None:
        try:
            wanted = task.steps.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Until):
            task.until = wanted
            self._waiting[task] = None
        else:
            task.until = None
            self._calls[self._send(wanted)] = task
