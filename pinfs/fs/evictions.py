"""The last close of files without a name: eviction frees their blocks, and waits for pages that the kernel holds.

No signal ends that wait (dax_break_layout_final(), Linux 7.3), so the descriptor is closed in a thread, and nothing of
the mount waits with it (SPEC 3.9).
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from trio.lowlevel import start_thread_soon

MAX_THREADS: Final = 64
"""With as many evictions that wait, further descriptors stay open until one of them ends."""


class Evictions:
    """Closes descriptors: of files that have a name at once, of others in threads.

    `any_may_wait`: whether a call that no signal ends has locked a file: a network or FUSE file system writes back when
    a file is closed, and needs that lock, so that all are closed in threads meanwhile.
    `start_thread` runs a function in a thread, and another one with its result there (`trio.lowlevel`).
    """

    def __init__(self, start_thread: Callable[..., None] = start_thread_soon) -> None:
        self.any_may_wait: Callable[[], bool] = lambda: False
        self._start_thread = start_thread
        self._lock = threading.Lock()
        """Of all below, which the threads use as well."""
        self._waiting: deque[int] = deque()
        self._threads = 0
        self._closing = 0

    def __len__(self) -> int:
        """Files that are being closed, or are to be."""
        with self._lock:
            return len(self._waiting) + self._closing

    def close(self, fd: int) -> None:
        """close(2). Returns at once."""
        if not self.any_may_wait() and os.fstat(fd).st_nlink:
            os.close(fd)
        else:
            self.close_in_thread(fd)

    def close_in_thread(self, fd: int) -> None:
        """close(2), whatever it waits for. Returns at once."""
        with self._lock:
            self._waiting.append(fd)
            if self._threads == MAX_THREADS:
                return
            self._threads += 1
        self._start_thread(self._close_waiting, lambda result: None, "eviction")

    def _close_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                fd = self._waiting.popleft()
                self._closing += 1
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor is gone in any case (close(2))
            finally:
                with self._lock:
                    self._closing -= 1
