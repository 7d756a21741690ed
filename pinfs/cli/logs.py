"""The destinations of the daemon's log: terminal, file, journal or syslog, as text or JSON."""

import json
import logging
import logging.handlers
import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Final

from pinfs.observe.wording import printable
from pinfs.runtime.messages import identifier

JOURNAL: Final = "/run/systemd/journal/socket"
SYSLOG: Final = "/dev/log"
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Target(StrEnum):
    """The destinations."""

    STDERR = "stderr"  # foreground, containers, systemd (which forwards it to the journal)
    JOURNAL = "journal"
    SYSLOG = "syslog"


def background_target() -> Target:
    """The log of a daemon without a terminal: the journal, else syslog, else stderr."""
    for target, address in ((Target.JOURNAL, JOURNAL), (Target.SYSLOG, SYSLOG)):
        if Path(address).exists():
            return target
    return Target.STDERR


def setup(target: Target, file: Path | None, level: str, *, as_json: bool) -> None:
    """Send all log records of this process to `file`, or to `target`. OSError where that cannot be opened."""
    handler = logging.handlers.WatchedFileHandler(file) if file else _handler(target)
    handler.setFormatter(JsonLines() if as_json else PlainLines(with_time=file is not None or target is Target.STDERR))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _handler(target: Target) -> logging.Handler:
    if target is Target.JOURNAL:
        return Journal()
    if target is Target.SYSLOG:
        return logging.handlers.SysLogHandler(SYSLOG)
    return logging.StreamHandler()


class PlainLines(logging.Formatter):
    """Text, escaped: a file's name can neither fake a second record nor control the terminal."""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__(f"{'%(asctime)s ' if with_time else ''}%(name)s %(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = super().format(record).split("\n")
        if (number := identifier(record)) is not None:
            first += f" [{number}]"
        return "\n".join([printable(first), *(f"    {printable(line)}" for line in rest)])


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"v": 1, "time": record.created, "level": record.levelname.lower(), "logger": record.name}
        if (number := identifier(record)) is not None:
            entry["id"] = number
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return json.dumps(entry | {"message": text})


class Journal(logging.Handler):
    """systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram a record."""

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, os.strerror(error.errno or 0), address) from error

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "pinfs",
            "PINFS_LOGGER": record.name,
        }
        if (number := identifier(record)) is not None:
            fields["PINFS_MESSAGE_ID"] = number
        try:
            self._socket.send(b"".join(_field(name, text.encode(errors="replace")) for name, text in fields.items()))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, value: bytes) -> bytes:
    """Length and bytes instead of NAME=value, so that a value may hold newlines."""
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
