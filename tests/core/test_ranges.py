"""RangeTree against a plain list, and how many nodes it looks at."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.counted import Counted

from pinfs.core.ranges import END, RangeTree

ends = st.integers(0, 40)
ranges = st.tuples(ends, ends).map(sorted).filter(lambda r: r[0] < r[1])
steps = st.lists(st.tuples(st.sampled_from(["insert", "insert", "remove"]), ranges, st.integers(0, 10**6)), max_size=60)


@settings(print_blob=True)
@given(seed=st.integers(0, 2**32), steps=steps, asked=st.tuples(ends, ends), after=st.tuples(ends, ends))
def test_answers_as_a_plain_list_does(
    seed: int, steps: list[Any], asked: tuple[int, int], after: tuple[int, int]
) -> None:
    tree = RangeTree(seed)
    plain: dict[int, tuple[int, int]] = {}
    for key, (verb, (start, end), which) in enumerate(steps):
        if verb == "insert":
            tree.insert(start, end, key, key)
            plain[key] = (start, end)
        elif plain:
            victim = sorted(plain)[which % len(plain)]
            tree.remove(plain.pop(victim)[0], victim)
    low, high = asked
    hits = sorted((s, k) for k, (s, e) in plain.items() if set(range(s, e)) & set(range(low, high)))
    assert list(tree.overlapping(low, high)) == [key for _, key in hits]
    assert list(tree.overlapping(low, high, after)) == [key for start, key in hits if (start, key) > after]
    assert tree.any_overlap(low, high) == bool(hits)
    overlapping: list[int | None] = [key for _, key in hits]
    assert tree.first_overlap(low, high) in (overlapping or [None])
    assert len(tree) == len(plain)


def test_ranges_that_touch_do_not_overlap() -> None:
    tree = RangeTree(1)
    tree.insert(10, 20, 1, "pin")
    assert not tree.any_overlap(0, 10)
    assert not tree.any_overlap(20, END)
    assert tree.any_overlap(9, 11)
    assert tree.any_overlap(19, 20)
    assert not tree.any_overlap(15, 15)


def test_for_ever_reaches_to_the_last_byte() -> None:
    tree = RangeTree(1)
    tree.insert(5, END, 1, "pin")
    assert list(tree.overlapping(END - 1, END)) == ["pin"]


def test_removing_what_is_not_there_is_an_error() -> None:
    tree = RangeTree(1)
    tree.insert(5, 6, 1, "pin")
    with pytest.raises(KeyError):
        tree.remove(5, 2)
    assert list(tree.overlapping(0, END)) == ["pin"]


def comparisons_of_a_question(size: int, hits: int) -> int:
    tree = RangeTree(7)
    for i in range(size):
        tree.insert(Counted(i * 10), Counted(i * 10 + 5), i, i)
    middle = size // 2 * 10
    Counted.comparisons = 0
    assert len(list(tree.overlapping(Counted(middle), Counted(middle + 10 * hits)))) == hits
    return Counted.comparisons


def test_a_question_costs_log_n_plus_hits() -> None:
    few, many = comparisons_of_a_question(100, 1), comparisons_of_a_question(10_000, 1)
    assert many < few * 5, "a hundred times the ranges must cost a few steps more"
    assert comparisons_of_a_question(10_000, 1000) < many + 1000 * 8


def test_any_overlap_costs_the_same_whatever_the_hits() -> None:
    tree = RangeTree(7)
    for i in range(10_000):
        tree.insert(Counted(0), Counted(END), i, i)
    Counted.comparisons = 0
    assert tree.any_overlap(Counted(5), Counted(6))
    assert Counted.comparisons < 10


def test_rising_ranges_do_not_make_a_list_of_the_tree() -> None:
    tree = RangeTree()
    for i in range(10_000):
        tree.insert(Counted(i), Counted(i + 1), i, i)
    Counted.comparisons = 0
    tree.insert(Counted(10_000), Counted(10_001), 10_000, 10_000)
    tree.remove(5_000, 5_000)
    assert Counted.comparisons < 600
