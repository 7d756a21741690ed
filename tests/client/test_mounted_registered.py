"""`pinfs.register` on a real mount. The library is io_uring; its registered buffers are pages that the kernel pins."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actor import Actor, eventually
from support.mounts import Mount
from support.uring import READ_FIXED, Ring

import pinfs
from pinfs.client import callbacks

SIZE = 1 << 20
LIMIT_S = 20  # when a test counts as hung; no test waits for it


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def data(base: Path) -> Iterator[int]:
    """A descriptor of what the ring reads: on tmpfs, outside of the mount."""
    (base / "data").write_bytes(b"z" * SIZE)
    fd = os.open(base / "data", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring() as ring:
        yield ring


@pytest.fixture(autouse=True)
def _no_channel_stays_open() -> Iterator[None]:
    yield
    eventually(lambda: not any(t.name.startswith("pinfs-") for t in threading.enumerate()), LIMIT_S)
    assert not callbacks._by_device


def pinned_kib() -> int:
    """The memory of this process that the kernel says is pinned (proc_pid_status(5), VmPin)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmPin"].split()[0])


class Watched:
    """The ring as a registrar. Lists what was pinned, by the mount and by the kernel, at each step."""

    def __init__(self, ring: Ring, file: Path) -> None:
        self.ring, self.file = ring, file
        self.steps: list[tuple[str, int, int]] = []
        self.failing = False

    def note(self, step: str) -> None:
        self.steps.append((step, len(pinfs.pins(self.file)), pinned_kib()))

    def register(self, address: int, length: int) -> None:
        self.note("before register")
        self.ring.register(address, length)

    def unregister(self, address: int) -> None:
        if self.failing:
            raise RuntimeError("the device does not answer")
        self.ring.unregister(address)
        self.note("after unregister")

    def registrar(self) -> pinfs.Registrar:
        return pinfs.Registrar(self.register, self.unregister, lambda: self.note("quiesce"))


@pytest.fixture
def watched(ring: Ring, file: Path) -> Watched:
    return Watched(ring, file)


def test_a_break_unregisters_and_the_truncate_goes_on(
    watched: Watched, file: Path, breaker: Actor, ring: Ring, data: int
) -> None:
    registration = pinfs.register(file, watched.registrar())
    assert pinned_kib() == SIZE >> 10
    with registration.copying():
        assert ring.call(READ_FIXED, data, registration.memory, 4096, 0) == 4096
    assert file.read_bytes()[:4096] == b"z" * 4096
    breaker(os.truncate, str(file), 0)
    assert registration.wait(LIMIT_S)
    kib = SIZE >> 10
    assert watched.steps == [("before register", 1, 0), ("quiesce", 1, kib), ("after unregister", 1, 0)]
    assert file.stat().st_size == 0
    assert pinfs.pins(file) == []


def test_a_truncate_waits_for_the_end_of_a_copy(watched: Watched, file: Path, breaker: Actor) -> None:
    registration = pinfs.register(file, watched.registrar())
    with registration.copying():
        cut = breaker.start(os.truncate, str(file), 0)
        eventually(lambda: not registration.active, LIMIT_S)
        assert registration.pin.state() == "breaking"
        assert not cut.done()
        registration.memory[0] = 1  # no SIGBUS: the bytes are there
    cut.result()
    assert registration.wait(LIMIT_S)


def test_a_deny_pin_refuses_while_the_device_writes(
    watched: Watched, file: Path, breaker: Actor, ring: Ring, data: int
) -> None:
    with pinfs.register(file, watched.registrar(), mode="deny") as registration:
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
        assert ring.call(READ_FIXED, data, registration.memory, SIZE, 0) == SIZE
    assert file.read_bytes() == b"z" * SIZE
    assert pinned_kib() == 0
    assert breaker.errno(os.truncate, str(file), 0) is None


@pytest.mark.mount("break_timeout=1")
def test_what_is_not_unregistered_stays_pinned_and_the_deadline_decides(ring: Ring, mount: Mount, data: int) -> None:
    file = mount.path / "file"
    file.write_bytes(bytes(SIZE))
    watched = Watched(ring, file)
    registration = pinfs.register(file, watched.registrar())
    watched.failing = True
    assert mount.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
    with pytest.raises(RuntimeError, match="does not answer"):
        registration.release()
    assert registration.pin.state() == "held"
    assert ring.call(READ_FIXED, data, registration.memory, SIZE, 0) == SIZE
    assert file.read_bytes() == b"z" * SIZE
    watched.failing = False
    registration.release()
    assert mount.actor().errno(os.truncate, str(file), 0) is None


@pytest.mark.mount("passthrough=off")
def test_what_the_kernel_does_not_pin_leaves_no_pin(ring: Ring, mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(bytes(SIZE))
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        pinfs.register(file, Watched(ring, file).registrar())
    assert pinfs.pins(file) == []
    assert mount.actor().errno(os.truncate, str(file), 0) is None


def test_a_registration_by_a_handle(watched: Watched, file: Path, breaker: Actor) -> None:
    registration = pinfs.register(file, watched.registrar(), owner="handle")
    assert [pin.owner for pin in pinfs.pins(file)] == ["handle"]
    breaker(os.truncate, str(file), 0)
    assert registration.wait(LIMIT_S)
    assert pinned_kib() == 0
