"""The pin book: what it accepts, what it finds, what it counts."""

import errno
from typing import Any

import pytest

from pinfs.core.book import PinBook
from pinfs.core.events import BookEvent
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec, State
from pinfs.core.policy import Limits
from pinfs.core.ranges import END

SIZE = 10_000


class Book(PinBook):
    """A book with its events, and short ways to fill it."""

    def __init__(self, **limits: int) -> None:
        self.events: list[BookEvent] = []
        super().__init__(self.events.append, Limits(**limits))

    def add(self, start: int, length: int, owner: str = "p", name: bytes | None = None, **more: Any) -> Pin:
        inode, uid, proxy_uid = more.pop("inode", 1), more.pop("uid", 7), more.pop("proxy_uid", None)
        request = PinRequest(inode, owner, owner, uid, name, PinSpec(start, length, **more), proxy_uid)
        return self.pin(request, SIZE, 5.0)


def refused(number: int, book: Book, *args: Any, **kwargs: Any) -> None:
    before = {pin.id: pin.spec for pin in book.table.by_id.values()}
    with pytest.raises(OSError) as caught:
        book.add(*args, **kwargs)
    assert caught.value.errno == number
    assert {pin.id: pin.spec for pin in book.table.by_id.values()} == before


def test_a_pin_is_found_by_inode_id_owner_and_name() -> None:
    book = Book()
    pin = book.add(0, 100, name=b"weights")
    assert pin.state is State.HELD
    assert pin.deadline is None
    assert list(book.table.of_file(1)) == book.table.of_owner("p") == [book.table.by_id[pin.id]] == [pin]
    assert book.table.find(1, "p", b"weights") is pin
    assert book.table.find(1, "q", b"weights") is None
    assert book.table.find(2, "p", b"weights") is None
    assert list(book.table.of_file(2)) == book.table.of_owner("q") == []


def test_ids_count_from_one_and_are_never_used_again() -> None:
    book = Book()
    first = book.add(0, 1)
    book.release(first, 6.0)
    assert (first.id, book.add(0, 1).id) == (1, 2)


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
    refused(number, Book(), start, length)


@pytest.mark.parametrize(("start", "length"), [(0, SIZE), (SIZE - 1, 1), (0, 0), (SIZE, 0)])
def test_ranges_up_to_the_last_byte_are_taken(start: int, length: int) -> None:
    assert Book().add(start, length).end == (start + length if length else END)


def test_a_length_of_zero_follows_the_end_of_the_file() -> None:
    book = Book()
    book.add(5000, 0)
    assert book.touches(1, 10**12, 10**12 + 1)
    assert not book.touches(1, 0, 5000)
    assert book.table.pinned_bytes == SIZE - 5000


def test_the_same_name_replaces_in_one_step() -> None:
    book = Book()
    pin = book.add(0, 100, name=b"n")
    again = book.add(200, 50, name=b"n", mode=Mode.LEASE, note="moved")
    assert again is pin
    assert (pin.id, pin.start, pin.length, pin.mode, pin.note, pin.since) == (1, 200, 50, Mode.LEASE, "moved", 5.0)
    assert len(book.table) == 1
    assert not book.touches(1, 0, 100)
    assert [event.why for event in book.events] == [None, "replaced"]


def test_a_name_belongs_to_its_owner_and_file() -> None:
    book = Book()
    pins = {book.add(0, 1, "p", b"n"), book.add(0, 1, "q", b"n"), book.add(0, 1, "p", b"n", inode=2)}
    assert len(pins) == 3


def test_pins_without_a_name_are_always_new() -> None:
    book = Book()
    assert book.add(0, 1) is not book.add(0, 1)


def test_a_replacement_that_fails_leaves_the_old_pin() -> None:
    book = Book(max_pinned_bytes_per_user=100)
    book.add(0, 100, name=b"n")
    refused(errno.ENXIO, book, SIZE, 5, name=b"n")
    refused(errno.EDQUOT, book, 0, 101, name=b"n")
    assert book.touches(1, 99, 100)


def test_deny_pins_are_shown_first_and_each_kind_by_start() -> None:
    book = Book()
    for start, mode in [(3, Mode.LEASE), (2, Mode.DENY), (1, Mode.LEASE), (4, Mode.DENY)]:
        book.add(start, 1, mode=mode)
    assert [pin.start for pin in book.table.of_file(1)] == [2, 4, 1, 3]


def test_the_uid_that_registered_a_pin_for_another_finds_it_by_name_if_it_is_the_only_one() -> None:
    book = Book()
    pin = book.add(0, 1, "p", b"n", proxy_uid=1000)
    assert book.table.find_proxy(1, b"n", 1000) is pin
    assert book.table.find_proxy(1, b"n", 1001) is None
    other = book.add(0, 1, "q", b"n", proxy_uid=1000)
    assert book.table.find_proxy(1, b"n", 1000) is None
    book.release(pin, 6.0)
    assert book.table.find_proxy(1, b"n", 1000) is other
    book.add(0, 1, "q", b"n")
    assert book.table.find_proxy(1, b"n", 1000) is None, "its process has made it its own"


def test_a_pin_touches_its_bytes_and_no_others() -> None:
    book = Book()
    book.add(10, 10)
    assert [book.touches(1, at, at + 1) for at in (9, 10, 19, 20)] == [False, True, True, False]
    assert not book.touches(2, 0, END)


def test_limits() -> None:
    book = Book(max_pins=3, max_pins_per_user=2, max_pinned_bytes_per_user=1000)
    book.add(0, 600, name=b"n", uid=1)
    refused(errno.EDQUOT, book, 0, 401, uid=1)
    book.add(0, 400, uid=1)
    refused(errno.EDQUOT, book, 0, 1, uid=1)
    book.add(0, 1000, uid=2)
    refused(errno.EDQUOT, book, 0, 1, uid=3)
    refused(errno.EDQUOT, book, 0, 1, uid=0)
    assert [event.why for event in book.events if event.kind == "limit"] == [
        "max_pinned_bytes_per_user",
        "max_pins_per_user",
        "max_pins",
        "max_pins",
    ]


@pytest.mark.parametrize("uid", [0, 1])
def test_root_is_a_user_like_any_other(uid: int) -> None:
    book = Book(max_pins_per_user=1, max_pinned_bytes_per_user=10)
    refused(errno.EDQUOT, book, 0, 11, uid=uid)
    book.add(0, 10, uid=uid)
    refused(errno.EDQUOT, book, 10, 1, uid=uid)


def test_replacing_counts_the_difference() -> None:
    book = Book(max_pins=1, max_pins_per_user=1, max_pinned_bytes_per_user=1000)
    book.add(0, 600, name=b"n")
    book.add(0, 1000, name=b"n")
    assert (book.table.pinned_bytes, book.table.usage[7].pins, book.table.usage[7].bytes) == (1000, 1, 1000)


def test_a_pin_may_shrink_when_the_limits_have() -> None:
    book = Book()
    book.add(0, 1000, name=b"n")
    book.table.limits = Limits(max_pinned_bytes_per_user=10)
    book.add(0, 999, name=b"n")
    refused(errno.EDQUOT, book, 0, 1000, name=b"n")


def test_a_replaced_pin_is_charged_to_who_replaced_it() -> None:
    book = Book()
    book.add(0, 10, name=b"n", uid=1)
    book.add(0, 20, name=b"n", uid=2)
    assert {uid: usage.bytes for uid, usage in book.table.usage.items()} == {2: 20}


def test_all_pins_of_an_owner_that_is_gone_go() -> None:
    book = Book()
    book.add(0, 1, "p"), book.add(0, 1, "p", inode=2), book.add(0, 1, "q")
    book.owner_gone("p", 6.0, "close")
    book.owner_gone("nobody", 6.0)
    assert [pin.owner for pin in book.table.by_id.values()] == ["q"]
    assert [(event.kind, event.by) for event in book.events[3:]] == [("released", "close")] * 2


def test_a_book_without_pins_is_empty() -> None:
    book = Book()
    gone: list[int] = []
    book.files.on_empty = gone.append
    pins = [book.add(0, 1, name=b"n", proxy_uid=1), book.add(0, 1), book.add(0, 0, inode=2, mode=Mode.LEASE)]
    book.revoke(pins[2], 6.0)
    book.release(pins[0], 6.0)
    assert gone == [2]
    book.release(pins[1], 6.0)
    assert gone == [2, 1]
    assert not (book.files or book.table.by_id or book.table.by_owner or book.table.usage or book.table.pinned_bytes)
    assert book.table.find(1, "p", b"n") is book.table.find_proxy(1, b"n", 1) is None
