"""What is let go of, in which order, with functions in place of a device and no mount."""

import ctypes
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pinfs
from pinfs.client import registered
from pinfs.client.callbacks import Watch
from pinfs.client.model import Event

LIMIT_S = 20  # when a test counts as hung; no test waits for it
PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE


class Device:
    """A library whose calls are listed, and fail where a test says so."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.range = (0, 0)

    def call(self, name: str) -> None:
        if name in self.failing:
            raise RuntimeError(f"{name} failed")
        self.calls.append(name)

    def register(self, address: int, length: int) -> None:
        self.call("register")
        self.range = (address, length)

    def unregister(self, address: int) -> None:
        assert address == self.range[0]
        ctypes.string_at(address, 1)  # the memory is still mapped
        self.call("unregister")

    def registrar(self) -> pinfs.Registrar:
        return pinfs.Registrar(self.register, self.unregister, lambda: self.call("quiesce"))


class FakePin:
    """In place of a pin on a mount. `break_` answers a break as the thread of the mount does."""

    def __init__(self, device: Device, arguments: tuple[int, int], on_break: Callable[[Event], object], **kept: Any):
        self.arguments, self.options = arguments, kept
        self._device, self._released = device, False
        self._watch = Watch(on_break, self.release, lambda: pytest.fail("no event was lost"))

    def release(self) -> None:
        if not self._released:
            self._device.call("release")
            self._released = True

    def break_(self) -> None:
        self._watch.answer(Event("break", pin=1))


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def pins(device: Device, monkeypatch: pytest.MonkeyPatch) -> list[FakePin]:
    """The pins that were made."""
    made: list[FakePin] = []

    def pin(file: int, start: int, length: int, **options: Any) -> FakePin:
        device.call("pin")
        made.append(FakePin(device, (start, length), **options))
        return made[-1]

    monkeypatch.setattr(registered, "pin", pin)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


WHOLE = ["pin", "register", "quiesce", "unregister", "release"]


def test_a_block_pins_first_and_releases_last(pins, device: Device, file: Path) -> None:
    with pinfs.register(file, device.registrar()) as registration:
        assert device.calls == ["pin", "register"]
        assert (registration.address, registration.length) == device.range == (registration.address, SIZE)
        assert registration.memory == file.read_bytes()
        assert registration.active
        with registration.copying() as address:
            ctypes.memset(address, 7, 1)
    assert device.calls == WHOLE
    assert file.read_bytes()[0] == 7
    assert not registration.active
    assert registration.wait(0)
    registration.release()
    assert device.calls == WHOLE
    with pytest.raises(ValueError, match="released"):
        registration.memory[0]
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_a_break_takes_the_same_steps(pins, device: Device, file: Path) -> None:
    registration = pinfs.register(file, device.registrar(), note="weights")
    assert pins[0].arguments == (0, SIZE)
    assert pins[0].options == {"mode": "lease", "note": "weights"}
    pins[0].break_()
    assert device.calls == WHOLE
    assert registration.wait(0)
    with pytest.raises(OSError, match="released, or is about to be") as failure, registration.copying():
        pass
    assert failure.value.errno == errno.ENODATA


def test_whole_pages_are_registered_and_exact_bytes_pinned(pins, device: Device, file: Path) -> None:
    with pinfs.register(file, device.registrar(), PAGE + 100, PAGE) as registration:
        assert pins[0].arguments == (PAGE + 100, PAGE)
        assert device.range == (registration.address - 100, 2 * PAGE)
        assert registration.memory == file.read_bytes()[PAGE + 100 : 2 * PAGE + 100]


def test_a_mapping_of_the_program_stays(pins, device: Device, file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        with pinfs.register(opened, device.registrar(), memory=mapping) as registration:
            assert registration.length == SIZE
            with pytest.raises(BufferError):
                mapping.close()
        assert device.calls == WHOLE
        assert mapping[1] == 1
        opened.seek(0)


def test_a_break_waits_for_the_copies_and_lets_none_begin(pins, device: Device, file: Path) -> None:
    registration = pinfs.register(file, device.registrar())
    answer = threading.Thread(target=pins[0].break_)
    with registration.copying():
        answer.start()
        while registration.active:
            answer.join(0.001)
        with pytest.raises(OSError, match="about to be"), registration.copying():
            pass
        assert device.calls == ["pin", "register"]
        device.call("copied")
    answer.join(LIMIT_S)
    assert device.calls == ["pin", "register", "copied", "quiesce", "unregister", "release"]


def test_a_break_while_the_library_registers_waits_for_it(pins, device: Device, file: Path) -> None:
    answers: list[threading.Thread] = []

    def register(address: int, length: int) -> None:
        answers.append(threading.Thread(target=pins[0].break_))
        answers[0].start()
        answers[0].join(0.05)
        assert device.calls == ["pin"]
        device.register(address, length)

    registration = pinfs.register(file, pinfs.Registrar(register, device.unregister))
    assert registration.wait(LIMIT_S)
    answers[0].join(LIMIT_S)
    assert device.calls == ["pin", "register", "unregister", "release"]


def test_release_inside_of_a_copy_says_so(pins, device: Device, file: Path) -> None:
    with pinfs.register(file, device.registrar()) as registration:
        with registration.copying(), pytest.raises(RuntimeError, match="would wait for itself"):
            registration.release()
        assert registration.active


@pytest.mark.parametrize("failing", ["quiesce", "unregister", "release"])
def test_a_step_that_fails_keeps_the_pin_and_is_taken_again(
    pins, device: Device, file: Path, failing: str, caplog
) -> None:
    registration = pinfs.register(file, device.registrar())
    device.failing = {failing}
    with caplog.at_level(logging.ERROR, "pinfs.client"):
        pins[0].break_()
    assert f"{failing} failed" in caplog.text
    assert "the pin stays, and the deadline decides" in caplog.text
    with pytest.raises(RuntimeError, match=failing):
        registration.release()
    assert device.calls == WHOLE[: WHOLE.index(failing)]
    assert not registration.active
    assert not registration.wait(0)
    device.failing = set()
    pins[0].break_()
    assert device.calls == WHOLE
    assert registration.wait(0)


def test_an_array_that_is_kept_keeps_the_pin(pins, device: Device, file: Path) -> None:
    registration = pinfs.register(file, device.registrar())
    array = (ctypes.c_char * SIZE).from_buffer(registration.memory)
    with pytest.raises(BufferError, match="still exists"):
        registration.release()
    assert device.calls == ["pin", "register", "quiesce", "unregister"]
    del array
    registration.release()
    assert device.calls == WHOLE


@pytest.mark.parametrize("failing", ["pin", "register"])
def test_a_beginning_that_fails_leaves_nothing(pins, device: Device, file: Path, failing: str) -> None:
    descriptors = os.listdir("/proc/self/fd")
    device.failing = {failing}
    with pytest.raises(RuntimeError, match=failing):
        pinfs.register(file, device.registrar())
    assert device.calls == ([] if failing == "pin" else ["pin", "release"])
    assert os.listdir("/proc/self/fd") == descriptors
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_a_mapping_that_fails_releases_the_pin(pins, device: Device, file: Path) -> None:
    with file.open("rb") as opened, pytest.raises(PermissionError):
        pinfs.register(opened, device.registrar())
    assert device.calls == ["pin", "release"]


@pytest.mark.parametrize("start", [SIZE, SIZE + 1])
def test_an_empty_range(pins, device: Device, file: Path, start: int) -> None:
    with pytest.raises(OSError, match="does not lie inside") as failure:
        pinfs.register(file, device.registrar(), start)
    assert failure.value.errno == errno.ENXIO
    assert device.calls == []


def test_a_file_elsewhere(device: Device, file: Path) -> None:
    with pytest.raises(pinfs.NotPinfsError):
        pinfs.register(file, device.registrar())
    with pinfs.register(file, device.registrar(), missing_ok=True):
        pass
    assert device.calls == ["register", "quiesce", "unregister"]


def test_a_forked_child_does_nothing(pins, device: Device, file: Path) -> None:
    with pinfs.register(file, device.registrar()) as registration, registration.copying():
        child = os.fork()
        if not child:
            status = 1
            try:
                registration.release()
                with pytest.raises(OSError, match="forked"), registration.copying():
                    pass
                status = 1 if registration.active or device.calls != ["pin", "register"] else 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    assert device.calls == WHOLE
