"""Whatever anybody sends: errors as the contract has them, no other, and not a word of surprise in the daemon's log
(the fixture fails for a traceback)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.mounts import Mount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE, SIZE
from breaks.conftest import PATIENT

SHARED_MOUNT_OPTIONS = ("break_timeout=100", "log_level=info")
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])

PIN_ERRORS = {
    errno.EINVAL, errno.ENXIO, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.ESRCH, errno.ENODATA, errno.EOPNOTSUPP,
}  # fmt: skip
KERNEL_ERRORS = {errno.ERANGE, errno.E2BIG, errno.ENAMETOOLONG}  # of names and sizes that never get as far as pinfs
IOCTL_ERRORS = {errno.EINVAL, errno.ENXIO, errno.EAGAIN, errno.EDQUOT, errno.EACCES, errno.ENOENT, errno.ENOTTY}
COMMAND_ERRORS = {errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENODATA, errno.ENXIO, errno.EAGAIN}


@pytest.fixture(autouse=True)
def gone(patient: Mount) -> None:
    """Pins of this process would outlive their test."""
    for pin in patient.pins():
        with open(patient.control("events"), "wb", buffering=0) as channel:
            channel.write(b"release %d" % pin["id"])


def joined(separator: str) -> Callable[[Iterable[str]], bytes]:
    return lambda parts: separator.join(parts).encode("utf-8", "replace")


EDGES = [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, 10**30]
GOOD_WORDS = ["deny", "lease", "none", "IO", "RTMIN+1", "yes", "no", "1"]
numbers = st.one_of(st.integers(0, SIZE + 1), st.sampled_from(EDGES), st.integers()).map(str)
words = st.one_of(numbers, st.text(max_size=8), st.sampled_from(GOOD_WORDS))
keys = st.sampled_from(["mode", "signal", "pid", "dirty", "note", "", "v"])
places = st.tuples(numbers, numbers).map(":".join)
pairs = st.lists(st.tuples(keys, words).map("=".join), max_size=4)
values = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=64).map(lambda text: text.encode(errors="surrogatepass")),
    st.builds(lambda place, rest: [place, *rest], places, pairs).map(joined(",")),
)
verbs = st.sampled_from(["release", "resize", "extend", "revoke", "destroy", ""])
lines = st.one_of(st.binary(max_size=40), st.tuples(verbs, words, words, words).map(joined(" ")))


@FUZZ
@given(name=st.binary(max_size=40).filter(lambda name: b"\0" not in name), value=values, flags=st.integers(0, 3))
@example(name=b"p", value=b"0:1,mode=deny,mode=deny", flags=0)
@example(name=b"p", value="0:1,note=\N{SNOWMAN}".encode(), flags=0)
@example(name=b"\xff\xfe", value=b"0:0", flags=0)
@example(name=b"p", value=b"0" * 65536, flags=0)
def test_values_of_attributes(patient: Mount, file: Path, name: bytes, value: bytes, flags: int) -> None:
    """A value registers a pin inside the file, or is refused; the listing is JSON whatever the names are."""
    attribute = b"user.pinfs.pin." + name
    try:
        os.setxattr(file, attribute, value, flags)
    except OSError as failure:
        assert failure.errno in PIN_ERRORS | KERNEL_ERRORS | {errno.EEXIST}
    listed = json.loads(os.getxattr(file, "user.pinfs.pins"))["pins"]
    assert [pin["id"] for pin in listed] == [pin["id"] for pin in patient.pins()]
    for pin in listed:
        assert pin["start"] >= 0 and pin["start"] + pin["length"] <= SIZE
    with suppress(OSError):
        os.removexattr(file, attribute)


@FUZZ
@given(st.binary(max_size=60).filter(lambda name: b"\0" not in name))
@example(b"")
@example(b"pins")
@example(b"pin.")
@example(b"release.")
@example(b"release.\xff")
def test_names_of_attributes(patient: Mount, file: Path, name: bytes) -> None:
    attribute = b"user.pinfs." + name
    for call in (lambda: os.getxattr(file, attribute), lambda: os.removexattr(file, attribute)):
        try:
            call()
        except OSError as failure:
            assert failure.errno in PIN_ERRORS | KERNEL_ERRORS
    assert os.listxattr(file) == []


@FUZZ
@given(st.lists(lines, max_size=4))
@example([b"release 1\nrelease"])
@example([b"extend 1 nan"])
@example([b"extend 1 1e400"])
@example([b"resize 1 0 1,mode=deny"])
@example([b"release \xd9\xa1"])
@example([b"x" * 70000])
def test_commands_of_the_event_channel(patient: Mount, file: Path, lines: list[bytes]) -> None:
    with suppress(OSError):
        os.setxattr(file, "user.pinfs.pin.p", b"0:1,mode=lease,signal=none")
    channel = os.open(patient.control("events"), os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(channel, b"\n".join(lines))
    except OSError as failure:
        assert failure.errno in COMMAND_ERRORS
    finally:
        os.close(channel)
    for pin in patient.pins():
        assert pin["start"] >= 0 and pin["start"] + pin["length"] <= SIZE


_bits = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, PAGE, SIZE, 2**63 - 1, 2**63, 2**64 - 1]))
_half = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
structs = st.one_of(
    st.binary(min_size=104, max_size=104),
    st.builds(
        lambda start, length, mode, signo, flags, note: struct.pack(
            "<QQIiIIQ64s", start, length, mode, signo, flags, 0, 0, note
        ),
        _bits, _bits, _half, st.integers(-3, 70), _half, st.binary(max_size=64),
    ),
)  # fmt: skip
any_number = st.builds(
    lambda way, size, number: way << 30 | size << 16 | ord("P") << 8 | number,
    st.integers(0, 3),
    st.integers(0, 200),
    st.integers(0, 255),
)
commands = st.one_of(st.sampled_from([acts.IOC_PIN, acts.IOC_UNPIN, acts.IOC_QUERY]), any_number)


@FUZZ
@given(command=commands, data=structs)
def test_structs_of_ioctls(patient: Mount, file: Path, command: int, data: bytes) -> None:
    """Also with numbers that nobody has defined, of any size and direction."""
    fd = os.open(file, os.O_RDWR)
    try:
        fcntl.ioctl(fd, command, data.ljust(256, b"\0"))
    except OSError as failure:
        assert failure.errno in IOCTL_ERRORS
    for pin in patient.pins():
        assert pin["start"] >= 0 and pin["start"] + pin["length"] <= SIZE
    os.close(fd)
    assert not patient.pins()


POLICY_KEYS = ["conflict", "errno", "own", "unlink", "mapped", "break_timeout", "max_pins", "path", "x"]
TOML_VALUES = ["true", "1.5", "inf", "nan", "1979-05-27", "[]", "{}"]
policy_keys = st.one_of(st.sampled_from(POLICY_KEYS), st.text(max_size=5))
toml_values = st.one_of(words.map(json.dumps), numbers, st.sampled_from(TOML_VALUES), st.text(max_size=8))
headers = st.sampled_from(["[[rule]]", "[rule]", "[", '[[rule]]\npath = "**/a"'])
toml_lines = st.one_of(st.tuples(policy_keys, toml_values).map(" = ".join), headers)
texts = st.one_of(st.binary(max_size=200), st.lists(toml_lines, max_size=6).map(joined("\n")))


@FUZZ
@given(texts)
@example(b"a" * 70000)
@example(b"[" * 5000)
@example(b"break_timeout = " + b"9" * 5000)
@example(b"\xff\xfe")
@example(b"")
def test_policies(patient: Mount, text: bytes) -> None:
    """In force as a whole, or not at all."""
    patient.expect_log("WARNING.*policy from uid 0 refused")
    before = patient.policy()
    fd = os.open(patient.control("policy"), os.O_WRONLY)
    try:
        os.write(fd, text)
    except OSError as failure:
        assert failure.errno in {errno.EINVAL, errno.EFBIG}
        assert patient.policy() == before
    finally:
        os.close(fd)
    shown = patient.control("policy").read_text()
    after = patient.policy()
    assert patient.policy(shown) == after  # what is shown can always be put in force
    patient.policy(PATIENT)


def test_an_empty_write_is_not_a_policy_nor_a_command(patient: Mount) -> None:
    """write(2) of nothing does nothing."""
    patient.policy('errno = "ETXTBSY"')
    for name in ("policy", "events"):
        fd = os.open(patient.control(name), os.O_WRONLY)
        assert os.write(fd, b"") == 0
        os.close(fd)
    assert patient.policy()["errno"] == "ETXTBSY"


def test_the_mount_still_works_after_all_that(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    holder.pin(file, "p", "0:1")
    assert patient.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
    assert file.read_bytes() == ORIGINAL
