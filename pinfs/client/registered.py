"""`pinfs.register`: memory of a file that the library of a device holds (cudaHostRegister, hipHostRegister, ibv_reg_mr,
buffers of io_uring), under a pin, with everything let go in the right order.

Pages that a library has registered are pinned in the kernel, and the device goes on reading and writing them whatever
becomes of the file. So the pin comes before the registration and is released after it: in a break, at `release`, and
where a step of the beginning fails.
"""

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypedDict, Unpack

from pinfs.client.errors import ADVICE, advice
from pinfs.client.inode import File, descriptor_of
from pinfs.client.model import Event, Mode
from pinfs.client.pin import Pin, pin


@dataclass(frozen=True)
class Registrar:
    """How a library takes memory and gives it back.

    `register(address, length)` gets whole pages (bytes); when it raises, the device holds nothing of them.
    `unregister(address)` gets the same address, in any thread; when it raises, the device may still hold them.
    `quiesce()` stops what the program still has under way (queued copies) and waits for its end: `stream.synchronize`,
    say. It comes before `unregister`. `pinfs.client.cuda` has a registrar for CUDA.
    """

    register: Callable[[int, int], object]
    unregister: Callable[[int], object]
    quiesce: Callable[[], object] | None = None


class RegistrationOptions(TypedDict, total=False):
    """Options of `pinfs.pin` that a registration passes on; `mode` is `lease` by default here."""

    mode: Mode
    dirty: bool
    note: str
    owner: Literal["process", "handle"]
    missing_ok: bool


class Registration:
    """A range of a file that is pinned, mapped and registered, until a break or `release`.

    `memory`: a memoryview of the range, `address` and `length`: the same in bytes, `pin`: the pin that holds it
    (`pin.extend(seconds)` asks for more time in a break). Letting go: wait for the `copying` blocks, `quiesce`,
    `unregister`, unmap (a mapping of the program's own stays), release the pin. A step that fails is raised, in a break
    it is logged; the steps after it are not taken and the pin stands, because the device may still hold the memory:
    the deadline decides (SPEC 3.6), and with its default, `deny`, the breaker gets EBUSY. The next break and the next
    `release` go on with the step that failed. With `on_timeout=revoke` the bytes go while the device holds them: it is
    no policy for the files of devices.

    A forked child has no registration: there every `release` does nothing.
    """

    pin: Pin
    memory: memoryview
    address: int
    length: int

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._process = os.getpid()
        self._lock = threading.RLock()  # of the beginning and the end: a break waits until all is registered
        self._copies = _Copies()
        self._undo: list[Callable[[], object]] = []  # the last comes first
        self._over = threading.Event()

    @property
    def active(self) -> bool:
        """Whether copies may begin: no break has begun, and no `release`. A long copy looks here from time to time."""
        return self._process == os.getpid() and not self._copies.closed

    @contextmanager
    def copying(self) -> Iterator[int]:
        """A block that queues copies, or touches the memory; gives the address. A break waits for its end, and for
        `quiesce`, before it takes the memory away: without it a copy can begin in between, and dies of SIGSEGV.

        Raises OSError ENODATA: a break has begun, or the registration is released.
        """
        if self._process != os.getpid():
            raise OSError(errno.ENODATA, "a forked child has no registration")
        self._copies.begin()
        try:
            yield self.address
        finally:
            self._copies.end()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all is let go of, by a break or by `release`. False: not within `timeout_s` seconds."""
        return self._over.wait(timeout_s)

    def release(self) -> None:
        """Let go of all; once more does nothing.

        Raises what `quiesce` or `unregister` raises, BufferError where an array or a view of the memory still exists,
        OSError as `Pin.release` does: then the pin still stands. RuntimeError inside of `copying`.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            while self._undo:
                self._undo[-1]()
                self._undo.pop()
            self._over.set()

    def __enter__(self) -> "Registration":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def _begin(self, file: File, start: int, length: int, memory: Any, options: RegistrationOptions) -> None:
        with self._lock:
            try:
                fd = self._opened(file)
                self.length = length or _rest(fd, start, memory)
                options.setdefault("mode", "lease")
                self.pin = pin(fd, start, self.length, on_break=self._on_break, **options)
                self._undo.append(self.pin.release)
                self._map(fd, start, memory)
                self._register()
            except BaseException:
                self.release()
                raise

    def _on_break(self, event: Event) -> None:
        self._copies.close()
        self.release()

    def _opened(self, file: File) -> int:
        """A path is opened once, so that a rename cannot come between the pin and the mapping."""
        fd = descriptor_of(file)
        if fd is None:
            with advice("open the file for writing", str(file)):
                fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)  # type: ignore[arg-type]
            self._undo.append(partial(os.close, fd))
        return fd

    def _map(self, fd: int, start: int, memory: Any) -> None:
        skip, mapping = 0, memory
        if memory is None:
            skip = start % mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(fd, skip + self.length, offset=start - skip)
            self._undo.append(partial(_let_go, mapping.close))
        self.memory = memoryview(mapping).cast("B")[skip : skip + self.length]
        self._undo.append(partial(_let_go, self.memory.release))
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def _register(self) -> None:
        first = self.address // mmap.PAGESIZE * mmap.PAGESIZE
        end = -(-(self.address + self.length) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._registrar.register(first, end - first)
        self._undo.append(partial(self._registrar.unregister, first))
        if self._registrar.quiesce:
            self._undo.append(self._registrar.quiesce)
        self._undo.append(self._copies.drain)


class _Copies:
    """The blocks that use the memory now."""

    def __init__(self) -> None:
        self.closed = False
        self._changed = threading.Condition()
        self._threads: list[int] = []

    def begin(self) -> None:
        with self._changed:
            if self.closed:
                raise OSError(errno.ENODATA, "the registration has been released, or is about to be")
            self._threads.append(threading.get_ident())

    def end(self) -> None:
        with self._changed:
            self._threads.remove(threading.get_ident())
            self._changed.notify_all()

    def close(self) -> None:
        self.closed = True

    def drain(self) -> None:
        """No block begins from here on; returns when the last has ended."""
        with self._changed:
            if threading.get_ident() in self._threads:
                raise RuntimeError("release inside of `copying` would wait for itself")
            self.closed = True
            self._changed.wait_for(lambda: not self._threads)


def _rest(fd: int, start: int, memory: Any) -> int:
    """Bytes from `start` to the end of the file, or those of the program's own mapping."""
    length = memoryview(memory).nbytes if memory is not None else os.fstat(fd).st_size - start
    if length <= 0:
        raise OSError(errno.ENXIO, ADVICE[errno.ENXIO])
    return length


def _let_go(end: Callable[[], object]) -> None:
    try:
        end()
    except BufferError as error:
        raise BufferError("an array or a memoryview of the registered memory still exists") from error


def register(
    file: File,
    registrar: Registrar,
    start: int = 0,
    length: int = 0,
    *,
    memory: Any = None,
    **options: Unpack[RegistrationOptions],
) -> Registration:
    """Pin a range of a file, map it shared, and have a library register the mapping for its device.

    `file`: a path, or a descriptor (or an object with fileno()) that is open for reading and writing, stays open and is
    not closed here. `start`, `length`: bytes; length 0 is to the end that the file has now. `memory`: a mapping of this
    range that the program has made itself, as a writable buffer (mmap, numpy.memmap); else one is made here, and
    unmapped at the end. Options as of `pinfs.pin`; `mode` is `lease` here.

    `Registration` tells what happens, in which order, in a break and at the end of a `with` block. Use the memory
    within `copying()`, and keep no array of it outside: it would keep the mapping, and a break runs to its deadline.

    Raises what `pinfs.pin` and `registrar.register` raise, and OSError as open(2) and mmap(2); ENXIO for an empty
    range. Then nothing is pinned, mapped or registered.
    """
    registration = Registration(registrar)
    registration._begin(file, start, length, memory, options)
    return registration
