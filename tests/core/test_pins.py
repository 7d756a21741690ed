"""The pin table: what it accepts, what it finds, what it counts."""

import errno
from typing import Any

import pytest

from pinfs.core.pins import Event, Mode, Pin, PinSpec, PinTable, State
from pinfs.core.policy import Limits
from pinfs.core.ranges import END

SIZE = 10_000


class Table(PinTable):
    """A table with its events, and short ways to fill it."""

    def __init__(self, **limits: int) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append, Limits(**limits))

    def add(self, start: int, length: int, owner: str = "p", name: bytes | None = None, **more: Any) -> Pin:
        inode, uid, proxy_uid = more.pop("inode", 1), more.pop("uid", 7), more.pop("proxy_uid", None)
        return self.pin(inode, owner, owner, uid, name, PinSpec(start, length, **more), SIZE, 5.0, proxy_uid)


def refused(number: int, table: Table, *args: Any, **kwargs: Any) -> None:
    before = {pin.id: pin.spec for pin in table.by_id.values()}
    with pytest.raises(OSError) as caught:
        table.add(*args, **kwargs)
    assert caught.value.errno == number
    assert {pin.id: pin.spec for pin in table.by_id.values()} == before


def test_a_pin_is_found_by_inode_id_owner_and_name() -> None:
    table = Table()
    pin = table.add(0, 100, name=b"weights")
    assert pin.state is State.HELD
    assert pin.deadline is None
    assert list(table.of_file(1)) == table.of_owner("p") == [table.by_id[pin.id]] == [pin]
    assert table.find(1, "p", b"weights") is pin
    assert table.find(1, "q", b"weights") is None
    assert table.find(2, "p", b"weights") is None
    assert list(table.of_file(2)) == table.of_owner("q") == []


def test_ids_count_from_one_and_are_never_used_again() -> None:
    table = Table()
    first = table.add(0, 1)
    table.release(first, 6.0)
    assert (first.id, table.add(0, 1).id) == (1, 2)


@pytest.mark.parametrize(
    ("start", "length", "number"),
    [
        (-1, 5, errno.EINVAL),
        (5, -1, errno.EINVAL),
        (END, 0, errno.EINVAL),
        (1, END - 1, errno.EINVAL),
        (2**64, 2**64, errno.EINVAL),
        (SIZE, 1, errno.ENXIO),
        (0, SIZE + 1, errno.ENXIO),
        (SIZE + 1, 0, errno.ENXIO),
        (1, END - 2, errno.ENXIO),
    ],
)
def test_a_range_that_is_none_or_not_in_the_file_is_refused(start: int, length: int, number: int) -> None:
    refused(number, Table(), start, length)


@pytest.mark.parametrize(("start", "length"), [(0, SIZE), (SIZE - 1, 1), (0, 0), (SIZE, 0)])
def test_ranges_up_to_the_last_byte_are_taken(start: int, length: int) -> None:
    assert Table().add(start, length).end == (start + length if length else END)


def test_a_length_of_zero_follows_the_end_of_the_file() -> None:
    table = Table()
    table.add(5000, 0)
    assert table.touches(1, 10**12, 10**12 + 1)
    assert not table.touches(1, 0, 5000)
    assert table.pinned_bytes == SIZE - 5000


def test_the_same_name_replaces_in_one_step() -> None:
    table = Table()
    pin = table.add(0, 100, name=b"n")
    again = table.add(200, 50, name=b"n", mode=Mode.LEASE, note="moved")
    assert again is pin
    assert (pin.id, pin.start, pin.length, pin.mode, pin.note, pin.since) == (1, 200, 50, Mode.LEASE, "moved", 5.0)
    assert len(table) == 1
    assert not table.touches(1, 0, 100)
    assert [event.why for event in table.events] == [None, "replaced"]


def test_a_name_belongs_to_its_owner_and_file() -> None:
    table = Table()
    pins = {table.add(0, 1, "p", b"n"), table.add(0, 1, "q", b"n"), table.add(0, 1, "p", b"n", inode=2)}
    assert len(pins) == 3


def test_pins_without_a_name_are_always_new() -> None:
    table = Table()
    assert table.add(0, 1) is not table.add(0, 1)


def test_a_replacement_that_fails_leaves_the_old_pin() -> None:
    table = Table(max_pinned_bytes_per_user=100)
    table.add(0, 100, name=b"n")
    refused(errno.ENXIO, table, SIZE, 5, name=b"n")
    refused(errno.EDQUOT, table, 0, 101, name=b"n")
    assert table.touches(1, 99, 100)


def test_deny_pins_are_shown_first_and_each_kind_by_start() -> None:
    table = Table()
    for start, mode in [(3, Mode.LEASE), (2, Mode.DENY), (1, Mode.LEASE), (4, Mode.DENY)]:
        table.add(start, 1, mode=mode)
    assert [pin.start for pin in table.of_file(1)] == [2, 4, 1, 3]


def test_the_uid_that_registered_a_pin_for_another_finds_it_by_name_if_it_is_the_only_one() -> None:
    table = Table()
    pin = table.add(0, 1, "p", b"n", proxy_uid=1000)
    assert table.find_proxy(1, b"n", 1000) is pin
    assert table.find_proxy(1, b"n", 1001) is None
    other = table.add(0, 1, "q", b"n", proxy_uid=1000)
    assert table.find_proxy(1, b"n", 1000) is None
    table.release(pin, 6.0)
    assert table.find_proxy(1, b"n", 1000) is other
    table.add(0, 1, "q", b"n")
    assert table.find_proxy(1, b"n", 1000) is None, "its process has made it its own"


def test_a_pin_touches_its_bytes_and_no_others() -> None:
    table = Table()
    table.add(10, 10)
    assert [table.touches(1, at, at + 1) for at in (9, 10, 19, 20)] == [False, True, True, False]
    assert not table.touches(2, 0, END)


def test_limits() -> None:
    table = Table(max_pins=3, max_pins_per_user=2, max_pinned_bytes_per_user=1000)
    table.add(0, 600, name=b"n", uid=1)
    refused(errno.EDQUOT, table, 0, 401, uid=1)
    table.add(0, 400, uid=1)
    refused(errno.EDQUOT, table, 0, 1, uid=1)
    table.add(0, 1000, uid=2)
    refused(errno.EDQUOT, table, 0, 1, uid=3)
    refused(errno.EDQUOT, table, 0, 1, uid=0)
    assert [event.why for event in table.events if event.kind == "limit"] == [
        "max_pinned_bytes_per_user",
        "max_pins_per_user",
        "max_pins",
        "max_pins",
    ]


@pytest.mark.parametrize("uid", [0, 1])
def test_root_is_a_user_like_any_other(uid: int) -> None:
    table = Table(max_pins_per_user=1, max_pinned_bytes_per_user=10)
    refused(errno.EDQUOT, table, 0, 11, uid=uid)
    table.add(0, 10, uid=uid)
    refused(errno.EDQUOT, table, 10, 1, uid=uid)


def test_replacing_counts_the_difference() -> None:
    table = Table(max_pins=1, max_pins_per_user=1, max_pinned_bytes_per_user=1000)
    table.add(0, 600, name=b"n")
    table.add(0, 1000, name=b"n")
    assert (table.pinned_bytes, table.usage[7].pins, table.usage[7].bytes) == (1000, 1, 1000)


def test_a_pin_may_shrink_when_the_limits_have() -> None:
    table = Table()
    table.add(0, 1000, name=b"n")
    table.limits = Limits(max_pinned_bytes_per_user=10)
    table.add(0, 999, name=b"n")
    refused(errno.EDQUOT, table, 0, 1000, name=b"n")


def test_a_replaced_pin_is_charged_to_who_replaced_it() -> None:
    table = Table()
    table.add(0, 10, name=b"n", uid=1)
    table.add(0, 20, name=b"n", uid=2)
    assert {uid: usage.bytes for uid, usage in table.usage.items()} == {2: 20}


def test_all_pins_of_an_owner_that_is_gone_go() -> None:
    table = Table()
    table.add(0, 1, "p"), table.add(0, 1, "p", inode=2), table.add(0, 1, "q")
    table.owner_gone("p", 6.0, "close")
    table.owner_gone("nobody", 6.0)
    assert [pin.owner for pin in table.by_id.values()] == ["q"]
    assert [(event.kind, event.by) for event in table.events[3:]] == [("released", "close")] * 2


def test_a_table_without_pins_is_empty() -> None:
    table = Table()
    gone: list[int] = []
    table.on_empty = gone.append
    pins = [table.add(0, 1, name=b"n", proxy_uid=1), table.add(0, 1), table.add(0, 0, inode=2, mode=Mode.LEASE)]
    table.revoke(pins[2], 6.0)
    table.release(pins[0], 6.0)
    assert gone == [2]
    table.release(pins[1], 6.0)
    assert gone == [2, 1]
    assert not (table.files or table.by_id or table.by_owner or table.usage or table.pinned_bytes)
    assert table.find(1, "p", b"n") is table.find_proxy(1, b"n", 1) is None
