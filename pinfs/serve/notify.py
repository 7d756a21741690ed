"""Telling a service manager how it goes: sd_notify(3), one datagram each, and the watchdog (sd_watchdog_enabled(3))."""

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final

import trio

log = logging.getLogger("pinfs.notify")

STATUS_S: Final = 10.0  # how old the status may be that `systemctl status` shows


class Notifier:
    """Where NOTIFY_SOCKET leads; nowhere when there is none. What we start later does not inherit it."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_for_us = usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 1e6 if is_for_us else 0.0
        """The manager ends us when it hears nothing for that many seconds; 0: it does not."""

    def tell(self, *assignments: str) -> None:
        """Send `READY=1`, `STATUS=...` and their like. A manager that does not listen is no reason to fail."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending:
            try:
                sending.sendto("\n".join(assignments).encode(errors="replace"), self._address)
            except OSError as e:
                log.info("the service manager does not hear us: %s", e)

    async def keep_telling(self, status: Callable[[], str]) -> None:
        """From a task of the event loop, so that the watchdog notices when that one is stuck."""
        if not self._address:
            return
        pause_s = min(self.watchdog_s / 2 or STATUS_S, STATUS_S)
        while True:
            self.tell(*["WATCHDOG=1"] * bool(self.watchdog_s), f"STATUS={status()}")
            await trio.sleep(pause_s)


def _address(name: str) -> str:
    """As for connect(2): `@` stands for the NUL of an abstract one. What is neither (vsock:...) is not for us."""
    return f"\0{name[1:]}" if name.startswith("@") else name if name.startswith("/") else ""
