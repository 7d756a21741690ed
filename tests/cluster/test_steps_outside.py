"""Steps that the protocol takes because of what it cannot see: what an operator or the client has found out."""

from __future__ import annotations

import pytest

from cluster.together import TIMING, Together, cut, pin
from pinfs.cluster.keys import MemberId
from pinfs.cluster.outputs import Fenced, Pinned

A = MemberId("a", "1")


@pytest.fixture
def two() -> Together:
    together = Together()
    together.join("a", "b")
    return together


def test_a_host_that_an_operator_calls_dead_is_buried_at_once(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_cut("a", 1, cut(6, 9))
    two.do("b", two.members["b"].forget([A, MemberId("c", "1")], two.now))
    assert not two.keys("p/") + two.keys("r/")
    assert two.keys("m/") == ["m/b/1"]
    assert two.heard("a", Fenced) == [Fenced((1,), "its pins have been deleted")]
    two.wants_pin("b", 1, pin(0, 4))
    assert two.heard("b", Pinned)


def test_a_host_is_forgotten_even_if_etcd_does_not_answer_at_first(two: Together) -> None:
    two.silent.add("b")
    two.do("b", two.members["b"].forget([A], two.now))
    assert two.keys("m/a")
    two.silent.clear()
    two.pass_time(TIMING.beat_s)
    assert not two.keys("m/a")


def test_a_member_does_not_forget_itself(two: Together) -> None:
    two.do("a", two.members["a"].forget([A], two.now))
    two.pass_time(TIMING.beat_s)
    assert two.keys("m/a")


def test_a_client_that_has_met_a_restored_etcd_ends_the_member(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.do("a", two.members["a"].etcd_restored(two.now))
    assert two.heard("a", Fenced) == [Fenced((1,), "restored")]
