"""Messages to a service manager: sd_notify(3), one datagram each, and the watchdog (sd_watchdog_enabled(3))."""

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final

import trio

from pinfs.runtime.errors import logged
from pinfs.serve.descriptorstore import DescriptorStore

log = logging.getLogger("pinfs.notify")

STATUS_S: Final = 10.0  # how old the status may be that `systemctl status` shows


class Notifier:
    """Sends to NOTIFY_SOCKET; to nowhere where there is none. Processes that we start later do not inherit it."""

    def __init__(
        self, environ: MutableMapping[str, str], keeper: DescriptorStore | None = None, watchdog_s: float = 0.0
    ) -> None:
        """`keeper` is told the same, and is to end the daemon after `watchdog_s` without a beat."""
        self._keeper = keeper if keeper is not None and keeper.is_own else None
        self._keeper_watchdog_s = watchdog_s if self._keeper else 0.0
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_for_us = usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 1e6 if is_for_us else 0.0
        """The manager ends the daemon after so many seconds without a beat; 0: it has no watchdog."""

    def tell(self, *assignments: str) -> None:
        """Send `READY=1`, `STATUS=...` and their like. Where it cannot be sent (no descriptor, no listener), go on."""
        if self._keeper is not None:
            self._keeper.tell(*assignments)
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sending:
                sending.sendto("\n".join(assignments).encode(errors="replace"), self._address)
        except OSError as e:
            log.info("the service manager cannot be told: %s", e)

    async def keep_telling(self, status: Callable[[], str]) -> None:
        """Send the status, and the watchdog's beat: by a task of the event loop, because that is what may be stuck."""
        if not self._address and not self._keeper_watchdog_s:
            return
        limits = (self.watchdog_s, self._keeper_watchdog_s)
        pause_s = min([STATUS_S, *(limit_s / 2 for limit_s in limits if limit_s)])
        beat = ["WATCHDOG=1"] * any(limits)
        while True:
            text = ""
            with logged("the status for the service manager"):
                text = status()
            self.tell(*beat, f"STATUS={text}")
            await trio.sleep(pause_s)


def _address(name: str) -> str:
    """As for connect(2): `@` stands for the NUL of an abstract address. Others (vsock:...) are not supported: empty."""
    return f"\0{name[1:]}" if name.startswith("@") else name if name.startswith("/") else ""
