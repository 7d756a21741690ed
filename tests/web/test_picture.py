"""What the page is made from: bars that show each pinned byte and no other, lists that end, texts that do no harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.web import picture
from pinfs.web.picture import (
    CELLS,
    KINDS,
    MAX_BREAKS,
    MAX_CHARACTERS,
    MAX_FILES,
    MAX_FIND,
    MAX_HOLDERS,
    MAX_HOSTS,
    MAX_OLDEST,
    MAX_PINS_OF_A_FILE,
    MAX_PINS_OF_A_HOLDER,
    MAX_RULES,
    Query,
)

Json = dict[str, Any]


def pin(number: int = 1, **fields: Any) -> Json:
    return {
        "id": number, "start": 0, "length": 4096, "mode": "deny", "state": "held", "deadline": None, "inode": 12,
        "path": "f", "pid": 4711, "uid": 1000, "comm": "trainer", "note": "a note", "name": "p", **fields,
    }  # fmt: skip


def files(*pins: Json, size: int | None = 8192) -> Json:
    return picture.files(pins, lambda pin: size)


# Bars


@st.composite
def pins_of_a_file(draw: st.DrawFn) -> tuple[list[Json], int]:
    extent = draw(st.integers(1, 5000) | st.integers(1, 1 << 62))
    ranges = st.tuples(st.integers(0, extent - 1), st.integers(0, extent), st.sampled_from(KINDS))
    pins = [
        pin(start=start, length=min(length, extent - start), mode=kind, state=kind)
        for start, length, kind in draw(st.lists(ranges, max_size=8))
    ]
    return pins, extent


@given(pins_of_a_file())
def test_a_cell_is_as_the_most_urgent_pin_that_touches_it(case: tuple[list[Json], int]) -> None:
    pins, extent = case
    cells = {cell: kind for first, end, kind in picture.bar(pins, extent) for cell in range(first, end)}
    for cell in range(0, CELLS, 7):
        low, high = cell * extent, (cell + 1) * extent  # bytes times CELLS
        touching = [
            picture.kind_of(one)
            for one in pins
            if one["start"] * CELLS < high and low < (one["start"] + one["length"] if one["length"] else extent) * CELLS
        ]
        assert cells.get(cell) == max(touching, key=KINDS.index, default=None)


def test_a_small_pin_of_a_big_file_is_seen() -> None:
    last = pin(start=(1 << 40) - 1, length=1)
    assert list(picture.bar([last], 1 << 40)) == [(CELLS - 1, CELLS, "deny")]


@pytest.mark.parametrize(
    ("fields", "size", "extent"),
    [({}, 8192, 8192), ({"start": 8000}, 8192, 12096), ({"length": 0, "start": 5}, None, 6), ({}, None, 4096)],
)
def test_the_bar_is_as_long_as_the_file_and_its_pins(fields: Json, size: int | None, extent: int) -> None:
    (one,) = files(pin(**fields), size=size)["files"]
    assert one["extent"] == extent


@pytest.mark.parametrize(("fields", "sealed"), [({}, False), ({"sealed": False}, False), ({"sealed": True}, True)])
def test_whether_the_kernel_keeps_the_bytes(fields: Json, sealed: bool) -> None:
    (one,) = files(pin(**fields))["files"]
    assert one["sealed"] is sealed


# Lists


def test_what_is_being_broken_comes_first() -> None:
    urgent = pin(2, inode=13, path="z", state="breaking", deadline=5.0)
    shown = files(pin(1, path="a"), pin(3, inode=13, path="z"), urgent)
    assert [one["path"] for one in shown["files"]] == ["z", "a"]
    assert [one["id"] for one in shown["files"][0]["pins"]] == [2, 3]


def test_lists_end_and_say_how_much_they_leave_out() -> None:
    shown = files(*(pin(number, inode=number) for number in range(MAX_FILES + 3)))
    assert (len(shown["files"]), shown["more"]) == (MAX_FILES, 3)
    (one,) = files(*(pin(number) for number in range(MAX_PINS_OF_A_FILE + 5)))["files"]
    assert (len(one["pins"]), one["more"], one["count"]) == (MAX_PINS_OF_A_FILE, 5, MAX_PINS_OF_A_FILE + 5)
    held = picture.holders(pin(number, pid=number) for number in range(MAX_HOLDERS + 2))
    assert (len(held["holders"]), held["more"]) == (MAX_HOLDERS, 2)
    rules = picture.policy({"rule": [{"path": "*", "own": "allow"}] * (MAX_RULES + 1)})
    assert (len(rules["rules"]), rules["more"]) == (MAX_RULES, 1)


def test_holders_by_how_many_wait_for_them() -> None:
    pins = [pin(1), pin(2), pin(3, pid=5, state="breaking"), pin(4, pid=None, uid=7, comm=None)]
    hidden = {key: value for key, value in pin(5).items() if key not in ("pid", "uid", "comm", "note", "name")}
    found = picture.holders([*pins, hidden])["holders"]
    assert [(one["pid"], one["uid"], one["pins"], one["breaking"]) for one in found] == [
        (5, 1000, 1, 1), (4711, 1000, 2, 0), (None, 7, 1, 0), (None, None, 1, 0)
    ]  # fmt: skip


def test_holders_with_their_pins() -> None:
    found = [pin(1, since=9.0), pin(2, since=5.0), pin(3, pid=5, state="breaking", since=8.0, path=None)]
    found += [pin(number, pid=6) for number in range(10, 10 + MAX_PINS_OF_A_HOLDER + 4)]
    shown = picture.pins(found, Query(by="holder"), lambda one: None, 10.0)
    assert [(group["holder"]["pid"], group["more"]) for group in shown["groups"]] == [(5, 0), (6, 4), (4711, 0)]
    (_, _, trainer) = shown["groups"]
    assert [one["id"] for one in trainer["pins"]] == [2, 1]
    assert (trainer["holder"]["oldest_s"], trainer["pins"][0]["path"]) == (5.0, "f")


def test_the_oldest_first() -> None:
    found = [pin(number, since=float(1000 - number)) for number in range(MAX_OLDEST + 2)]
    shown = picture.pins(found, Query(by="age"), lambda one: None, 0.0)
    assert (shown["pins"][0]["id"], len(shown["pins"]), shown["more"]) == (MAX_OLDEST + 1, MAX_OLDEST, 2)


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({}, [1, 2, 3, 4]),
        ({"find": "TRAIN"}, [1, 4]),
        ({"find": "train 0.9"}, [4]),
        ({"find": "4711"}, [1]),
        ({"find": "471"}, []),  # numbers are whole
        ({"find": "models/"}, [2]),
        ({"find": "layer"}, [1]),
        ({"show": "breaking"}, [3]),
        ({"show": "lease"}, [2, 3]),
        ({"show": "nonsense", "by": "nonsense"}, [1, 2, 3, 4]),
    ],
)
def test_what_a_viewer_asks_for(asked: dict[str, str], ids: list[int]) -> None:
    found = [pin(1, note="a Layer"), pin(2, path="models/w", comm="x", pid=1, mode="lease"),
             pin(3, comm="x", pid=1, mode="lease", state="breaking"), pin(4, path="v0.9", pid=2)]  # fmt: skip
    query = Query.of(asked)
    assert [one["id"] for one in found if query.selects(one)] == ids


@given(st.dictionaries(st.sampled_from(["find", "show", "by"]), st.text(max_size=3 * MAX_FIND)))
def test_a_question_is_bounded(asked: dict[str, str]) -> None:
    query = Query.of(asked)
    assert len(query.find) <= 3 * MAX_FIND  # folding makes three of some characters
    picture.pins([pin(since=1.0)], query, lambda one: None, 2.0)


def test_breaks_and_hosts_end_and_their_texts_are_plain() -> None:
    one = {"op": "truncate", "path": "a\nb", "inode": 1, "from": 0, "to": None, "waits_for": [1], "more": False,
           "deadline": 5.0, "remaining_s": 3.0, "pid": 9, "uid": 0, "comm": "\x1b[31m"}  # fmt: skip
    shown = picture.breaks({"waiting": 64, "breakers": [one] * 64}, [pin(1, state="breaking", comm="x\u202e")])
    assert (len(shown["breaks"]), shown["more"]) == (MAX_BREAKS, 64 - MAX_BREAKS)
    assert (shown["breaks"][0]["path"], shown["breaks"][0]["comm"]) == ("a\\x0ab", "\\x1b[31m")
    assert shown["breaks"][0]["holders"] == [{"pid": 4711, "comm": "x\\u202e"}]
    members = [{"host": f"h{n}\t", "silent_s": 1.0, "own": n == 0} for n in range(MAX_HOSTS + 1)]
    hosts = picture.hosts({"members": members})
    assert (hosts["hosts"][0]["host"], hosts["hosts"][0]["own"], hosts["more"]) == ("h0\\x09", True, 1)
    assert picture.hosts(None) == {"hosts": [], "more": 0}


def test_the_policy() -> None:
    shown = picture.policy({"own": "deny", "break_timeout": 4.5, "rule": [{"path": "*.bin", "own": "allow"}]})
    assert shown == {
        "values": [("own", "deny"), ("break_timeout", "4.5")],
        "rules": [{"path": "*.bin", "values": [("own", "allow")]}],
        "more": 0,
    }


def test_a_file_without_a_name() -> None:
    (one,) = files(pin(path=None), size=99)["files"]
    assert (one["path"], one["size"], one["extent"]) == (None, None, 4096)


# Texts


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\x1b[31m\nb", "a\\x1b[31m\\x0ab"),
        ("nothing \u202egnp.exe", "nothing \\u202egnp.exe"),
        ("\udcff.bin", "\\xff.bin"),
        ("ä 中 🎉", "ä 中 🎉"),
    ],
)
def test_texts_are_plainly_visible(given: str, shown: str) -> None:
    (one,) = files(pin(path=given, note=given, comm=given, name=given))["files"]
    assert one["path"] == shown
    assert {one["pins"][0][key] for key in ("note", "comm", "name")} == {shown}


@given(st.text(max_size=2 * MAX_CHARACTERS))
def test_texts_have_a_bounded_length(given: str) -> None:
    assert len(picture.text(given)) <= MAX_CHARACTERS
