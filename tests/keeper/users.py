"""Programs at work on a mount whose daemons follow each other, which must not notice that."""

from __future__ import annotations

import json
import os
from typing import Any

from support.actor import Actor, Actors, eventually

from keeper.background import Background

CONTENT = b"weights"


class Users(Actors):
    """Of one mount: a reader with an open file, a holder of a lease, and a truncate that waits for it."""

    def __init__(self, background: Background) -> None:
        super().__init__()
        self.file = background.point / "file"
        self.file.write_bytes(CONTENT)
        self.device = os.stat(background.point).st_dev
        self._reader: Actor = self.actor()
        self._fd = self._reader(os.open, str(self.file), os.O_RDONLY)
        self._holder: Actor = self.actor()
        self._holder.pin(self.file, "held", f"0:{len(CONTENT)},mode=lease,signal=none")
        self._breaker: Actor = self.actor()
        self._cut = self._breaker.start(os.truncate, str(self.file), 0)
        eventually(lambda: background.status()["waiting"] == 1)
        (self.pin,) = pins(background)

    def notice_nothing(self, background: Background) -> None:
        status = background.status()
        assert os.stat(background.point).st_dev == self.device
        assert (status["pins"], status["waiting"]) == (1, 1)
        assert pins(background)[0]["id"] == self.pin["id"]
        assert not self._cut.done()
        assert self._reader(os.pread, self._fd, 100, 0) == CONTENT

    def release(self) -> None:
        """The holder lets go, and the truncate succeeds."""
        self._holder.release(self.file, "held")
        assert self._cut.error() is None
        assert self._reader(os.fstat, self._fd).st_size == 0
        self.dismiss(hanging=False)


def pins(background: Background) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (background.point / ".pinfs/pins").read_text().splitlines()]
