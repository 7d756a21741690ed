"""One step of the protocol after the other, where nothing is left to chance."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from cluster.simulated_etcd import CLUSTER_ID
from cluster.together import TIMING, Together, cut, pin
from pinfs.cluster.keys import MemberId, MemberValue, PinKey, RemovalKey
from pinfs.cluster.membership import CLOCK_TRUST, Limits, State
from pinfs.cluster.messages import Delete, Done, KeepAlive, Put, Revoke, Txn
from pinfs.cluster.outputs import (
    Call,
    Fenced,
    Joined,
    Left,
    MayCut,
    Pinned,
    PinRefused,
    RemovalRefused,
    Told,
    ToldOver,
    Waits,
)
from pinfs.cluster.protocol import SERIAL_BITS, Former, Member
from pinfs.core.pins import Mode

A = MemberId("a", "1")
LEASE = Mode.LEASE


@pytest.fixture
def two() -> Together:
    """Two hosts that have joined."""
    together = Together()
    together.join("a", "b")
    assert together.heard("a", Joined)
    assert together.heard("b", Joined)
    return together


def puts(txn: Txn) -> list[str]:
    return [op.key for op in txn.then if isinstance(op, Put)]


# Pins and removals


def test_a_removal_of_a_file_without_pins_asks_nothing(two: Together) -> None:
    two.calls.clear()
    two.wants_cut("a", 1, cut(0, 9))
    assert two.heard("a", MayCut) == [MayCut(1, two.members["a"].fence)]
    assert not two.calls


def test_a_first_pin_marks_the_file_and_each_host_promises_to_ask(two: Together) -> None:
    two.wants_pin("a", 7, pin(0, 4))
    assert two.heard("a", Pinned) == [Pinned(7, PinKey("f1", A, 1))]
    assert two.keys("f/") == ["f/f1"]
    assert two.keys("p/") == ["p/f1/a/1/1"]
    assert all(two.etcd.keys[key].value.startswith("0000000000000001 ") for key in two.keys("m/"))
    assert two.members["b"].is_marked("f1")


def test_a_further_pin_is_one_transaction(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.calls.clear()
    two.wants_pin("b", 1, pin(0, 4))
    assert two.heard("b", Pinned)
    assert len(two.calls) == 1


def test_a_pin_waits_until_a_removal_that_has_not_asked_is_over(two: Together) -> None:
    two.wants_cut("b", 1, cut(0, 9))
    two.wants_pin("a", 1, pin(0, 4))
    assert not two.said["a"][1:]
    two.do("b", two.members["b"].removal_finished(1, two.now))
    assert two.heard("a", Pinned)


def test_a_pin_waits_for_a_host_that_does_not_hear_of_the_mark(two: Together) -> None:
    two.deaf.add("b")
    two.wants_pin("a", 1, pin(0, 4), wait_s=2.0)
    two.pass_time(1.9)
    assert not two.heard("a", PinRefused)
    two.pass_time(0.2)
    assert two.heard("a", PinRefused) == [PinRefused(1, errno.EAGAIN, "host", "b")]
    assert not two.keys("p/")


def test_a_deny_pin_of_another_host_refuses_a_removal_and_no_lease_is_told(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_pin("a", 2, pin(4, 8, LEASE))
    two.wants_cut("b", 1, cut(2, 9))
    assert two.heard("b", RemovalRefused) == [RemovalRefused(1, errno.EBUSY, "deny", "a")]
    assert not two.heard("a", Told)
    assert not any(key.startswith("r/") for txn in two.txns("b") for key in puts(txn))


def test_a_removal_beside_a_pin_goes_on_and_leaves_nothing(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_cut("b", 1, cut(4, 9))
    assert two.heard("b", MayCut)
    assert two.keys("r/") == ["r/f1/b/1/1"]
    two.do("b", two.members["b"].removal_finished(1, two.now))
    assert not two.keys("r/")


def test_a_lease_is_told_and_the_removal_goes_on_when_it_is_released(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4, LEASE))
    two.wants_pin("a", 2, pin(6, 8, LEASE))
    two.wants_cut("b", 1, cut(2, 5))
    removal = RemovalKey("f1", MemberId("b", "1"), 1)
    assert two.heard("b", Waits) == [Waits(1, ("a",))]
    assert two.heard("a", Told) == [Told(removal, 2, 5, "truncate", (1,))]
    two.do("a", two.members["a"].pin_released(1, two.now))
    assert two.heard("b", MayCut)
    assert not two.heard("a", ToldOver)
    two.do("b", two.members["b"].removal_finished(1, two.now))
    assert two.heard("a", ToldOver) == [ToldOver(removal)]


def test_a_removal_that_comes_before_the_answer_about_a_pin_is_told_with_it(two: Together) -> None:
    two.wants_pin("b", 1, pin(6, 8))
    [call] = two.members["a"].pin_wanted(1, "f1", pin(0, 4, LEASE), two.now + 2, two.now)
    assert isinstance(call, Call)
    answer = two.etcd.handle(call.request, two.now)
    two.wants_cut("b", 2, cut(0, 5))
    assert two.heard("b", Waits)
    assert not two.heard("a", Told)
    two.do("a", two.members["a"].answered(call.number, answer, two.now))
    assert [type(output) for output in two.said["a"][1:]] == [Pinned, Told]


def test_the_holders_daemon_says_no_and_its_word_reaches_the_breaker(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4, LEASE))
    two.wants_cut("b", 1, cut(0, 9))
    two.do("a", two.members["a"].removal_denied(two.heard("a", Told)[0].removal, "unanswered", two.now))
    assert two.heard("b", RemovalRefused) == [RemovalRefused(1, errno.EBUSY, "unanswered", "a")]
    assert two.heard("a", ToldOver)
    assert not two.keys("r/")
    assert not two.keys("v/")


def test_a_breaker_does_not_wait_beyond_its_deadline(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4, LEASE))
    two.wants_cut("b", 1, cut(0, 9), wait_s=5.0)
    two.pass_time(4.9)
    assert not two.heard("b", RemovalRefused)
    two.pass_time(0.2)
    assert two.heard("b", RemovalRefused) == [RemovalRefused(1, errno.EBUSY, "unanswered", "a")]


def test_a_removal_that_is_withdrawn_is_not_answered(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4, LEASE))
    two.wants_cut("b", 1, cut(0, 9))
    two.do("b", two.members["b"].removal_withdrawn(1, two.now))
    assert two.heard("a", ToldOver)
    assert not two.keys("r/")
    assert not two.heard("b", RemovalRefused)


def test_a_pin_gets_eagain_while_its_bytes_are_cut_and_beside_them_it_is_registered(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 1))
    two.wants_cut("b", 1, cut(4, 9))
    two.wants_pin("a", 2, pin(8, 10))
    two.wants_pin("a", 3, pin(1, 4))
    assert [pinned.pin for pinned in two.heard("a", Pinned)] == [1, 3]
    two.pass_time(TIMING.patience_s)
    assert two.heard("a", PinRefused) == [PinRefused(2, errno.EAGAIN, "removal", "b")]


def test_a_pin_waits_a_moment_for_a_cut_that_is_soon_over(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 1))
    two.wants_cut("b", 1, cut(4, 9))
    two.wants_pin("a", 2, pin(8, 10))
    two.do("b", two.members["b"].removal_finished(1, two.now))
    assert [pinned.pin for pinned in two.heard("a", Pinned)] == [1, 2]


def test_a_file_without_pins_loses_its_mark_after_a_while(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.do("a", two.members["a"].pin_released(1, two.now))
    two.pass_time(TIMING.linger_s * 0.9)
    assert two.keys("f/")
    two.pass_time(TIMING.linger_s)
    assert not two.keys("f/")
    assert not two.members["b"].is_marked("f1")


def test_a_pin_is_not_registered_under_a_mark_that_is_gone(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.do("a", two.members["a"].pin_released(1, two.now))
    two.deaf.add("a")
    two.etcd.handle(Txn((), (Delete("f/f1"),)), two.now)
    two.wants_pin("a", 2, pin(0, 4))
    assert not two.keys("p/")
    two.pass_time(2.1)
    assert two.heard("a", PinRefused) == [PinRefused(2, errno.EAGAIN, "watch")]


def test_a_host_that_is_late_does_not_take_a_new_mark_away(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.do("a", two.members["a"].pin_released(1, two.now))
    two.deaf.add("b")
    two.pass_time(TIMING.linger_s * 1.8)
    assert not two.keys("f/")
    two.etcd.handle(Txn((), (Put("f/f1", "1"), Put("c", "1"))), two.now)
    two.do("a", [])
    two.pass_time(TIMING.linger_s * 0.8)  # b's turn, by what it knows; not yet a's
    assert two.keys("f/")


def test_a_read_does_not_tell_which_mark_came_first_and_the_promise_stays_below_them(two: Together) -> None:
    two.wants_cut("b", 1, cut(0, 9), "f1")
    two.deaf.add("b")
    two.wants_pin("a", 1, pin(0, 4), "f1", wait_s=30.0)
    two.wants_pin("a", 2, pin(0, 4), "f2", wait_s=30.0)
    two.hear("b")
    two.do("b", two.members["b"].watch_lost(1, two.now))
    assert two.members["b"].is_marked("f1")
    assert not two.heard("a", Pinned)
    two.do("b", two.members["b"].removal_finished(1, two.now))
    assert [pinned.pin for pinned in two.heard("a", Pinned)] == [1, 2]


def test_a_host_that_joins_promises_what_there_is(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.join("c")
    first = next(op for txn in two.txns("c") for op in txn.then if isinstance(op, Put))
    assert MemberValue.read(first.value).promise == 1


# Answers that are lost or late


def test_an_answer_that_is_lost_is_asked_for_again(two: Together) -> None:
    two.silent.add("a")
    two.wants_pin("a", 1, pin(0, 4), wait_s=2.0)
    two.pass_time(0.5)
    two.silent.clear()
    two.pass_time(1.0)
    assert two.heard("a", Pinned)
    assert two.keys("p/") == ["p/f1/a/1/1"]


def test_without_etcd_a_pin_gets_eio_at_its_deadline(two: Together) -> None:
    two.silent.add("a")
    two.wants_pin("a", 1, pin(0, 4), wait_s=2.0)
    two.pass_time(2.0 + TIMING.retry_s)
    assert two.heard("a", PinRefused) == [PinRefused(1, errno.EIO, "etcd")]


def test_a_put_that_comes_after_its_pin_was_given_up_is_deleted(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    register = next(txn for txn in two.txns("a") if "p/f1/a/1/1" in puts(txn))
    two.do("a", two.members["a"].pin_released(1, two.now))
    assert not two.keys("p/")
    two.etcd.handle(register, two.now)
    assert two.keys("p/")
    two.do("a", [])
    assert not two.keys("p/")


def test_a_mark_that_the_watch_has_lost_shows_at_the_next_beat(two: Together) -> None:
    two.deaf.add("b")
    two.wants_pin("a", 1, pin(0, 4), wait_s=30.0)
    two.hear("b")
    assert not two.members["b"].is_marked("f1")
    two.pass_time(2 * TIMING.beat_s)
    assert two.members["b"].is_marked("f1")
    assert two.heard("a", Pinned)


def test_a_watch_that_goes_back_changes_nothing(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.do("a", two.members["a"].pin_released(1, two.now))
    two.pass_time(TIMING.linger_s * 1.8)
    unmarked = next(batch for batch in two.etcd.log if [event.key for event in batch.events] == ["f/f1"])
    two.wants_pin("a", 2, pin(0, 4))
    two.do("b", two.members["b"].watched(1, unmarked, two.now))
    assert two.members["b"].is_marked("f1")


def test_a_gap_in_the_count_has_everything_read_again(two: Together) -> None:
    two.deaf.add("b")
    two.wants_pin("a", 1, pin(0, 4), "f1", wait_s=30.0)
    two.hear("b")
    two.wants_pin("a", 2, pin(0, 4), "f2", wait_s=30.0)
    assert [pinned.pin for pinned in two.heard("a", Pinned)] == [1, 2]


# The fence, death, and coming back


def test_the_fence_comes_before_any_other_host_takes_the_pins(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.pass_time(TIMING.beat_s)
    fence = two.members["a"].fence
    two.silent.add("a")
    two.pass_time(fence - two.now - 0.1)
    assert not two.heard("a", Fenced)
    two.pass_time(0.2)
    assert two.heard("a", Fenced) == [Fenced((1,), "silent")]
    assert two.keys("p/")
    two.wants_cut("a", 1, cut(0, 9), "f2")
    assert two.heard("a", RemovalRefused) == [RemovalRefused(1, errno.EIO, "cluster")]


def test_what_waits_at_the_fence_gets_eio(two: Together) -> None:
    two.wants_pin("b", 1, pin(0, 4, LEASE))
    two.wants_cut("a", 1, cut(0, 4), wait_s=100.0)
    two.silent.add("a")
    two.wants_pin("a", 2, pin(4, 9), "f2", wait_s=100.0)
    two.pass_time(TIMING.pin_ttl_s)
    assert two.heard("a", PinRefused) == [PinRefused(2, errno.EIO, "cluster")]
    assert two.heard("a", RemovalRefused) == [RemovalRefused(1, errno.EIO, "cluster")]


def test_holders_are_told_before_breakers_are_answered(two: Together) -> None:
    two.wants_pin("b", 1, pin(4, 9, LEASE))
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_cut("a", 2, cut(4, 9), wait_s=100.0)
    two.silent.add("a")
    two.pass_time(TIMING.pin_ttl_s)
    kinds = [type(output) for output in two.said["a"]]
    assert kinds.index(Fenced) < kinds.index(RemovalRefused)


def test_a_beat_moves_the_fence_from_when_it_was_sent(two: Together) -> None:
    two.pass_time(10 * TIMING.beat_s)
    fence = two.members["a"].fence
    latest = two.now + TIMING.pin_ttl_s * CLOCK_TRUST - TIMING.margin_s
    assert latest - TIMING.beat_s - 0.1 <= fence <= latest


def test_pins_of_a_dead_host_go_after_the_pin_ttl_and_its_promise_after_the_member_ttl(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_cut("a", 1, cut(4, 9))
    two.pass_time(TIMING.pin_ttl_s - TIMING.beat_s, without=("a",))
    assert two.keys("p/")
    two.pass_time(3 * TIMING.beat_s, without=("a",))
    assert not two.keys("p/")
    assert two.keys("m/a")
    two.wants_pin("b", 1, pin(0, 4), "f2")
    two.wants_pin("b", 2, pin(4, 9), "f1")
    two.pass_time(3.0, without=("a",))
    assert two.heard("b", PinRefused) == [
        PinRefused(2, errno.EAGAIN, "removal", "a"),
        PinRefused(1, errno.EAGAIN, "host", "a"),
    ]
    two.pass_time(TIMING.member_ttl_s - TIMING.pin_ttl_s, without=("a",))
    assert two.keys("m/") == ["m/b/1"]
    assert not two.keys("r/")
    two.wants_pin("b", 3, pin(0, 4), "f2")
    assert two.heard("b", Pinned)


def test_an_answer_that_takes_long_moves_the_fence_no_further(two: Together) -> None:
    member = two.members["a"]
    sent = member.next_deadline()
    while not (beats := [out for out in member.tick(sent) if isinstance(out, Call) and isinstance(out.request, Txn)]):
        sent = member.next_deadline()
    two.do("a", member.answered(beats[0].number, two.etcd.handle(beats[0].request, sent), sent + 0.9))
    assert member.fence == sent + TIMING.pin_ttl_s * CLOCK_TRUST - TIMING.margin_s


def test_a_host_that_reads_anew_remembers_since_when_another_is_silent(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    del two.members["a"]
    for stream in range(1, 7):
        two.pass_time(TIMING.pin_ttl_s / 5)
        two.do("b", two.members["b"].watch_lost(stream, two.now))
    assert not two.keys("p/")


def test_a_host_whose_watch_hears_nothing_buries_no_one(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.deaf.add("b")
    two.pass_time(2 * TIMING.member_ttl_s)
    assert two.keys("p/")
    assert not two.heard("a", Fenced)


def test_each_host_is_judged_by_its_own_times_to_live() -> None:
    both = Together()
    both.join("a", timing=replace(TIMING, pin_ttl_s=45.0))
    both.join("b")
    both.wants_pin("a", 1, pin(0, 4))
    both.pass_time(35.0, without=("a",))
    assert both.keys("p/")
    assert not both.heard("a", Fenced)


def test_a_host_that_was_taken_for_dead_ends_when_it_goes_on(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.pass_time(TIMING.pin_ttl_s + TIMING.beat_s, without=("a",))
    assert [fenced.pins for fenced in two.heard("a", Fenced)] == [(1,)]


def test_a_host_behind_its_fence_leaves_when_its_cuts_are_over(two: Together) -> None:
    two.wants_cut("a", 1, cut(0, 9))
    two.silent.add("a")
    two.pass_time(TIMING.pin_ttl_s - 0.5)
    assert two.heard("a", Fenced)
    two.silent.clear()
    two.do("a", two.members["a"].tick(two.now))
    assert two.keys("m/a")
    two.do("a", two.members["a"].removal_finished(1, two.now))
    assert not two.keys("m/a")
    assert two.heard("a", Left)


def test_a_host_that_leaves_takes_its_keys_along(two: Together) -> None:
    two.wants_cut("a", 1, cut(0, 9))
    two.do("a", two.members["a"].leave(two.now))
    assert not two.heard("a", Left)
    two.do("a", two.members["a"].removal_finished(1, two.now))
    assert two.heard("a", Left)
    assert not two.heard("a", Fenced)
    assert two.keys("m/") == ["m/b/1"]


@pytest.mark.parametrize(("cluster_id", "back"), [(CLUSTER_ID, 1), (CLUSTER_ID + 1, 0)])
def test_an_etcd_that_has_forgotten_ends_the_member(two: Together, cluster_id: int, back: int) -> None:
    member = two.members["a"]
    two.wants_pin("a", 1, pin(0, 4))
    [call] = member.pin_wanted(2, "f1", pin(0, 4), two.now + 2, two.now)
    assert isinstance(call, Call)
    two.do("a", member.answered(call.number, Done(True, two.etcd.revision - back, cluster_id), two.now))
    assert two.heard("a", Fenced) == [Fenced((1,), "restored")]


def test_an_own_key_that_went_back_ends_the_member(two: Together) -> None:
    snapshot = two.etcd.snapshot()
    two.pass_time(2 * TIMING.beat_s)
    newer = two.etcd.revision
    two.etcd.restore(snapshot)
    two.etcd.revision = newer + 10
    two.pass_time(TIMING.beat_s)
    assert [fenced.why for fenced in two.heard("a", Fenced)] == ["restored"]


def test_a_count_that_went_back_ends_the_member(two: Together) -> None:
    """An operator has deleted the key: what was promised before would say too much."""
    two.wants_pin("a", 1, pin(0, 4))
    two.etcd.handle(Txn((), (Delete("c"),)), two.now)
    two.do("a", [])
    assert [two.heard(host, Fenced)[0].why for host in "ab"] == ["restored", "restored"]


def test_a_lease_that_has_ended_ends_the_member(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    member = two.members["a"]
    two.pass_time(TIMING.bundle_ttl_s / 24 + 1)
    kept = [call.request for host, call in two.calls if host == "a" and isinstance(call.request, KeepAlive)]
    assert not two.heard("a", Fenced)
    two.etcd.revoke(kept[0].lease)
    two.do("a", member.tick(two.now))
    assert [fenced.pins for fenced in two.heard("a", Fenced)] == [(1,)]


def test_a_key_of_another_version_ends_the_member(two: Together) -> None:
    two.etcd.handle(Txn((), (Put("p/f1/x/1/1", "2 0 4 deny"),)), two.now)
    two.do("a", [])
    assert all("unreadable" in two.heard(host, Fenced)[0].why for host in "ab")


# The next daemon of the same member


def resumed(two: Together, pins: dict[int, int], *, is_settled: bool, late_s: float = 0.5) -> None:
    """The daemon of a dies, and the next one takes over; `pins` has the number of each pin's key."""
    before = two.members["a"]
    two.now += late_s
    former = Former(before.fence, {p: (PinKey("f1", A, n), pin(0, 4)) for p, n in pins.items()}, is_settled)
    two.members["a"] = Member(A, TIMING, life=1)
    two.said["a"].clear()
    two.do("a", two.members["a"].resume(former, two.now))


def test_the_next_daemon_keeps_the_pins_and_deletes_what_was_not_acknowledged(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_pin("a", 2, pin(0, 4))
    resumed(two, {1: 1}, is_settled=True)
    assert two.said["a"] == [Joined()]
    assert two.keys("p/") == ["p/f1/a/1/1"]
    two.wants_cut("b", 1, cut(0, 4))
    assert two.heard("b", RemovalRefused)
    two.wants_pin("a", 3, pin(0, 4))
    assert two.heard("a", Pinned)[0].key.number == (1 << SERIAL_BITS) + 1
    two.do("a", two.members["a"].pin_released(1, two.now))
    assert len(two.keys("p/")) == 1


def test_the_next_daemon_waits_for_what_the_one_before_has_begun(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_cut("a", 1, cut(4, 9))
    two.wants_cut("a", 2, cut(0, 9), "f2")
    resumed(two, {1: 1}, is_settled=False)
    two.pass_time(TIMING.late_s - 1)
    assert two.keys("r/") == ["r/f1/a/1/2"]
    two.wants_pin("b", 1, pin(0, 4), "f2", wait_s=0.5)
    two.pass_time(0.6)
    assert two.heard("b", PinRefused) == [PinRefused(1, errno.EAGAIN, "host", "a")]
    two.pass_time(1)
    assert not two.keys("r/")
    two.wants_pin("b", 2, pin(0, 4), "f2")
    assert two.heard("b", Pinned)


def test_a_member_does_not_leave_before_what_the_daemon_before_has_begun_is_over(two: Together) -> None:
    two.wants_cut("a", 1, cut(0, 9), "f2")
    resumed(two, {}, is_settled=False)
    two.silent.add("a")
    two.pass_time(TIMING.pin_ttl_s - TIMING.margin_s)
    assert two.heard("a", Fenced)
    two.silent.clear()
    two.pass_time(TIMING.pin_ttl_s)
    two.wants_pin("b", 1, pin(0, 4), "f2", wait_s=0.5)
    two.pass_time(0.6)
    assert two.heard("b", PinRefused) == [PinRefused(1, errno.EAGAIN, "host", "a")]
    two.pass_time(TIMING.late_s)
    assert two.heard("a", Left)
    two.wants_pin("b", 2, pin(0, 4), "f2")
    assert two.heard("b", Pinned)


def test_a_daemon_that_comes_back_too_late_tells_the_holders(two: Together) -> None:
    two.wants_pin("a", 1, pin(0, 4))
    two.pass_time(TIMING.pin_ttl_s + 2 * TIMING.beat_s, without=("a",))
    resumed(two, {1: 1}, is_settled=True)
    assert two.heard("a", Fenced)[0].pins == (1,)
    assert not two.heard("a", Joined)


# Limits


def test_limits_have_names() -> None:
    two = Together()
    two.join("a", limits=Limits(pins=2, files=1))
    two.join("b", limits=Limits(waiting=0))
    two.wants_pin("a", 1, pin(0, 4))
    two.wants_pin("a", 2, pin(0, 4), "f2")
    two.wants_pin("a", 3, pin(0, 4))
    two.wants_pin("a", 4, pin(0, 4))
    two.wants_pin("b", 1, pin(0, 4))
    two.wants_cut("b", 2, cut(0, 4))
    assert two.heard("a", PinRefused) == [PinRefused(2, errno.EDQUOT, "files"), PinRefused(4, errno.EDQUOT, "pins")]
    assert two.heard("b", PinRefused) == [PinRefused(1, errno.EAGAIN, "crowd")]
    assert two.heard("b", RemovalRefused) == [RemovalRefused(2, errno.EBUSY, "crowd")]


def test_a_host_too_many_does_not_join() -> None:
    three = Together()
    three.join("a", "b", "c", limits=Limits(hosts=2))
    assert three.heard("b", Joined)
    assert not three.heard("c", Joined)
    assert three.heard("c", Fenced) == [Fenced((), "more than 2 hosts")]
    assert three.keys("m/") == ["m/a/1", "m/b/1"]
    assert three.members["c"].state is State.LEFT


def test_what_is_revoked_already_counts_as_left(two: Together) -> None:
    """Another host has buried the member meanwhile."""
    two.silent.add("a")
    two.pass_time(TIMING.pin_ttl_s + 2 * TIMING.beat_s)
    assert not two.heard("a", Left)
    assert two.keys("m/a")
    for lease in {call.request.lease for _, call in two.calls if isinstance(call.request, Revoke)}:
        two.etcd.revoke(lease)
    two.silent.clear()
    two.pass_time(1.0)
    assert two.heard("a", Left)
