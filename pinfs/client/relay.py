"""Events for a program whose eventfd the daemon may not fetch: a thread waits for them in read(2).

A mount need not answer poll(2) (`-o poll`). The thread passes on what it reads through a socket, which can be polled
like any other.
"""

import contextlib
import os
import socket
import threading
import time

BUFFER = 1 << 16  # bytes of whole lines; read() of a channel answers EINVAL where not even one fits
PAUSE_S = 0.5  # where too many readers wait already (a mount without the bridge)


class Relay:
    """Takes over a blocking descriptor of a channel. The thread begins with the first call of `fileno`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._owner = os.getpid()
        self._news: socket.socket | None = None
        self._lock = threading.Lock()
        self._closed = self._ended = False

    def fileno(self) -> int:
        """Does not block; each read from it gives what one read of the channel gave, nothing when the mount is gone."""
        if self._news is None:
            self._news = self._start()
        return self._news.fileno()

    def _start(self) -> socket.socket:
        news, self._sink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        news.setblocking(False)
        try:
            threading.Thread(target=self._run, name="pinfs-relay", daemon=True).start()
        except BaseException:  # RuntimeError: no thread can be started
            news.close()
            self._sink.close()
            raise
        return news

    def _run(self) -> None:
        with contextlib.suppress(OSError), self._sink as sink:  # the channel is closed, or the mount is gone
            while lines := self._read():
                sink.send(lines)
        with self._lock:
            self._ended = True
            if self._closed:
                os.close(self._fd)

    def _read(self) -> bytes:
        while not self._closed:
            try:
                return os.read(self._fd, BUFFER)
            except BlockingIOError:
                time.sleep(PAUSE_S)
        return b""

    def close(self) -> None:
        """A read that waits is not ended by close(2): the mount is asked to end it. The last one to end, this call or
        the thread, closes the descriptor."""
        if self._news is None:
            os.close(self._fd)
        elif os.getpid() != self._owner:  # a forked child: the thread and its wait are its parent's
            os.close(self._fd)
            self._sink.close()
            self._news.close()
        else:
            self._news.close()
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._closed = True
            if self._ended:
                os.close(self._fd)
            else:
                with contextlib.suppress(OSError):  # the mount is gone, and has ended the read itself
                    os.write(self._fd, b"end\n")
