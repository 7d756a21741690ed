"""Nearest neighbours among vectors that lie in a mapped numpy file, which others may replace at any time.

`Index` reads, `publish` replaces in place. Without pins a reader dies of SIGBUS when the file is truncated under its
mapping. On pinfs the reader holds a lease: it is notified, drops its mapping, and maps the new vectors at the next
question. During a `batch` the file cannot be truncated at all.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

import pinfs

Vectors = NDArray[np.float32]


class NotReadyError(Exception):
    """New vectors are just being written; ask again in a moment."""


class Index:
    """The vectors of a .npy file (float32, one a row), mapped when they are first asked for.

    On other file systems than pinfs it works as well, without the protection.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pin: pinfs.Pin | None = None
        self._vectors: Vectors | None = None

    def nearest(self, question: Vectors, count: int = 1) -> list[int]:
        """The rows most like the question, best first. Raises NotReadyError."""
        with self._lock:  # `_let_go` waits for this: nothing is unmapped while it is read
            likeness = self._mapped() @ question
            return [int(row) for row in np.argsort(-likeness, kind="stable")[:count]]

    @property
    def mapped(self) -> bool:
        """Whether the file is mapped, and leased, now."""
        return self._vectors is not None

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Within the block a truncate of the file gets EBUSY, and all answers are about the same vectors."""
        with pinfs.pin(self._path, mode="deny", note="vectors: batch", missing_ok=True):
            yield

    def close(self) -> None:
        """Unmap, then release: in this order, as the pin is what keeps the mapping safe."""
        with self._lock:
            self._vectors = None
            pin, self._pin = self._pin, None
        if pin is not None:
            pin.release()

    def _mapped(self) -> Vectors:
        if self._vectors is None:
            try:
                self._pin = self._lease()
                self._vectors = np.load(self._path, mmap_mode="r")
            except (OSError, EOFError, ValueError) as reason:  # EAGAIN, or a file of which the rest is still to come
                if self._pin is not None:
                    self._pin.release()
                raise NotReadyError(f"{self._path}: {reason}") from reason
        return self._vectors

    def _lease(self) -> pinfs.Pin:
        return pinfs.pin(self._path, mode="lease", on_break=self._let_go, note="vectors", missing_ok=True)

    def _let_go(self, event: pinfs.Event) -> None:
        """A removal breaks the lease. When this returns, the pin is released and the removal goes on."""
        with self._lock:
            self._vectors = None


def publish(path: str | os.PathLike[str], vectors: Vectors) -> None:
    """Put new vectors into the same file. Waits for readers to let go; OSError EBUSY while one runs a batch."""
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        file.truncate(0)
        np.save(file, vectors)
