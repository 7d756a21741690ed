"""Removals and breaks, one rule of SPEC 3 at a time."""

import errno
import math
from collections.abc import Hashable
from typing import Any

import pytest
from support.counted import Counted

from pinfs.core.book import COOL_DOWN_S, DEFAULT_SLICES, KILL_GRACE_S, PinBook
from pinfs.core.events import BookEvent
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec, State
from pinfs.core.policy import Limits, Policy
from pinfs.core.ranges import END
from pinfs.core.removals import Removal, RemovalRequest, Turn
from pinfs.core.reservations import MAX_ORPHANS_PER_FILE
from pinfs.core.slices import MAX_NOTIFYING_LEFT, SliceLimits

SIZE = 1000
START = 100.0


class Book(PinBook):
    """A book with its events and a clock that the test moves."""

    def __init__(self, slices: SliceLimits = DEFAULT_SLICES, **limits: int) -> None:
        self.events: list[BookEvent] = []
        self.now = START
        super().__init__(self.events.append, Limits(**limits), slices)

    def lease(self, start: int = 0, length: int = 10, owner: Hashable = "holder", **more: Any) -> Pin:
        name, process = more.pop("name", None), more.pop("process", owner)
        spec = PinSpec(start, length, more.pop("mode", Mode.LEASE))
        return self.pin(PinRequest(more.pop("inode", 1), owner, process, 7, name, spec), SIZE, self.now)

    def deny(self, start: int = 0, length: int = 10, **more: Any) -> Pin:
        return self.lease(start, length, mode=Mode.DENY, **more)

    def remove(self, start: int = 0, end: int = END, policy: Policy | None = None, **more: Any) -> Removal:
        request = RemovalRequest(more.pop("inode", 1), start, end, more.pop("op", "truncate"), **more)
        return self.begin(request, policy or Policy(retry_after=0), self.now)

    def at(self, now: float) -> None:
        """Let time pass until `now` seconds after the start."""
        self.now = START + now
        self.expire(self.now)

    def run_slices(self) -> float | None:
        """Do all that is done in slices; returns what `next_deadline` says then."""
        while (deadline := self.next_deadline()) == -math.inf:
            self.expire(self.now)
        return deadline

    def kinds(self, *skipped: str) -> list[str]:
        return [event.kind for event in self.events if event.kind not in ("pinned", *skipped)]


def outcome(removal: Removal) -> tuple[Turn, int, str]:
    return removal.turn, removal.errno, removal.why


REFUSED_BY_DENY = (Turn.REFUSED, errno.EBUSY, "deny")


SLICES_OF_TWO = SliceLimits(pins=2)


# Deny pins and own pins


def test_a_deny_pin_refuses_at_once_and_nobody_is_told() -> None:
    book = Book()
    book.lease(0, 10, owner="other")
    pin = book.deny(20, 1)
    assert outcome(book.remove(5)) == REFUSED_BY_DENY
    assert book.kinds() == ["refused"]
    assert book.events[-1].pin is pin
    assert not book.touches(1, 21, END), "a refused removal reserves nothing"


def test_bytes_beside_a_pin_may_go() -> None:
    book = Book()
    book.deny(10, 10)
    assert book.remove(0, 10).turn is Turn.READY
    assert book.remove(20, END).turn is Turn.READY


@pytest.mark.parametrize(("name", "number"), [("EBUSY", errno.EBUSY), ("ETXTBSY", errno.ETXTBSY)])
def test_policy_names_the_errno(name: str, number: int) -> None:
    book = Book()
    book.deny(0, 10)
    book.lease(20, 10)
    assert book.remove(0, 10, Policy(errno=name)).errno == number
    late = book.remove(20, 30, Policy(errno=name))
    book.at(45)
    assert outcome(late) == (Turn.REFUSED, number, "timeout")


def test_policy_conflict_overrides_the_mode() -> None:
    book = Book()
    book.deny(0, 10)
    book.lease(20, 10)
    assert outcome(book.remove(20, 30, Policy(conflict="deny"))) == REFUSED_BY_DENY
    assert book.remove(0, 30, Policy(conflict="break")).turn is Turn.WAITING
    assert book.kinds("refused") == ["break", "break"]


@pytest.mark.parametrize(("others", "number"), [(False, errno.EBUSY), (True, errno.ETXTBSY)])
def test_own_pins_refuse_with_ebusy_whatever_the_policy_says(others: bool, number: int) -> None:
    book = Book()
    book.deny(0, 10)
    if others:
        book.deny(20, 10, owner="other")
    assert book.remove(policy=Policy(errno="ETXTBSY"), process="holder").errno == number


@pytest.mark.parametrize("who", [{"process": "holder"}, {"handle": "holder"}])
def test_a_breaker_cannot_wait_for_itself(who: dict[str, Any]) -> None:
    book = Book()
    book.lease(process=None if "handle" in who else "holder")
    assert outcome(book.remove(**who)) == (Turn.REFUSED, errno.EBUSY, "own")
    assert book.kinds() == ["refused"]


def test_the_pin_of_a_handle_is_own_for_the_process_that_registered_it() -> None:
    book = Book()
    book.lease(owner="handle", process="holder")
    assert book.remove(process="holder").why == "own"


def test_a_breaker_that_is_not_visible_owns_nothing() -> None:
    book = Book()
    book.lease(owner="handle", process=None)
    assert book.remove(process=None).turn is Turn.WAITING


@pytest.mark.parametrize("mode", list(Mode))
def test_own_allow_lets_a_process_cut_its_own_file(mode: Mode) -> None:
    book = Book()
    book.lease(mode=mode)
    removal = book.remove(policy=Policy(own="allow"), process="holder")
    assert removal.turn is Turn.READY
    book.finish(removal, book.now)
    assert book.kinds() == []
    assert len(book.table) == 1


def test_own_allow_does_not_help_when_others_have_pins_there() -> None:
    book = Book()
    book.lease()
    book.lease(owner="other")
    assert book.remove(policy=Policy(own="allow"), process="holder").why == "own"
    book.deny(owner="third")
    assert book.remove(policy=Policy(own="allow"), process="holder").why == "deny"


def test_a_timeout_does_not_refuse_a_breaker_that_may_cut_these_pins_itself() -> None:
    book = Book()
    book.lease()
    stranger = book.remove()
    owner = book.remove(policy=Policy(own="allow"), process="holder")
    assert owner.turn is Turn.WAITING, "its turn comes after the stranger's"
    book.at(45)
    assert (stranger.why, owner.turn) == ("timeout", Turn.READY)


# Names that go


@pytest.mark.parametrize("op", ["unlink", "rename"])
def test_policy_unlink(op: str) -> None:
    book = Book()
    book.lease()
    deferred = book.remove(op=op)
    book.finish(deferred, book.now)
    assert book.kinds() == []
    assert outcome(book.remove(op=op, policy=Policy(unlink="deny"))) == REFUSED_BY_DENY
    assert book.remove(op=op, policy=Policy(unlink="break")).turn is Turn.WAITING


# Leases


def test_a_lease_breaks_and_its_release_lets_the_removal_go_on() -> None:
    book = Book()
    pin = book.lease()
    woken: list[Turn] = []
    removal = book.remove(5)
    removal.wake = lambda: woken.append(removal.turn)
    assert (removal.turn, pin.state, pin.deadline) == (Turn.WAITING, State.BREAKING, START + 45)
    assert book.next_deadline() == START + 45
    assert woken == []
    book.release(pin, book.now)
    assert woken == [Turn.READY]
    book.finish(removal, book.now)
    assert book.kinds() == ["break", "released", "proceeded"]
    assert book.files.states == {}, "nothing lingers after a removal that had its turn"


def test_a_removal_waits_for_all_its_holders() -> None:
    book = Book()
    pins = [book.lease(i * 10, owner=i) for i in range(3)]
    removal = book.remove()
    for pin in (pins[1], pins[2]):
        book.release(pin, book.now)
        assert removal.turn is Turn.WAITING
    book.owner_gone(0, book.now)
    assert removal.turn is Turn.READY


def test_a_holder_is_told_once_and_those_who_come_later_join() -> None:
    book = Book()
    pin = book.lease()
    book.remove(5)
    book.at(10)
    later = book.remove(0)
    assert book.kinds() == ["break"]
    assert pin.deadline == START + 45
    assert pin.breaking is not None
    assert (pin.breaking.op, pin.breaking.start, pin.breaking.end) == ("truncate", 5, END), "the first one is shown"
    book.at(45)
    assert later.why == "timeout"


def test_removals_of_the_same_bytes_go_in_order() -> None:
    book = Book()
    pin = book.lease(0, 10)
    first, second, third = book.remove(0, 10), book.remove(5, 20), book.remove(15, 30)
    elsewhere = book.remove(30, 40)
    assert elsewhere.turn is Turn.READY
    assert third.turn is Turn.WAITING, "it takes bytes that an earlier one takes, too"
    book.release(pin, book.now)
    for removal, behind in [(first, second), (second, third)]:
        assert (removal.turn, behind.turn) == (Turn.READY, Turn.WAITING)
        book.finish(removal, book.now)
    assert third.turn is Turn.READY


def test_removals_of_different_files_do_not_meet() -> None:
    book = Book()
    book.lease(inode=1)
    book.lease(inode=2)
    waiting = book.remove(inode=1)
    book.owner_gone("nobody", book.now)
    other = book.remove(inode=2)
    book.release(next(book.table.of_file(2)), book.now)
    assert (waiting.turn, other.turn) == (Turn.WAITING, Turn.READY)


def test_a_later_removal_that_meets_a_deny_pin_does_not_queue() -> None:
    book = Book()
    book.lease(0, 10)
    book.deny(20, 10)
    book.remove(0, 10)
    assert outcome(book.remove(0, 30)) == REFUSED_BY_DENY


# New pins while a removal is under way


def refused(book: Book, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(OSError) as caught:
        book.lease(*args, **kwargs)
    assert caught.value.errno == errno.EAGAIN


def test_no_pin_slips_into_a_range_that_a_removal_wants() -> None:
    book = Book()
    pin = book.lease(0, 10, name=b"n")
    removal = book.remove(5, 20)
    refused(book, 19, 1)
    refused(book, 0, 11, name=b"n")
    refused(book, 15, 1, name=b"n")
    assert (pin.start, pin.length, removal.turn) == (0, 10, Turn.WAITING)
    book.lease(20, 10)
    book.lease(0, 5)


def test_growing_away_from_the_removal_is_allowed_and_answers_nothing() -> None:
    book = Book()
    pin = book.lease(10, 10, name=b"n")
    removal = book.remove(15, 20)
    book.at(10)
    book.lease(5, 15, name=b"n")
    assert (pin.start, pin.state, pin.deadline, removal.turn) == (5, State.BREAKING, START + 45, Turn.WAITING)
    assert book.kinds() == ["break"]


@pytest.mark.parametrize("range_", [(0, 5), (500, 10)])
def test_shrinking_or_moving_out_of_the_range_answers(range_: tuple[int, int]) -> None:
    book = Book()
    pin = book.lease(0, 10, name=b"n")
    removal = book.remove(5, 20)
    assert book.lease(*range_, name=b"n") is pin
    assert (pin.state, removal.turn) == (State.HELD, Turn.READY)
    assert book.kinds() == ["break", "answered", "proceeded"]


def test_a_pin_that_moves_out_of_one_removal_but_not_the_other_answers_one() -> None:
    book = Book()
    pin = book.lease(0, 10, name=b"n")
    low, high = book.remove(0, 2), book.remove(8, 10)
    book.lease(5, 5, name=b"n")
    assert (low.turn, high.turn, pin.state) == (Turn.READY, Turn.WAITING, State.BREAKING)


def test_a_breaking_lease_cannot_become_a_deny_pin() -> None:
    book = Book()
    book.lease(0, 10, name=b"n")
    book.remove(5)
    refused(book, 0, 10, name=b"n", mode=Mode.DENY)
    book.deny(0, 5, name=b"n")


# Deadlines


def test_at_the_deadline_the_breaker_is_refused_and_the_pin_stands() -> None:
    book = Book()
    pin = book.lease()
    removal = book.remove()
    book.at(44.9)
    assert removal.turn is Turn.WAITING
    book.at(45)
    assert outcome(removal) == (Turn.REFUSED, errno.EBUSY, "timeout")
    assert (pin.state, pin.deadline) == (State.HELD, None)
    assert book.kinds() == ["break", "withdrawn", "refused"]
    assert book.next_deadline() is None
    assert book.remove().turn is Turn.WAITING, "the next one breaks it again"


def test_revoke_drops_the_pin_and_the_removal_goes_on() -> None:
    book = Book()
    book.lease()
    removal = book.remove(policy=Policy(on_timeout="revoke", break_timeout=5))
    book.at(5)
    assert removal.turn is Turn.READY
    assert book.kinds() == ["break", "revoked", "proceeded"]
    assert [event.by for event in book.events if event.kind == "revoked"] == ["policy"]
    assert len(book.table) == 0


def test_kill_waits_for_the_death() -> None:
    book = Book()
    pin = book.lease()
    removal = book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    assert (removal.turn, book.kinds()) == (Turn.WAITING, ["break", "kill"])
    assert book.extend(pin, 1000, book.now) == START + 45 + KILL_GRACE_S, "too late to ask for more time"
    book.owner_gone("holder", book.now)
    assert removal.turn is Turn.READY
    assert book.events[-2].kind == "revoked"
    assert book.events[-2].by == "kill"


def test_a_holder_that_does_not_die_keeps_its_pin() -> None:
    book = Book()
    pin = book.lease()
    removal = book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    book.at(45 + KILL_GRACE_S)
    assert (removal.why, pin.state) == ("timeout", State.HELD)


@pytest.mark.parametrize("slice_size", [DEFAULT_SLICES.pins, 0])
def test_a_pin_of_a_handle_goes_with_the_process_that_was_killed_for_it(
    slice_size: int,
) -> None:
    """Others may have the handle open still. At once, or where there are very many of them in slices."""
    book = Book()
    pin = book.lease(owner="handle", process="holder")
    removal = book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    assert book.kinds() == ["break", "kill"]
    book.reaping.slice_size = slice_size
    book.owner_gone("holder", book.now)
    book.reaping.slice_size = DEFAULT_SLICES.pins
    while book.reaping.dead_owners:
        book.expire(book.now)
    assert (removal.turn, pin.id in book.table.by_id, book.events[-2].by) == (Turn.READY, False, "kill")
    assert book.ended == {"kill": 1}


def test_only_pins_that_are_breaking_go_with_a_killed_process() -> None:
    book = Book()
    pin = book.lease(owner="handle", process="holder")
    book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    book.at(45 + KILL_GRACE_S)
    book.owner_gone("holder", book.now)
    assert pin.state is State.HELD


def test_a_process_that_has_ended_is_not_killed() -> None:
    book = Book()
    book.is_dead = "holder".__eq__
    book.lease(owner="handle", process="holder")
    removal = book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    assert (removal.turn, book.kinds()) == (Turn.READY, ["break", "revoked", "proceeded"])


def test_nothing_is_kept_for_a_breaker_that_has_ended() -> None:
    book = Book()
    pin = book.lease()
    removal = book.remove(process="breaker")
    book.leave(removal, book.now)
    with pytest.raises(OSError, match="under way"):
        book.lease(20, 10)
    book.is_dead = "breaker".__eq__
    book.release(pin, book.now)
    assert book.lease(0, 10)


def test_what_one_of_two_breakers_left_is_kept_for_the_other() -> None:
    book = Book()
    book.is_dead = "dead".__eq__
    pin = book.lease()
    for process in ("alive", "dead"):
        book.leave(book.remove(process=process), book.now)
    book.release(pin, book.now)
    with pytest.raises(OSError, match="under way"):
        book.lease(0, 10)


def test_where_there_is_nobody_to_kill_the_pin_is_revoked() -> None:
    book = Book()
    book.lease(owner="handle", process=None)
    removal = book.remove(policy=Policy(on_timeout="kill"))
    book.at(45)
    assert removal.turn is Turn.READY
    assert book.kinds() == ["break", "revoked", "proceeded"]


def test_extension_counts_from_now_up_to_the_cap_and_never_shortens() -> None:
    book = Book()
    pin = book.lease()
    with pytest.raises(OSError) as caught:
        book.extend(pin, 1, book.now)
    assert caught.value.errno == errno.ENODATA
    removal = book.remove(policy=Policy(break_timeout_max=100))
    book.at(10)
    assert book.extend(pin, 5, book.now) == START + 45
    assert book.extend(pin, 60, book.now) == START + 70
    assert book.extend(pin, 1e9, book.now) == START + 100
    book.at(99)
    assert removal.turn is Turn.WAITING
    book.at(100)
    assert removal.why == "timeout"


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_an_extension_is_a_time(seconds: float) -> None:
    book = Book()
    pin = book.lease()
    book.remove()
    with pytest.raises(OSError) as caught:
        book.extend(pin, seconds, book.now)
    assert caught.value.errno == errno.EINVAL


def test_when_a_removal_is_refused_its_other_holders_need_not_let_go() -> None:
    book = Book()
    short, long = book.lease(0, 10), book.lease(10, 10, owner="other")
    book.remove()
    book.extend(long, 100, book.now)
    book.at(45)
    assert (short.state, long.state) == (State.HELD, State.HELD)
    assert [e.why for e in book.events if e.kind == "withdrawn"] == ["timeout", "unwanted"]


def test_a_holder_that_another_removal_wants_goes_on_breaking() -> None:
    book = Book()
    book.lease(0, 10)
    long = book.lease(10, 10, owner="other")
    both, one = book.remove(0, 20), book.remove(15, 20)
    book.extend(long, 100, book.now)
    book.at(45)
    assert (both.why, one.turn, long.state) == ("timeout", Turn.WAITING, State.BREAKING)


# Breakers that give up


def test_an_interrupted_breaker_leaves_the_break_and_the_reservation() -> None:
    book = Book()
    pin = book.lease(0, 10)
    removal = book.remove(5, 20)
    book.leave(removal, book.now)
    assert (removal.turn, book.waiting, pin.state) == (Turn.GONE, 0, State.BREAKING)
    refused(book, 15, 1)
    book.at(10)
    book.release(pin, book.now)
    refused(book, 15, 1)
    book.at(10 + COOL_DOWN_S)
    assert book.files.states == {}
    assert book.lease(15, 1)


def test_the_deadline_of_an_abandoned_break_withdraws_it() -> None:
    book = Book()
    pin = book.lease()
    book.leave(book.remove(), book.now)
    book.at(45)
    assert (pin.state, book.kinds()) == (State.HELD, ["break", "withdrawn"])


def test_a_breaker_that_does_not_block_gets_eagain_and_can_try_again() -> None:
    book = Book()
    pin = book.lease()
    first, second = book.remove(nonblock=True), book.remove(nonblock=True)
    assert outcome(first) == outcome(second) == (Turn.REFUSED, errno.EAGAIN, "nonblock")
    assert book.kinds("refused") == ["break"]
    book.release(pin, book.now)
    refused(book, 0, 10)
    third = book.remove(nonblock=True)
    assert third.turn is Turn.READY
    book.finish(third, book.now)
    assert book.files.states == {}, "whoever has had its turn leaves nothing behind"


def test_a_breaker_leaves_nothing_where_nothing_is_breaking() -> None:
    book = Book()
    pin = book.lease()
    first, second = book.remove(), book.remove()
    book.release(pin, book.now)
    book.leave(second, book.now)
    book.leave(first, book.now)
    assert book.files.states == {}


def test_those_who_waited_behind_one_that_leaves_go_on() -> None:
    book = Book()
    pin = book.lease(0, 10)
    first, second = book.remove(5, 20), book.remove(15, 30)
    assert second.turn is Turn.WAITING
    book.leave(first, book.now)
    assert (second.turn, pin.state) == (Turn.READY, State.BREAKING)


def test_what_breakers_leave_behind_is_bounded() -> None:
    book = Book()
    book.lease(0, SIZE)
    for start in range(0, 2 * MAX_ORPHANS_PER_FILE * 3, 3):
        book.remove(start, start + 1, nonblock=True)
    assert len(book.files[1].orphans) <= MAX_ORPHANS_PER_FILE


def test_trying_again_and_again_keeps_nothing() -> None:
    book = Book()
    pin = book.lease()
    for _ in range(200):
        book.remove(nonblock=True)
        book.leave(book.remove(), book.now)
    assert len(book.files[1].orphans) == 1
    assert pin.breaking is not None
    assert len(pin.breaking.watchers) == 1


def test_answered_breaks_do_not_pile_up_until_their_deadlines() -> None:
    book = Book()
    for _ in range(1000):
        pin = book.lease()
        removal = book.remove()
        book.release(pin, book.now)
        book.finish(removal, book.now)
    assert len(book.deadlines) < 200


def test_answered_breaks_do_not_wait_for_their_deadlines() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(50)]
    removal = book.remove()
    book.run_slices()
    for pin in pins:
        book.release(pin, book.now)
    assert (removal.turn, book.run_slices(), len(book.deadlines)) == (Turn.READY, None, 0)


# Too many, and the end


def test_waiting_breakers_are_limited() -> None:
    book = Book(max_waiting=2)
    pin = book.lease()
    waiting = [book.remove(), book.remove()]
    late = book.remove()
    assert outcome(late) == (Turn.REFUSED, errno.EBUSY, "max_waiting")
    assert book.remove(500).turn is Turn.REFUSED, "behind others it would have to wait, too"
    assert book.remove(nonblock=True).errno == errno.EAGAIN, "who does not wait is not one too many"
    assert [event.why for event in book.events if event.kind == "limit"] == ["max_waiting"] * 2
    book.release(pin, book.now)
    for removal in waiting:
        book.finish(removal, book.now)
    assert book.waiting == 0


def test_above_the_limit_no_holder_is_bothered() -> None:
    book = Book(max_waiting=0)
    pin = book.lease()
    assert book.remove().why == "max_waiting"
    assert pin.state is State.HELD
    assert book.remove(500).turn is Turn.READY


def test_closing_refuses_all_that_wait_or_would() -> None:
    book = Book()
    pin = book.lease()
    waiting = [book.remove(), book.remove(inode=1)]
    book.close(book.now)
    assert [outcome(removal) for removal in waiting] == [(Turn.REFUSED, errno.EBUSY, "shutdown")] * 2
    assert (pin.state, book.kinds()[-1]) == (State.HELD, "withdrawn")
    assert book.remove().why == "shutdown"
    assert book.remove(500).turn is Turn.READY


# A great many, in slices


def breaking(pins: list[Pin]) -> list[int]:
    return [number for number, pin in enumerate(pins) if pin.state is State.BREAKING]


def test_holders_are_asked_in_slices_and_all_of_them_before_the_removal_goes_on() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(5)]
    removal = book.remove()
    assert (breaking(pins), book.next_deadline()) == ([0, 1], -math.inf)
    for pin in pins[:2]:
        book.release(pin, book.now)
    assert (removal.turn, breaking(pins)) == (Turn.WAITING, [2, 3])
    book.at(1)
    assert breaking(pins) == [2, 3, 4]
    for pin in pins[2:]:
        book.release(pin, book.now)
    assert (removal.turn, book.run_slices()) == (Turn.READY, None)
    assert book.kinds("released") == ["break"] * 5 + ["proceeded"]


def test_the_time_of_a_holder_begins_when_it_is_asked() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(3)]
    removal = book.remove()
    book.at(1)
    assert [pin.deadline for pin in pins] == [START + 45, START + 45, START + 46]
    for pin in pins[:2]:
        book.release(pin, book.now)
    book.at(45)
    assert removal.turn is Turn.WAITING
    book.at(46)
    assert outcome(removal) == (Turn.REFUSED, errno.EBUSY, "timeout")


def test_who_lets_go_before_being_asked_is_not_asked() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(5)]
    removal = book.remove()
    for pin in reversed(pins):
        book.release(pin, book.now)
    book.at(0)
    assert removal.turn is Turn.READY
    assert book.kinds("released") == ["break"] * 2 + ["proceeded"]


def test_who_moves_a_pin_before_being_asked_is_asked_first() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(50 + number, 60, name=b"%d" % number) for number in range(5)]
    removal = book.remove(100)
    with pytest.raises(OSError, match="under way"):
        book.deny(52, 60, name=b"2")
    assert breaking(pins) == [0, 1, 2]
    book.lease(0, 113, name=b"3")  # begins before those that have been asked
    assert breaking(pins) == [0, 1, 2, 3]
    book.lease(0, 100, name=b"4")
    assert breaking(pins) == [0, 1, 2, 3]
    assert book.kinds()[-2:] == ["break", "answered"]
    book.at(0)
    for pin in pins[:4]:
        book.release(pin, book.now)
    assert removal.turn is Turn.READY


def test_what_was_asked_and_stands_is_not_asked_again_when_it_moves() -> None:
    book = Book(SLICES_OF_TWO)
    first = book.lease(0, name=b"first")
    for number in range(1, 6):
        book.lease(number)
    book.remove(nonblock=True)
    book.at(45)
    assert first.state is State.HELD
    book.lease(0, 5, name=b"first")
    assert first.state is State.HELD


def test_the_break_of_who_does_not_wait_goes_on_to_all_holders() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(7)]
    assert book.remove(nonblock=True).errno == errno.EAGAIN
    assert breaking(pins) == [0, 1]
    for pin in pins[:2]:
        book.release(pin, book.now)
    assert breaking(pins) == [2, 3], "not a cool-down, while some have not been asked"
    book.at(0)
    assert breaking(pins) == [2, 3, 4, 5]
    with pytest.raises(OSError, match="under way"):
        book.lease(500)
    for pin in pins[2:]:
        book.release(pin, book.now)
    book.at(COOL_DOWN_S)
    assert (book.files.states, book.run_slices()) == ({}, None)


def test_a_breaker_that_leaves_has_its_other_holders_asked() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(5)]
    book.leave(book.remove(), book.now)
    book.at(0)
    book.at(0)
    assert breaking(pins) == [0, 1, 2, 3, 4]


def test_those_who_try_again_and_again_do_not_ask_without_end() -> None:
    book = Book(SLICES_OF_TWO)
    for number in range(5):
        book.lease(number)
    for _ in range(200):
        book.remove(nonblock=True)
    assert len(book.notifying.notified_up_to) == MAX_NOTIFYING_LEFT


def test_a_refused_removal_asks_no_more_and_its_breaks_are_withdrawn_in_slices() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(9)]
    removal = book.remove()
    book.at(1)
    book.at(2)
    book.at(45)  # two time out, and two more need not let go
    assert outcome(removal) == (Turn.REFUSED, errno.EBUSY, "timeout")
    assert breaking(pins) == [4, 5]
    book.at(45)
    book.at(45)
    assert (breaking(pins), book.run_slices()) == ([], None)
    assert book.kinds() == ["break"] * 6 + ["withdrawn", "refused"] + ["withdrawn"] * 5


@pytest.mark.parametrize("on_timeout", ["revoke", "kill"])
def test_what_nobody_wants_any_more_is_not_taken_at_its_deadline(on_timeout: str) -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(7)]
    book.remove(policy=Policy(on_timeout=on_timeout))
    for _ in range(3):
        book.at(0)
    assert len(breaking(pins)) == 7
    book.close(book.now)
    assert breaking(pins) == [2, 3, 4, 5, 6]
    book.at(45)
    book.at(45)
    book.at(45)
    assert (breaking(pins), len(book.table)) == ([], 7)
    assert "kill" not in book.kinds()


def test_a_removal_joins_breaks_that_are_yet_to_be_withdrawn() -> None:
    book = Book(SLICES_OF_TWO)
    pins = [book.lease(number) for number in range(9)]
    first = book.remove(0, 9)
    for now in (1, 2, 3):
        book.at(now)
    book.at(45)
    assert (first.turn, breaking(pins)) == (Turn.REFUSED, [4, 5, 6, 7])
    second = book.remove(17, 18)  # the last one's
    third = book.remove(15, 16)  # those of the last two
    book.at(45)
    book.at(45)
    assert (second.turn, third.turn, breaking(pins)) == (Turn.WAITING, Turn.WAITING, [6, 7, 8])
    assert [pins[number].deadline for number in (6, 7, 8)] == [START + 48, START + 48, START + 90]


def test_a_breaker_that_waits_for_itself_is_refused_when_that_is_found() -> None:
    book = Book(SliceLimits(pins=2, own_scan=2))
    for number in range(5):
        book.lease(500 + number, owner="me")
    pins = [book.lease(number) for number in range(4)]
    own = book.lease(100, owner="me")
    removal = book.remove(0, 200, process="me")
    assert removal.turn is Turn.WAITING
    book.at(0)
    book.at(0)
    assert outcome(removal) == (Turn.REFUSED, errno.EBUSY, "own")
    for _ in range(3):
        book.at(0)
    assert breaking([*pins, own]) == []


# Holders that let a deadline pass


def test_a_holder_that_let_a_deadline_pass_is_not_notified_again_for_a_while() -> None:
    book = Book()
    policy = Policy(retry_after=5)
    book.lease(0, 10)
    book.lease(50, 10, owner="other")
    assert book.remove(0, 10, policy).turn is Turn.WAITING
    book.at(45)
    crowd = [book.remove(0, 10, policy) for _ in range(40)]
    assert [outcome(removal) for removal in crowd] == [(Turn.REFUSED, errno.EBUSY, "unanswered")] * 40
    assert book.kinds().count("break") == 1
    assert outcome(book.remove(0, END, policy)) == (Turn.REFUSED, errno.EBUSY, "unanswered")
    assert book.remove(50, 60, policy).turn is Turn.WAITING, "the rule is about the silent holder alone"
    assert book.remove(20, 30, policy).turn is Turn.READY
    book.at(49.9)
    assert outcome(book.remove(0, 10, Policy(errno="ETXTBSY"))) == (Turn.REFUSED, errno.ETXTBSY, "unanswered")
    book.at(50)
    assert book.remove(0, 10, policy).turn is Turn.WAITING
    assert book.kinds().count("break") == 3


def test_a_silent_holder_that_ends_is_forgotten() -> None:
    book = Book()
    pin = book.lease()
    book.remove(policy=Policy())
    book.at(45)
    assert pin.state is State.HELD
    book.owner_gone("holder", book.now)
    assert len(book.silent) == 0
    book.lease()
    assert book.remove(policy=Policy()).turn is Turn.WAITING


def test_many_silent_holders_are_not_remembered_for_ever() -> None:
    book = Book()
    for number in range(200):
        book.lease(number, 1, owner=number)
        book.remove(number, number + 1, Policy(break_timeout=1, retry_after=1))
        book.at(2.0 * number + 2)
    assert len(book.silent) <= 64


def test_a_silent_holder_behind_very_many_others_is_found_when_its_turn_comes() -> None:
    book = Book(SliceLimits(pins=2, silent_scan=2))
    silent = book.lease(100, 1, owner="silent")
    book.remove(100, 101, Policy())
    book.at(45)
    pins = [book.lease(number, 1, owner=number) for number in range(5)]
    removal = book.remove(0, 200, Policy())
    assert removal.turn is Turn.WAITING
    book.run_slices()
    assert outcome(removal) == (Turn.REFUSED, errno.EBUSY, "unanswered")
    assert breaking([*pins, silent]) == []


# How much work it is


def comparisons_to_stand(holders: int) -> float:
    """A breaker has given up, and all holders let their deadline pass."""
    book = Book()
    spec = PinSpec(Counted(0), Counted(10), Mode.LEASE)
    for i in range(holders):
        book.pin(PinRequest(1, i, i, 7, None, spec), SIZE, START)
    book.remove(Counted(0), Counted(END), nonblock=True)
    book.run_slices()
    Counted.comparisons = 0
    while book.breaks.of_owner:
        book.at(45)
    return Counted.comparisons / holders


def test_what_a_breaker_left_behind_ends_at_a_price_that_hardly_grows() -> None:
    assert comparisons_to_stand(5000) < 5 * comparisons_to_stand(100)


def comparisons_to_release(holders: int) -> float:
    book = Book()
    spec = PinSpec(Counted(0), Counted(10), Mode.LEASE)
    pins = [book.pin(PinRequest(1, i, i, 7, None, spec), SIZE, START) for i in range(holders)]
    removal = book.remove(Counted(0), Counted(END))
    Counted.comparisons = 0
    for pin in pins:
        book.release(pin, START)
    assert removal.turn is Turn.READY
    return Counted.comparisons / holders


def test_ten_thousand_holders_are_told_once_each_and_let_go_at_a_price_that_hardly_grows() -> None:
    assert comparisons_to_release(10_000) < 5 * comparisons_to_release(100)


def test_one_deny_pin_among_ten_thousand_leases_is_found_without_looking_at_them() -> None:
    book = Book()
    spec = PinSpec(Counted(0), Counted(10), Mode.LEASE)
    for i in range(10_000):
        book.pin(PinRequest(1, i, i, 7, None, spec), SIZE, START)
    book.deny()
    Counted.comparisons = 0
    assert book.remove(Counted(0), Counted(END)).why == "deny"
    assert Counted.comparisons < 50
