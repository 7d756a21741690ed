"""What all pins have in common, as programs hold them."""

import errno
import os
import signal as signals
import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from types import TracebackType
from typing import Any

from pinfs.client.model import Mode, PinInfo, State
from pinfs.client.xattrs import RequestedPin

GONE = {errno.ENODATA, errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED}
"""What a mount answers about a pin that stands no more; the last two where the whole mount has ended."""


class Pin(ABC):
    """A pin that stands from the call that made it until `release`, the end of a `with` block, or the end of its owner.

    `id`, `start`, `length` (bytes), `mode` and `name` are as last registered. A forked child has no pins: there every
    `release` does nothing.
    """

    def __init__(self, name: str, requested: RequestedPin) -> None:
        self.id = 0
        self.name = name
        self._requested = requested
        self._process = os.getpid()
        self._lock = threading.Lock()  # of the release, which must not wait for a change that the kernel holds back
        self._changing = threading.Lock()
        self._released = False

    @property
    def start(self) -> int:
        return self._requested.start

    @property
    def length(self) -> int:
        return self._requested.length

    @property
    def mode(self) -> Mode:
        return self._requested.mode

    @property
    def active(self) -> bool:
        """Whether this object still owes a release. (What the mount says: `state`.)"""
        return not self._released and self._process == os.getpid()

    @abstractmethod
    def info(self) -> PinInfo:
        """The pin as it stands now. Raises OSError ENODATA or ENOENT when it is gone."""

    @abstractmethod
    def _replace(self, requested: RequestedPin) -> None:
        """Change the pin to `requested` in one step. Raises OSError ENODATA or ENOENT when it is gone."""

    @abstractmethod
    def _release(self) -> None:
        """Release the pin if it still stands, and all that goes with it."""

    @abstractmethod
    def extend(self, seconds: float) -> None:
        """Ask for more time to answer a break: `seconds` from now, capped by policy (`break_timeout_max`).

        Raises OSError ENODATA: the pin is not breaking.
        """

    def state(self) -> State:
        """`held`, `breaking`, or `gone` (released, revoked, or its owner is no more)."""
        try:
            return self.info().state
        except OSError as error:
            if error.errno in GONE:
                return "gone"
            raise

    def resize(self, start: int, length: int) -> None:
        """Move, shrink or grow, with no moment in between. Raises OSError as `pin` does; then the pin is as it was.

        It also answers a break: once none of the bytes that the removal takes away is pinned any more, the breaker goes
        on. (Where a mount's `.pinfs` is out of reach, the kernel holds it back while a truncate of the file waits: as
        `change`.)
        """
        self._change(start=start, length=length)

    def change(self, *, mode: Mode) -> None:
        """Change the mode; see `resize`. That of a process-owned pin waits while a truncate of the file waits."""
        self._change(mode=mode)

    def _change(self, **what: Any) -> None:
        self._require_active()
        with self._changing:
            self._require_active()
            self._replace(replace(self._requested, **what))

    def _require_active(self) -> None:
        if not self.active:
            raise OSError(errno.ENODATA, "the pin has been released")

    def release(self) -> None:
        """Release the pin; once more does nothing.

        Raises OSError where a `dirty` range cannot be flushed (EIO...): then the pin still stands.
        """
        if not self.active:  # a forked child returns here: a thread of its parent may have held the lock at the fork
            return
        with self._lock:
            if not self.active:
                return
            self._release()
            self._released = True

    def __enter__(self) -> "Pin":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.start}:{self.length} {self.mode}>"


class NoPin(Pin):
    """What `missing_ok=True` gives for a file that is not on pinfs: it promises nothing, and asks for nothing."""

    @property
    def active(self) -> bool:
        return False

    def info(self) -> PinInfo:
        raise OSError(errno.ENODATA, "there is no pin: the file is not on pinfs")

    def resize(self, start: int, length: int) -> None:
        self._requested = replace(self._requested, start=start, length=length)

    def change(self, *, mode: Mode) -> None:
        self._requested = replace(self._requested, mode=mode)

    def extend(self, seconds: float) -> None:
        pass

    def _replace(self, requested: RequestedPin) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError


def with_signal(requested: RequestedPin) -> RequestedPin:
    """The mode's default is SIGIO for a lease, and the default action of SIGIO ends the process (signal(7)): a program
    that has given SIGIO no disposition gets no signal, and neither does another process, whose dispositions are not
    known here."""
    if requested.signal is not None or requested.mode != "lease":
        return requested
    is_own = requested.pid in (None, os.getpid())
    handles_it = is_own and signals.getsignal(signals.SIGIO) is not signals.SIG_DFL
    return requested if handles_it else replace(requested, signal="none")
