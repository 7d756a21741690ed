"""The keeper's own lines, where the daemon logs and in the daemon's forms (pinfs/cli/logs.py).

Each ends with its identifier (docs/messages.md): `text [P901]`.
"""

import _socket
import os
import time

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
SYSLOG = ("/run/systemd/journal/dev-log", "/dev/log")
PRIORITY = {"info": 30, "warning": 28, "error": 27}  # LOG_DAEMON with the severity


class Log:
    """To `target`: "stderr", "syslog", or the path of a file, which is opened for each line (it may be rotated)."""

    def __init__(self, target: str, level: str, as_json: bool) -> None:
        self._target = target
        self._threshold = LEVELS.get(level, 20)
        self._as_json = as_json

    def __call__(self, level: str, text: str) -> None:
        if LEVELS[level] >= self._threshold:
            try:
                self._write(level, printable(text))
            except OSError:
                pass  # there is no other place to say so

    def _write(self, level: str, text: str) -> None:
        if self._target == "syslog":
            _to_syslog(f"<{PRIORITY[level]}>pinfs[{os.getpid()}]: pinfs.keeper {level.upper()}: {text}".encode())
        elif self._target.startswith("/"):
            fd = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.write(fd, self._line(level, text))
            os.close(fd)
        else:
            os.write(2, self._line(level, text))

    def _line(self, level: str, text: str) -> bytes:
        now = time.time()
        if self._as_json:
            text, _, identifier = text.partition(" [P")
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            fields = f'"v": 1, "time": {now:.6f}, "level": "{level}", "logger": "pinfs.keeper"'
            return f'{{{fields}, "message": "{quoted}", "id": "P{identifier[:3]}"}}\n'.encode()
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        return f"{at},{int(now * 1000) % 1000:03} pinfs.keeper {level.upper()}: {text}\n".encode()


def _to_syslog(line: bytes) -> None:
    for address in SYSLOG:
        sending = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sending.connect(address)
            sending.send(line, _socket.MSG_DONTWAIT)
            return
        except OSError:
            continue
        finally:
            sending.close()


def printable(text: str) -> str:
    """ASCII without control characters: a file's name may hold anything."""
    return "".join(char if " " <= char <= "~" else f"<{ord(char):x}>" for char in text)
