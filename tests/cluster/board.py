"""What the director of a hostile run tells its programs, and what these write down. Standard library only."""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

_FIELDS = struct.Struct("=qd")
_CUT_OFF_AT = 32


class Board:
    """A page that all programs see. Times are of time.monotonic()."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)

    @property
    def is_over(self) -> bool:
        """Programs let go of everything and end."""
        return bool(self._page[0])

    def end(self) -> None:
        self._page[0] = 1

    def life(self, host: int) -> int:
        """Odd while the host lives; each of its lives has a number of its own."""
        return self._get(host)[0]

    def born(self, host: int) -> None:
        self._set(host, self.life(host) + 1, self.stand_until(host))

    def killed(self, host: int, pins_stand_until: float) -> None:
        """Comes before the kill."""
        self._set(host, self.life(host) + 1, pins_stand_until)

    def stand_until(self, host: int) -> float:
        """To when the pins of a host that was killed keep their bytes."""
        return self._get(host)[1]

    def is_cut_off(self, host: int) -> bool:
        """From the others and from etcd: half of the holders hold on to what they have, until they hear that it is
        gone."""
        return bool(self._page[64 * (host + 1) + _CUT_OFF_AT])

    def cut_off(self, host: int, *, is_it: bool) -> None:
        self._page[64 * (host + 1) + _CUT_OFF_AT] = is_it

    def _get(self, host: int) -> tuple[int, float]:
        life, until = _FIELDS.unpack_from(self._page, 64 * (host + 1))
        return life, until

    def _set(self, host: int, life: int, until: float) -> None:
        _FIELDS.pack_into(self._page, 64 * (host + 1), life, until)


class Log:
    """Lines of JSON, one for each thing that a program did, which outlive it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, **details: Any) -> None:
        line = json.dumps({"what": what, "at": round(time.monotonic(), 4), **details})
        os.write(self._fd, f"{line}\n".encode())


def read_logs(directory: Path) -> list[dict[str, Any]]:
    """All lines of all programs, by time. A program that was killed may leave half a line."""
    lines: list[dict[str, Any]] = []
    for path in directory.iterdir():
        for line in path.read_bytes().splitlines():
            try:
                lines.append({"by": path.name, **json.loads(line)})
            except json.JSONDecodeError:
                continue
    return sorted(lines, key=lambda line: line["at"])
