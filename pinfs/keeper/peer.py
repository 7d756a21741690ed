"""A process of the daemon's program, at the other end of a socketpair(2)."""

import _signal
import _socket
import errno
import os
import sys
import time

MAX_MESSAGE = 65536
FDS_A_MESSAGE = 250  # SCM_MAX_FD is 253
MAX_LINE = 1024  # of what a process says about its end

Message = tuple[dict[bytes, bytes], list[int]]
"""The assignments of a message, and its descriptors, which are the receiver's to close."""


class Peer:
    """The daemon that serves, or a spare that waits for its turn."""

    def __init__(self, pid: int, pidfd: int, sock: _socket.socket, argv: list[bytes], said: int = -1) -> None:
        """`said`: a file with what it writes to stderr before it is loaded; -1: it writes elsewhere."""
        self.pid, self.pidfd, self.argv, self._said = pid, pidfd, argv, said
        self.failed_because = b""
        """Why it is about to end, in its own words."""
        self.last_words = ""
        """The same after its end, or the last line that it wrote; with a colon."""
        self._sock = sock
        self.is_open = True
        """Whether it may still send."""
        self.is_loaded = self.is_ready = self.is_leaving = self.is_dismissed = self.was_killed = False
        self.watchdog_s = 0.0
        """What it has announced, for when it is ready."""
        self.limit_s = 0.0
        """Without a beat for so long it counts as hung; 0: it has no limit now."""
        self.beat = time.monotonic()
        self.outbox: list[tuple[bytes, list[int]]] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def limit(self, seconds: float) -> None:
        """From now on it has to beat every `seconds`."""
        self.beat, self.limit_s = time.monotonic(), seconds

    # Messages

    def send(self, text: bytes, fds: list[int] | None = None) -> None:
        """Send now, or when the socket takes it again."""
        self.outbox.append((text, fds or []))
        self.flush()

    def flush(self) -> bool:
        """Send what waits. False: the kernel will take no more descriptors under way for a moment (unix(7))."""
        while self.outbox:
            try:
                self._send(*self.outbox[0])
            except BlockingIOError:
                return True
            except OSError as e:
                if e.errno == errno.ETOOMANYREFS:
                    return False
                self.outbox.clear()  # it has ended: its pidfd says so as well
                return True
            del self.outbox[0]
        return True

    def _send(self, text: bytes, fds: list[int]) -> None:
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        self._sock.sendmsg([text], ancillary, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)

    def receive(self) -> Message | None:
        """None: there is no message now, or there will be no more (`is_open`). Malformed ones have no assignments."""
        try:
            space = _socket.CMSG_SPACE(4 * FDS_A_MESSAGE)
            flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
            data, ancillary, told, _ = self._sock.recvmsg(MAX_MESSAGE, space, flags)
        except BlockingIOError:
            return None
        except OSError:
            data, ancillary, told = b"", [], 0
        fds = [fd for level, kind, raw in ancillary for fd in _descriptors(level, kind, raw)]
        if not data:
            self.is_open = False
            return None
        lines = [] if told & _socket.MSG_TRUNC else data.split(b"\n")
        return {key: value for key, _, value in (line.partition(b"=") for line in lines)}, fds

    # Its process

    def signal(self, number: int) -> None:
        try:
            _signal.pidfd_send_signal(self.pidfd, number)
        except OSError:
            pass  # it has ended

    def kill(self) -> bool:
        """SIGKILL; whether it is the first."""
        self.signal(_signal.SIGKILL)
        self.beat = time.monotonic()
        first, self.was_killed = not self.was_killed, True
        return first

    def dismiss(self) -> None:
        """End a spare that is not needed: its death is no failure."""
        self.is_dismissed = True
        self.kill()

    def is_traced(self) -> bool:
        """Whether a debugger has it."""
        try:
            with open(f"/proc/{self.pid}/status", "rb") as status:
                return b"\nTracerPid:\t0\n" not in status.read()
        except OSError:
            return False

    def reap(self) -> tuple[int, str]:
        """After its end: its exit status (128 + N for a signal, as in sh(1)), and that in words. -1: it is not known,
        because the process was no child of this one."""
        self._sock.close()
        os.close(self.pidfd)
        self._read_last_words()
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return -1, "has ended"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return 128 + number, f"was killed by signal {number} ({_signal.strsignal(number)})"
        return os.WEXITSTATUS(status), f"has ended with status {os.WEXITSTATUS(status)}"

    def _read_last_words(self) -> None:
        said = self.failed_because
        if self._said >= 0:
            size = os.fstat(self._said).st_size
            text = os.pread(self._said, MAX_LINE, max(0, size - MAX_LINE))
            said = said or text.strip().rpartition(b"\n")[2]
            os.close(self._said)
        if said:
            self.last_words = f": {said.decode(errors='replace')}"


def _descriptors(level: int, kind: int, raw: bytes) -> list[int]:
    if (level, kind) != (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
        return []
    return [int.from_bytes(raw[at : at + 4], sys.byteorder) for at in range(0, len(raw) - 3, 4)]
