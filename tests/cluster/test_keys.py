"""Keys and values: what is written can be read, is bounded, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.cluster import keys
from pinfs.cluster.keys import (
    MAX_KEY,
    MAX_VALUE,
    CounterKey,
    MarkKey,
    MemberId,
    MemberValue,
    PinKey,
    PinValue,
    RemovalKey,
    RemovalValue,
    Unreadable,
    VerdictKey,
)
from pinfs.core.pins import Mode
from pinfs.core.ranges import END

MOST = 2**63
hosts = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
files = st.from_regex(r"[0-9a-f.]{1,40}", fullmatch=True)
words = st.from_regex(r"[a-z_]{1,24}", fullmatch=True)
members = st.builds(MemberId, hosts, st.from_regex(r"[0-9a-f]{1,16}", fullmatch=True))
numbers = st.integers(0, MOST)
ttls = st.integers(0, 86_400_000)
removals = st.builds(RemovalKey, files, members, numbers)
written = st.one_of(
    st.just(CounterKey()),
    st.builds(MarkKey, files),
    st.builds(PinKey, files, members, numbers),
    removals,
    st.builds(VerdictKey, removals, members),
)


@given(written)
def test_keys_are_read_as_they_were_written(key: MarkKey | PinKey | RemovalKey | VerdictKey | CounterKey) -> None:
    assert keys.read_key(str(key)) == key
    assert len(str(key)) <= MAX_KEY


@given(members)
def test_keys_of_members_are_read_as_they_were_written(member: MemberId) -> None:
    assert keys.read_key(member.key) == member


@given(numbers, numbers, ttls, ttls, numbers)
def test_values_of_members(promise: int, beat: int, pin_ttl_ms: int, member_ttl_ms: int, lease: int) -> None:
    value = MemberValue(promise % 10**keys.DIGITS, beat, pin_ttl_ms, member_ttl_ms, lease, lease)
    assert MemberValue.read(str(value)) == value
    assert len(str(value)) <= MAX_VALUE


@given(st.integers(0, END - 1), st.integers(1, END), st.sampled_from([*Mode]), words)
def test_values_of_pins_and_removals(start: int, length: int, mode: Mode, operation: str) -> None:
    end = min(start + length, END)
    pin, removal = PinValue(start, end, mode), RemovalValue(start, end, operation)
    assert PinValue.read(str(pin)) == pin
    assert RemovalValue.read(str(removal)) == removal
    assert keys.verdict_why(keys.verdict_text(operation)) == operation
    assert max(map(len, (str(pin), str(removal)))) <= MAX_VALUE


@given(st.integers(0, 10**keys.DIGITS - 1), st.integers(0, 10**keys.DIGITS - 1))
def test_etcd_compares_promises_as_numbers(promise: int, count: int) -> None:
    """Greater than the digits: the same promise, or a later one, because more follows."""
    value = str(MemberValue(promise, 1, 2, 3, 4, 5))
    assert (value.encode() > keys.padded(count).encode()) == (promise >= count)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "x/1",
            "c/1",
            "m/a",
            "m/a/1/2",
            "m//1",
            "m/a/xyz",
            "m/a b/1",
            "m/a/" + "1" * 17,
            "d/a/1",
            "f/",
            "f/g",
        ),
        *(
            "f/" + "a" * 41,
            "p/1/a/1",
            "p/1/a/1/x",
            "p/1/a/1/",
            "r/1/a/1/-1",
            "v/1/a:1/b/1",
            "v/1/a:1:1:1/b/1",
            "v/1/a:1:x/b/1",
        ),
        *("m/" + "a" * 65 + "/1", "f/" + "a" * 1000, "f/1\n", "m/a/1 ", "p/1/a/1/1 ", "m/\u00e4/1"),
    ],
)
def test_other_keys_are_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        keys.read_key(text)


@pytest.mark.parametrize(
    "text", ["", "1", "2 0 4 deny", "1 0 4 maybe", "1 4 0 deny", "1 4 4 deny", "1 -1 4 deny", "1 0 4 deny 5"]
)
def test_other_values_of_pins_are_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        PinValue.read(text)


@pytest.mark.parametrize(
    "text", [f"1 0 {END + 1} truncate", "1 0 \u0664 truncate", "1 0 4 Truncate", "1 0 4 " + "a" * 130, "3 0 4 x"]
)
def test_other_values_of_removals_are_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        RemovalValue.read(text)


@pytest.mark.parametrize("text", ["0000000000000001 2 1 2 3 4 5", "x 1 1 2 3 4 5", "0000000000000001 1 1 2 3 4"])
def test_other_values_of_members_are_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        MemberValue.read(text)


@pytest.mark.parametrize("word", ["", "Unanswered", "a b", "a" * 25])
def test_other_verdicts_are_refused(word: str) -> None:
    with pytest.raises(Unreadable):
        keys.verdict_text(word)
    with pytest.raises(Unreadable):
        keys.verdict_why(f"1 {word}")


def test_a_member_without_a_name_that_keys_carry_is_refused() -> None:
    with pytest.raises(Unreadable):
        MemberId("a/b", "1").check()
