"""The client's codecs against the daemon's: what one writes, the other understands."""

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.client import ioctl, xattrs
from pinfs.client.model import Event, PinInfo, break_of, parse_event, parse_pin
from pinfs.client.xattrs import RequestedPin
from pinfs.core.pins import Mode
from pinfs.fs import ioctls
from pinfs.fs.pinvalue import parse_pin_value
from pinfs.interface.attributes import RELEASE

PRINTABLE = st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S"), exclude_characters=",")
NOTES = st.text(PRINTABLE, max_size=15)
OFFSETS = st.integers(0, 2**62 - 1)
MODES = st.sampled_from(["deny", "lease"])
DAEMON_MODES = {"deny": Mode.DENY, "lease": Mode.LEASE}


@given(OFFSETS, OFFSETS, MODES, st.none() | st.integers(1, 2**31 - 1), st.booleans(), NOTES)
def test_the_daemon_reads_the_attribute(start, length, mode, pid, dirty, note) -> None:
    value = parse_pin_value(xattrs.encode(RequestedPin(start, length, mode, "USR1", pid, dirty, note)))
    spec = value.spec
    assert (spec.start, spec.length, spec.mode) == (start, length, DAEMON_MODES[mode])
    assert (spec.signal, value.pid, spec.dirty, spec.note) == (signal.SIGUSR1, pid, dirty, note)


@pytest.mark.parametrize("words", [{"note": "a,pid=1"}, {"note": "a\nb"}, {"signal": "IO,pid=1"}])
def test_no_key_can_be_smuggled_in(words) -> None:
    with pytest.raises(ValueError, match="comma"):
        xattrs.encode(RequestedPin(0, 0, **words))


@pytest.mark.parametrize("name", ["", "a\0b", "x" * (xattrs.NAME_MAX + 1), "\udcff"])
def test_bad_names(name) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        xattrs.check_name(name)


def test_the_longest_name_fits_both_verbs() -> None:
    assert len(RELEASE + xattrs.check_name("x" * xattrs.NAME_MAX)) == 255


@given(OFFSETS, OFFSETS, MODES, st.integers(-1, 31), st.booleans(), NOTES)
def test_the_daemon_reads_the_struct(start, length, mode, number, dirty, note) -> None:
    request = ioctl.PinRequest(
        start, length, ioctl.LEASE if mode == "lease" else 0, number, ioctl.DIRTY * dirty, 0, note.encode()
    )
    wanted = ioctls.decode_pin(request.pack())
    assert (wanted.start, wanted.length, wanted.mode) == (start, length, DAEMON_MODES[mode])
    assert (wanted.signal, wanted.dirty, wanted.note) == (number, dirty, note)
    assert ioctl.PinRequest.unpack(wanted.answered(7)) == request._replace(id=7)


def test_the_numbers_are_the_daemons() -> None:
    assert (ioctl.PIN, ioctl.UNPIN, ioctl.QUERY) == (ioctls.PIN, ioctls.UNPIN, ioctls.QUERY)


@pytest.mark.parametrize("field", [{"start": -1}, {"length": 2**64}, {"note": b"x" * 64}, {"note": b"a\0b"}])
def test_what_the_struct_cannot_carry(field) -> None:
    with pytest.raises(ValueError, match=r"range|NUL"):
        ioctl.PinRequest(0, 0, 0)._replace(**field).pack()


@given(st.tuples(*[st.integers(0, 2**63 - 1)] * 3), MODES, st.integers(0, 10**9))
def test_a_query_tells_of_the_break(numbers, mode, remaining_ms) -> None:
    pin_id, start, length = numbers
    answer = ioctl.PinQuery(pin_id, start, length, int(mode == "lease"), ioctl.BREAKING, remaining_ms, 5, ioctl.TO_END)
    event = ioctl.break_event(ioctl.PinQuery.unpack(answer.pack()))
    assert (event.event, event.pin, event.start, event.length, event.mode) == ("break", pin_id, start, length, mode)
    assert (event.from_, event.to, event.remaining_s) == (5, None, remaining_ms / 1000)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, -1),
        ("none", 0),
        (12, 12),
        ("USR1", signal.SIGUSR1),
        ("SIGIO", signal.SIGIO),
        ("RTMIN+2", 36),
        ("RTMAX-1", 63),
    ],
)
def test_signal_numbers(text, number) -> None:
    assert ioctl.signal_number(text) == number


@pytest.mark.parametrize("text", ["HUPS", "USR1+x", ""])
def test_no_such_signal(text) -> None:
    with pytest.raises(ValueError, match="no such signal"):
        ioctl.signal_number(text)


PIN_JSON = {"v": 1, "id": 7, "start": 0, "length": 4096, "mode": "lease", "state": "held", "deadline": None}
EVENT_JSON = {"v": 1, "seq": 3, "event": "break", "pin": 7, "name": "w", "inode": 12, "path": "w.bin", "start": 0,
              "length": 4096, "mode": "lease", "op": "truncate", "from": 100, "to": None, "deadline": 5.0,
              "remaining_s": 1.5}  # fmt: skip


@given(st.dictionaries(st.text(min_size=3), st.integers()))
def test_values_may_gain_fields(extra) -> None:
    fields = {**extra, **PIN_JSON}
    known = {key: value for key, value in fields.items() if key in PinInfo.__dataclass_fields__}
    assert parse_pin(json.dumps(fields)) == PinInfo(**known)


def test_an_event() -> None:
    event = parse_event(json.dumps(EVENT_JSON))
    assert event == Event("break", 3, 7, "w", 12, "w.bin", 0, 4096, "lease", "truncate", 100, None, 5.0, 1.5)


def test_a_pin_found_breaking_is_a_break() -> None:
    info = parse_pin(json.dumps({**PIN_JSON, "state": "breaking", "deadline": 5.0, "inode": 12, "name": "w"}))
    event = break_of(info)
    assert (event.event, event.pin, event.name, event.inode, event.deadline) == ("break", 7, "w", 12, 5.0)
