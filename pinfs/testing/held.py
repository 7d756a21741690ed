"""A pin that another process holds.

A pin of the test's own process would not do: a process that removes bytes that it pinned itself is refused in both
modes.
"""

import json
import select
import subprocess
import sys
from types import TracebackType
from typing import Any, Literal

from pinfs.client.model import Mode

ANSWER_S = 30.0


class HolderError(Exception):
    """The holding process could not pin, or did not answer."""


class HeldPin:
    """One pin and the process that holds it; the pin stands until `release`, or until a lease is broken.

    `path`, `start`, `length`, `mode`: as for `pinfs.pin`. `lets_go`: whether the holder answers a break of its lease by
    releasing it, or leaves the breaker waiting until the deadline. Raises OSError as `pinfs.pin` does.
    """

    def __init__(
        self, path: str, start: int = 0, length: int = 0, *, mode: Mode = "deny", lets_go: bool = True, note: str = ""
    ) -> None:
        self.path, self.start, self.length, self.mode = path, start, length, mode
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "pinfs.testing.holder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lines = b""
        self.breaks: list[dict[str, Any]] = []
        """The events of all breaks that `next_break` has returned (docs/interfaces.md)."""
        try:
            self._say(path=path, start=start, length=length, mode=mode, lets_go=lets_go, note=note)
            self.id: int = self._hear("pinned")["id"]
        except BaseException:
            self.release()
            raise

    @property
    def pid(self) -> int:
        """The pid of the holding process."""
        return self._holder.pid

    def next_break(self, limit_s: float = ANSWER_S) -> dict[str, Any]:
        """Wait for a break and return its event. Raises HolderError after `limit_s` seconds."""
        event: dict[str, Any] = self._hear("break", limit_s)["event"]
        self.breaks.append(event)
        return event

    def release(self) -> None:
        """Release the pin and end its holder; a second call does nothing."""
        if self._holder.stdin and not self._holder.stdin.closed:
            self._holder.stdin.close()
        try:
            self._holder.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()

    def __enter__(self) -> "HeldPin":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def _say(self, **words: Any) -> None:
        assert self._holder.stdin
        self._holder.stdin.write(json.dumps(words).encode() + b"\n")
        self._holder.stdin.flush()

    def _hear(self, what: Literal["pinned", "break"], limit_s: float = ANSWER_S) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self._line(what, limit_s))
        if line["what"] == "error":
            raise OSError(line["errno"], line["text"], self.path)
        assert line["what"] == what
        return line

    def _line(self, what: str, limit_s: float) -> bytes:
        out = self._holder.stdout
        assert out
        if not select.select([out], [], [], limit_s)[0]:
            raise HolderError(f"no {what} of {self.path} in {limit_s} s")
        line = out.readline()
        if not line:
            raise HolderError(f"the holder of {self.path} ended before any {what}")
        return line
