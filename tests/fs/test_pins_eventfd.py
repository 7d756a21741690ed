"""How a pin names its eventfd: in the text of an attribute, and in the struct of an ioctl."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from pinfs.fs.ioctls import decode_pin
from pinfs.fs.pinvalue import parse_pin_value
from pinfs.interface.ioctls import PIN_LAYOUT

from .conftest import ME, Bench


@pytest.mark.parametrize(("text", "number"), [("", None), (",eventfd=0", 0), (",eventfd=2147483647", 2**31 - 1)])
def test_a_value_may_name_an_eventfd(text: str, number: int | None) -> None:
    parsed = parse_pin_value(b"0:1,signal=none" + text.encode())
    assert (parsed.eventfd, parsed.spec.eventfd) == (number, None)


@pytest.mark.parametrize("text", ["", "-1", "+1", "x", "1.0", "0x1", " 1", "1 ", "2147483648", "9" * 30, "1,eventfd=1"])
def test_values_that_name_no_descriptor(text: str) -> None:
    with pytest.raises(OSError) as refused:
        parse_pin_value(f"0:1,eventfd={text}".encode())
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "field", "number"), [(0, 0, None), (2, 0, 0), (2, 2**31 - 1, 2**31 - 1), (3, 5, 5), (1, 0, None)]
)
def test_an_ioctl_may_name_an_eventfd(flags: int, field: int, number: int | None) -> None:
    """And it is answered as it came, with the id."""
    struct = PIN_LAYOUT.pack(0, 1, 1, 0, flags, field, 0, b"note")
    request = decode_pin(struct)
    assert (request.eventfd, request.dirty) == (number, bool(flags & 1))
    assert request.answered(7) == PIN_LAYOUT.pack(0, 1, 1, 0, flags, field, 7, b"note")


@pytest.mark.parametrize(("flags", "field"), [(0, 1), (1, 1), (2, 2**31), (2, 2**32 - 1), (4, 0), (6, 1), (2**31, 0)])
def test_ioctls_that_name_no_descriptor(flags: int, field: int) -> None:
    with pytest.raises(OSError) as refused:
        decode_pin(PIN_LAYOUT.pack(0, 1, 1, 0, flags, field, 0, b""))
    assert refused.value.errno == errno.EINVAL


async def test_a_number_is_of_the_process_that_called(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends while the bytes of a device are flushed: what has its pid by then is not asked."""
    nodeid, eventfd = await bench.file("f", 8192), os.eventfd(0)
    caller = os.fork()
    if not caller:
        signal.pause()

    def end_caller(fd: int) -> None:
        os.kill(caller, signal.SIGKILL)
        os.waitpid(caller, 0)

    monkeypatch.setattr(os, "fdatasync", end_caller)
    await bench.pin(nodeid, "p", f"0:100,dirty=yes,pid={os.getpid()}")
    with pytest.raises(ProcessLookupError):
        await bench.pin(nodeid, "p", f"0:50,pid={os.getpid()},eventfd={eventfd}", ME._replace(pid=caller))
    os.close(eventfd)
