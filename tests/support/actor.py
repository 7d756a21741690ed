"""Processes that a test directs: holders, breakers, readers.

An actor is a small Python process that calls one function at a time on behalf of the test. The call is written as it
would be inside that process, so that a test reads as a script; results and OSErrors come back as themselves:

    holder, breaker = mount.actor(), mount.actor(uid=1000)
    fd = holder(os.open, path, os.O_RDWR)
    cut = breaker.start(os.truncate, path, 0)      # waits in the kernel
    holder(os.close, fd)
    cut.result()

Functions travel by name: anything of the standard library, and what `support.acts` defines.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Generic, ParamSpec, TypeVar

from support import acts

P = ParamSpec("P")
T = TypeVar("T")

ANSWER_LIMIT_S = 30.0
"""How long an actor may take before it counts as hung. Never part of what a test asserts."""

TESTS = Path(__file__).parents[1]
SYSTEM_PYTHON = next((p for p in ("/usr/bin/python3",) if Path(p).exists()), sys.executable)


class HungError(AssertionError):
    """An actor did not answer in time; the message says where in the kernel it stands."""


class Pending(Generic[T]):
    """A call under way in an actor."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def done(self) -> bool:
        """Whether the answer has arrived (does not wait)."""
        return self._actor.readable(0)

    def fileno(self) -> int:
        """A descriptor that is readable when the answer has arrived."""
        assert self._actor.process.stdout
        return self._actor.process.stdout.fileno()

    def result(self, limit_s: float = ANSWER_LIMIT_S) -> T:
        """The value that the call returned; raises what it raised, HungError after `limit_s` seconds."""
        answer: T = self._actor.answer(limit_s)
        return answer

    def state(self) -> str:
        """The state of the calling thread, as ps shows it: S, D (cannot be interrupted), R, Z..."""
        return self._actor.state()

    def error(self, limit_s: float = ANSWER_LIMIT_S) -> int | None:
        """The errno that the call failed with, None when it succeeded."""
        try:
            self.result(limit_s)
        except OSError as failure:
            return failure.errno
        return None


class _Calls(pickle.Pickler):
    """Calls, for a Python that may be another than the one of the tests (SYSTEM_PYTHON).

    CPython 3.13 alone has what is in pathlib under names that no other has (`pathlib._abc.PathBase.read_text`)."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, PurePath):
            return Path, (os.fspath(value),)
        if (getattr(value, "__module__", None) or "").startswith("pathlib._"):
            return acts.of_pathlib, (value.__qualname__.replace("Base", ""),)
        return NotImplemented


class Actor:
    """One directed process. `uid`, `gid` and `groups` are taken on after start; `prefix` is a command to run it under
    (unshare, taskset, ...)."""

    def __init__(
        self, *, uid: int = 0, gid: int | None = None, groups: Sequence[int] = (), prefix: Sequence[str] = ()
    ) -> None:
        program = [*prefix, SYSTEM_PYTHON, "-E", "-s", str(TESTS / "support" / "actor_program.py")]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.busy = False
        self.pid: int = self(os.getpid)  # as the actor sees it: another pid namespace has other numbers
        if uid or gid or groups:
            self(acts.become, uid, uid if gid is None else gid, tuple(groups))

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` in the actor and waits for the result."""
        return self.start(function, *args, **kwargs).result()

    def start(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        """Starts the call and returns at once. One call at a time: ask for its result before the next."""
        assert not self.busy, "this actor is still busy with its last call"
        assert self.process.stdin
        _Calls(self.process.stdin).dump((function, args, kwargs))
        self.process.stdin.flush()
        self.busy = True
        return Pending(self)

    def errno(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> int | None:
        """The errno that the call fails with, None when it succeeds."""
        return self.start(function, *args, **kwargs).error()

    def readable(self, timeout_s: float) -> bool:
        """Whether an answer (or the actor's end) is there within `timeout_s` seconds."""
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], timeout_s)[0])

    def answer(self, limit_s: float) -> Any:
        """Takes the answer of the call under way."""
        if not self.readable(limit_s):
            raise HungError(f"actor {self.process.pid} did not answer in {limit_s} s\n{where(self.process.pid)}")
        assert self.process.stdout
        self.busy = False
        try:
            value, failure = pickle.load(self.process.stdout)
        except EOFError:
            raise ProcessLookupError(f"actor {self.process.pid} ended with {self.process.wait()}") from None
        if failure is not None:
            raise failure
        return value

    def pin(self, path: os.PathLike[str] | str, name: str, value: str) -> None:
        """Registers or replaces pin `name` of the actor on `path` (SPEC 5)."""
        self(os.setxattr, os.fspath(path), f"user.pinfs.pin.{name}", value.encode())

    def release(self, path: os.PathLike[str] | str, name: str) -> None:
        """Releases pin `name` the way that also works while a truncate waits (SPEC 5)."""
        assert self(os.getxattr, os.fspath(path), f"user.pinfs.release.{name}") == b"released"

    def state(self) -> str:
        """The process state, as ps shows it."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1][0]

    def signal(self, number: int) -> None:
        """Sends a signal to the process of the actor."""
        self.process.send_signal(number)

    def kill(self) -> int:
        """Ends the actor with SIGKILL and waits for its end. Returns the status as subprocess does."""
        self.process.kill()
        status = self._wait()
        self._close_pipes()
        return status

    def end(self) -> None:
        """Asks it to end, or kills it in the middle of a call. Does not wait: that call may hang on the mount."""
        self.process.send_signal(signal.SIGKILL if self.busy else signal.SIGCONT)  # one that was stopped sees no end
        self._close_pipes()

    def close(self) -> None:
        """Ends the actor and waits for its end."""
        self.end()
        self._wait()

    def _wait(self) -> int:
        try:
            return self.process.wait(ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise HungError(f"actor {self.process.pid} does not end\n{where(self.process.pid)}") from None

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with suppress(BrokenPipeError):  # it died with our last call unread
                pipe.close()


class Actors:
    """The actors of one mount, which end with it."""

    def __init__(self) -> None:
        self._actors: list[Actor] = []

    def actor(
        self, *, uid: int = 0, gid: int | None = None, groups: Sequence[int] = (), prefix: Sequence[str] = ()
    ) -> Actor:
        """A process that the test directs."""
        self._actors.append(Actor(uid=uid, gid=gid, groups=groups, prefix=prefix))
        return self._actors[-1]

    def dismiss(self, *, hanging: bool = True) -> None:
        """Ends all of them; without `hanging` those in the middle of a call may take their time."""
        for actor in self._actors:
            actor.end()
        for actor in [actor for actor in self._actors if hanging or not actor.busy]:
            actor.close()
            self._actors.remove(actor)


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Waits for what no event announces (a process state, a counter). Fails after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "this never became true"
        time.sleep(0.002)


def where(pid: int) -> str:
    """What every thread of a process does in the kernel, for the message of a failure."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        try:
            state = task.joinpath("stat").read_text().rsplit(") ", 1)[1][0]
            lines.append(f"thread {task.name} state {state}, syscall {task.joinpath('syscall').read_text().strip()}")
            lines.append(task.joinpath("stack").read_text())
        except OSError as failure:
            lines.append(f"thread {task.name}: {failure}")
    return "\n".join(lines)
