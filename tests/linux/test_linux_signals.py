"""One spelling means one signal, whichever way it comes in: by attribute, by ioctl, on the command line."""

import signal

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.cli.pin import signal_number
from pinfs.client import ioctl
from pinfs.fs import ioctls
from pinfs.fs.pinvalue import parse_pin_value
from pinfs.linux.signals import is_signal, parse_signal, signal_name

REFUSED = "refused"
SPELLINGS = {
    "IO": 29,
    "SIGIO": 29,
    "io": 29,
    "SigIO": 29,
    "usr1": 10,
    "10": 10,
    "9": 9,
    "64": 64,
    "RTMIN": 34,
    "rtmin+1": 35,
    "SIGRTMAX-1": 63,
    "none": None,
    "NONE": REFUSED,
    "": REFUSED,
    "0": REFUSED,
    "32": REFUSED,
    "33": REFUSED,
    "65": REFUSED,
    "-1": REFUSED,
    "010": REFUSED,
    "SIG10": REFUSED,
    "USR1+1": REFUSED,
    "TERM-1": REFUSED,
    "RTMIN-1": REFUSED,
    "RTMIN+31": REFUSED,
    "SIGSIGIO": REFUSED,
    "HUPS": REFUSED,
    " 10": REFUSED,
    "ıo": REFUSED,  # its upper case is IO
    "1٠": REFUSED,
}

Meaning = int | str | None


def by_attribute(text: str) -> Meaning:
    try:
        return parse_pin_value(f"0:0,signal={text}".encode()).spec.signal
    except OSError:
        return REFUSED


def by_ioctl(text: str) -> Meaning:
    """From the client's call to what the daemon reads in the struct."""
    try:
        number = ioctl.signal_number(text)
    except ValueError:
        return REFUSED
    read = ioctls.decode_pin(ioctl.PinRequest(0, 0, ioctl.LEASE, number).pack()).signal
    return None if read == ioctl.SIGNAL_NONE else read


def on_the_command_line(text: str) -> Meaning:
    try:
        return signal_number(text)
    except click.BadParameter:
        return REFUSED


@pytest.mark.parametrize("way", [by_attribute, by_ioctl, on_the_command_line])
@pytest.mark.parametrize(("text", "meaning"), SPELLINGS.items(), ids=repr)
def test_spellings(way, text: str, meaning: Meaning) -> None:
    assert way(text) == meaning


@given(st.sampled_from(sorted(SPELLINGS)) | st.text("SIGRTMINAXUO0123456789+- none", max_size=12))
def test_all_ways_agree(text: str) -> None:
    assert by_attribute(text) == by_ioctl(text) == on_the_command_line(text)


@pytest.mark.parametrize("number", [0, -1, 32, 33, 65, True])
def test_numbers_are_refused_as_their_spelling_is(number: int) -> None:
    with pytest.raises(ValueError, match="no such signal"):
        ioctl.signal_number(number)


def test_a_signal_is_its_number() -> None:
    assert ioctl.signal_number(signal.SIGUSR1) == 10


@given(st.integers(-100, 200).filter(is_signal))
def test_names_are_read_back(number: int) -> None:
    assert parse_signal(signal_name(number)) == number
