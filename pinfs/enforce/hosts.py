"""The other hosts of a cluster (SPEC 14): the guard asks them before bytes go, and the book hears of their removals.

The book judges what happens on this host, `pinfs.cluster` what happens between hosts. Here the two meet: a pin is
registered with the other hosts before the book has it, a removal is judged by both at the same time, and the removal of
another host is one without a process in the book.
"""

import errno
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import trio

from pinfs.cluster.keys import PinValue, RemovalKey, RemovalValue
from pinfs.cluster.outputs import MayCut, RemovalRefused, Told, Waits
from pinfs.cluster.protocol import ANY_FILE
from pinfs.core.book import COOL_DOWN_S, KILL_GRACE_S
from pinfs.core.pins import Mode, Pin, PinSpec
from pinfs.core.policy import Policy
from pinfs.core.ranges import END
from pinfs.core.removals import Removal, RemovalRequest, Turn
from pinfs.enforce.guard import Guard, Policies
from pinfs.enforce.reports import removal_text
from pinfs.runtime.errors import logged
from pinfs.runtime.parking import OneShot, park

log = logging.getLogger("pinfs.hosts")

Heard = MayCut | Waits | RemovalRefused

LEFT_BEHIND: Final = 256
"""Removals of breakers that gave up, which stand until their breaks are over; a further one ends at once."""
RELEASE_S: Final = 2.0
"""What a release waits until the other hosts need not mind it. It is done all the same."""
ANY_BYTES: Final = RemovalValue(0, END, "rename")
SWEEP_S: Final = 60.0
STANDS_S: Final = SWEEP_S / 2
"""A name that keeps bytes stands for SWEEP_S at least, on whichever host it is found."""
ROOM_FOR_ANSWERS_S: Final = 10.0
"""How much longer than a holder may take a breaker waits for the word of the holder's daemon."""


class Host(Protocol):
    """What is needed of `pinfs.cluster.host.Host`."""

    def must_ask(self, inode: int, /) -> bool: ...
    async def pin(self, file: str, value: PinValue, patience_s: float, /) -> int: ...
    def release(self, pin: int, /) -> None: ...
    async def until_unpinned(self, pin: int, /) -> None: ...
    def removal(self, file: str, value: RemovalValue, patience_s: float, heard: Callable[[Heard], None], /) -> int: ...
    def may_begin(self, removal: int, /) -> bool: ...
    def removal_over(self, removal: int, /) -> None: ...
    def deny(self, removal: RemovalKey, why: str, /) -> None: ...
    def status(self) -> dict[str, Any]: ...


class Files(Protocol):
    """What is needed of the file system, by node id: `number` is 0 for files that other hosts know nothing of, and the
    node id itself below `numbers_end`. Errors of open(2); EOPNOTSUPP for those files; ESTALE."""

    @property
    def numbers_end(self) -> int: ...
    def number(self, inode: int, /) -> int: ...
    def path(self, inode: int, /) -> str | None: ...
    def ask_server(self, inode: int, /) -> Awaitable[None]: ...
    def name(self, inode: int, /) -> Awaitable[str]: ...
    def hold(self, inode: int, /) -> Awaitable[None]: ...
    def held(self) -> Awaitable[list[str]]: ...
    def let_go(self, name: str, /) -> Awaitable[None]: ...


@dataclass(slots=True)
class Question:
    """A removal that the other hosts have been asked about. `in_book`: the book hears of a refusal. `number`: the
    cluster's. `is_waiting`: for leases there."""

    removal: Removal
    in_book: bool
    number: int = 0
    answer: MayCut | RemovalRefused | None = None
    is_waiting: bool = False
    answered: OneShot = field(default_factory=OneShot)


class OtherHosts:
    """As the guard, the verbs of pins, and the cluster's host see each other. `pin_timeout_s`: how long a pin waits for
    the other hosts, and for this one to join."""

    def __init__(self, guard: Guard, policies: Policies, files: Files, pin_timeout_s: float) -> None:
        self.host: Host
        self.on_state: Callable[[dict[str, Any]], None] = lambda state: None
        """Writes down what the next daemon needs to go on."""
        self._guard = guard
        self._book = guard.book
        self._policies = policies
        self._files = files
        self._numbers_end = files.numbers_end
        self._pin_timeout_s = pin_timeout_s
        self._is_joined = trio.Event()
        self._has_complained = False
        self._fences = 0
        self._nodes: dict[str, int] = {}
        """The node ids of files with pins of this host, by the names that all hosts have for them."""
        self._uses: Counter[str] = Counter()
        self._files_of: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        """The cluster's number of each pin, by its id."""
        self._pins: dict[int, Pin] = {}
        self._questions: dict[Removal, Question] = {}
        self.left_behind = 0
        """Removals that stand for breakers that have given up."""
        self.asked = 0
        self.refused: Counter[str] = Counter()
        """Removals that the other hosts were asked about, and those that were not allowed, by why."""
        self._told: dict[RemovalKey, Removal] = {}
        self._held_at: dict[str, float] = {}
        """When files with several names were given one more."""

    # Pins

    async def pin(self, inode: int, spec: PinSpec) -> int:
        """Registers a pin with all hosts, before the book has it: `commit` or `release` follows. The cluster's number.

        OSError: EAGAIN (a removal of these bytes is under way, or a host has not answered), EDQUOT, EIO (this host is
        cut off), errors of open(2).
        """
        await park()
        await self._joined()
        mode = self._mode_for_others(inode, spec)
        file = await self._files.name(inode)
        fences = self._fences
        self._use(file, inode)
        try:
            value = PinValue(spec.start, spec.end, mode)
            number = await self.host.pin(file, value, self._pin_timeout_s)
            try:
                await self._files.ask_server(inode)  # whether the bytes are there: from now on they stay
                if fences != self._fences:
                    raise OSError(errno.EIO, "this host was cut off from the others")
            except BaseException:
                self.host.release(number)
                raise
        except BaseException:
            self._unuse(file)
            raise
        self._files_of[number] = file
        return number

    def commit(self, pin: Pin, number: int) -> None:
        """The book has the pin, or has it at another place: what was registered for it before is released."""
        before = self._numbers.get(pin.id)
        self._numbers[pin.id] = number
        self._pins[number] = pin
        if before is not None:
            self.release(before)

    def release(self, number: int) -> None:
        """The other hosts need not mind it any more."""
        self._pins.pop(number, None)
        file = self._files_of.pop(number, None)
        if file is not None:
            self.host.release(number)
            self._unuse(file)

    def ended(self, pin: Pin) -> None:
        """The book has it no more."""
        number = self._numbers.pop(pin.id, None)
        if number is not None:
            self.release(number)

    def number_of(self, pin: Pin) -> int:
        """The cluster's; 0: it has none."""
        return self._numbers.get(pin.id, 0)

    async def until_unpinned(self, number: int) -> None:
        """Returns when a release has arrived, so that the holder may tell others that they can go on; or soon, where
        this host is cut off."""
        await park()
        with trio.move_on_after(RELEASE_S):
            await self.host.until_unpinned(number)

    def _mode_for_others(self, inode: int, spec: PinSpec) -> Mode:
        """The daemon of the holder decides how its pins answer."""
        conflict = self._policy(inode).conflict
        return {"deny": Mode.DENY, "break": Mode.LEASE}.get(conflict, spec.mode)

    def _policy(self, inode: int) -> Policy:
        return self._policies.current.for_path(self._files.path(inode))

    def _use(self, file: str, inode: int) -> None:
        self._uses[file] += 1
        self._nodes[file] = inode

    def _unuse(self, file: str) -> None:
        self._uses[file] -= 1
        if not self._uses[file]:
            del self._uses[file], self._nodes[file]

    # Pins of the daemon before

    async def former_pins(self) -> list[tuple[int, str, PinValue]]:
        """What the daemon before has registered with the other hosts, by its journal: ids of pins, what all hosts call
        their files, and the pins. A pin whose file cannot be reached is lost."""
        former = []
        for pin in [*self._book.table.by_id.values()]:
            try:
                file = await self._files.name(pin.inode)
            except OSError as e:
                log.warning("pin %d: its file cannot be named to the other hosts: %s", pin.id, e)
                self._lose(pin)
                continue
            former.append((pin.id, file, PinValue(pin.start, pin.end, self._mode_for_others(pin.inode, pin.spec))))
        return former

    def resumed(self, files: dict[int, str], numbers: dict[int, int]) -> list[int]:
        """The cluster's numbers of the pins of `former_pins`, by their ids. Those without one are lost. Returns the
        numbers of those that have ended meanwhile."""
        ended = []
        for pin_id, file in files.items():
            pin, number = self._book.table.by_id.get(pin_id), numbers.get(pin_id)
            if pin is None:
                if number is not None:
                    ended.append(number)
            elif number is None:
                self._lose(pin)
            else:
                self._use(file, pin.inode)
                self._files_of[number] = file
                self._numbers[pin_id] = number
                self._pins[number] = pin
        return ended

    # Removals of this host

    def must_ask(self, inode: int) -> bool:
        """Whether a removal from this file may not go on without `ask`."""
        if inode < self._numbers_end:  # nearly all, and each removal comes here
            return self.host.must_ask(inode)
        number = self._files.number(inode)
        return number != 0 and self.host.must_ask(number)

    async def defer(self, removal: Removal) -> None:
        """Returns when the last name of a file may go (policy `unlink` = `defer`): no other host has it pinned, or its
        bytes have got another name. EBUSY: they get none."""
        try:
            await self._ask(removal, in_book=False)
            await self.wait_answered(removal)
            return
        except OSError as e:
            log.debug("other hosts may have %s pinned: %s", removal.request.path, e)
        finally:
            if not self._is_allowed(removal):
                self.over(removal)
        await self._hold(removal)

    async def defer_one(self, removal: Removal) -> None:
        """Returns when one of several names of a file may go. Other hosts may be taking the others right now, and see
        several names as well: so bytes that may be pinned get one more, whatever policy `unlink` says. EBUSY: they get
        none. Errors of open(2)."""
        if not self._files.number(removal.inode):
            return
        file = await self._files.name(removal.inode)
        if not self.must_ask(removal.inode):  # it is not told to other hosts, but holds back the pins of all
            self._ask_of(file, removal, in_book=False)
            if self._is_allowed(removal):
                return
            self.over(removal)
        now = trio.current_time()
        if now - self._held_at.get(file, -math.inf) <= STANDS_S:
            self._stand_unseen(removal)
        else:
            await self._hold(removal)
            self._held_at = {held: at for held, at in self._held_at.items() if now - at <= STANDS_S} | {file: now}

    async def _hold(self, removal: Removal) -> None:
        try:
            await self._files.hold(removal.inode)
        except OSError as e:
            log.info("%s: the name stays, as its bytes get no other: %s", removal_text(removal.request), e)
            raise OSError(errno.EBUSY, "pinned at another host") from e
        self._stand_unseen(removal)

    def _stand_unseen(self, removal: Removal) -> None:
        """The name that keeps the bytes may be taken back before a call in a thread takes the other one: until that is
        over no file gets its first pin."""
        question = Question(removal, in_book=False)
        question.number = self.host.removal(ANY_FILE, ANY_BYTES, 0.0, partial(self._heard, question))
        if isinstance(question.answer, MayCut):  # else this host is cut off
            self._questions[removal] = question

    async def run(self) -> None:
        """Takes the names back that `hold` has given, until cancelled."""
        held: set[str] = set()
        while True:
            await trio.sleep(SWEEP_S)
            with logged("a sweep of held files"), suppress(OSError):
                before, held = held, set(await self._files.held())
                for name in sorted(held & before):  # a new one may be of a name that is about to go
                    await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        file = name.partition("-")[0]
        if self.host.must_ask(int(file.partition(".")[0], 16)):
            return
        heard: list[Heard] = []
        number = self.host.removal(file, RemovalValue(0, END, "unlink"), 0.0, heard.append)
        try:
            if self.host.may_begin(number):  # no host has it pinned, and none will before it has gone
                await self._files.let_go(name)
        finally:
            self.host.removal_over(number)

    def _is_allowed(self, removal: Removal) -> bool:
        question = self._questions.get(removal)
        return question is not None and isinstance(question.answer, MayCut) and self.host.may_begin(question.number)

    async def ask(self, removal: Removal) -> None:
        """Asks the other hosts, and does not wait for their answer. OSError: EIO, errors of open(2)."""
        if not self._files.number(removal.inode):
            return  # no host can pin it but this one
        if not self._is_joined.is_set():
            await park()
            await self._joined()
        await self._ask(removal, in_book=True)

    async def _ask(self, removal: Removal, *, in_book: bool) -> None:
        if not self._files.number(removal.inode):
            return
        self._ask_of(await self._files.name(removal.inode), removal, in_book=in_book)

    def _ask_of(self, file: str, removal: Removal, *, in_book: bool) -> None:
        question = Question(removal, in_book)
        self._questions[removal] = question
        self.asked += 1
        policy = removal.policy
        patience_s = max(policy.break_timeout, policy.break_timeout_max) + KILL_GRACE_S + ROOM_FOR_ANSWERS_S
        value = RemovalValue(removal.start, removal.end, removal.request.op)
        question.number = self.host.removal(file, value, patience_s, partial(self._heard, question))

    async def wait_answered(self, removal: Removal) -> None:
        """Returns when the other hosts let the bytes go, and this one may begin now. OSError: policy `errno`, EAGAIN
        (`nonblock`), EIO (cut off)."""
        question = self._questions.get(removal)
        if question is None:
            return
        await question.answered.wait()
        if isinstance(question.answer, RemovalRefused) and not question.in_book:
            raise OSError(question.answer.errno, question.answer.why)
        if removal.turn is Turn.REFUSED:
            raise OSError(removal.errno, removal.why)
        try:
            self.check(removal)
        except OSError:
            self._refuse(question, errno.EIO, "cluster", None)
            raise

    def begin_unseen(self) -> Callable[[], None]:
        """A call begins in a thread that may take a file which is not there yet: another host may make and pin it
        meanwhile. Call what is returned when the call is over."""
        number = self.host.removal(ANY_FILE, ANY_BYTES, 0.0, lambda heard: None)
        return partial(self.host.removal_over, number)

    def check(self, removal: Removal) -> None:
        """Right before the system call, in any thread. EIO: this host has been cut off since the removal was
        allowed."""
        question = self._questions.get(removal)
        if question is not None and not self.host.may_begin(question.number):
            raise OSError(errno.EIO, "this host is cut off from the others")

    def close(self) -> None:
        """The mount ends: all that wait for other hosts are refused."""
        for question in [*self._questions.values()]:
            if question.answer is None:
                question.answer = RemovalRefused(question.number, errno.EBUSY, "shutdown")
                self._refuse(question, errno.EBUSY, "shutdown", None)
                question.answered.set()

    def leave(self, removal: Removal) -> None:
        """The breaker is refused, or has given up: then its removal stands at the other hosts while breaks go on for
        it, and for a cool-down (SPEC 3.7)."""
        question = self._questions.pop(removal, None)
        if question is None:
            return
        is_refused = removal.turn is Turn.REFUSED and removal.errno != errno.EAGAIN
        if is_refused or not question.is_waiting or question.answer is not None or self.left_behind >= LEFT_BEHIND:
            self.host.removal_over(question.number)
        else:
            self.left_behind += 1
            question.answered = OneShot()
            trio.lowlevel.spawn_system_task(self._stand, question)

    def over(self, removal: Removal) -> None:
        """The bytes are cut, or will not be."""
        question = self._questions.pop(removal, None)
        if question is not None:
            self.host.removal_over(question.number)

    async def _stand(self, question: Question) -> None:
        with logged("a removal whose breaker has gone"):
            try:
                await question.answered.wait()
                await trio.sleep(COOL_DOWN_S)
            finally:
                self.left_behind -= 1
                self.host.removal_over(question.number)

    def _heard(self, question: Question, heard: Heard) -> None:
        """Called by the host, now or later."""
        removal = question.removal
        if question.answer is not None:
            return  # the mount ends
        if isinstance(heard, Waits):
            question.is_waiting = True
            log.info("%s waits for leases at %s", removal.request.op, ", ".join(heard.hosts))
            if removal.request.nonblock:
                self._refuse(question, errno.EAGAIN, "nonblock", heard.hosts[0])
                question.answered.set()
            return
        question.answer = heard
        if isinstance(heard, RemovalRefused):
            code = removal.policy.errno_number if heard.errno == errno.EBUSY else heard.errno
            self.refused[heard.why] += 1
            self._refuse(question, code, heard.why, heard.host or None)
        question.answered.set()

    def _refuse(self, question: Question, code: int, why: str, host: str | None) -> None:
        if question.in_book:
            question.removal.pinned_at = host
            self._book.refuse(question.removal, code, why, trio.current_time())

    async def _joined(self) -> None:
        """EIO: this host does not belong to the cluster, and has not joined within the time that a pin has."""
        with trio.move_on_after(self._pin_timeout_s):
            await self._is_joined.wait()
            return
        if not self._has_complained:
            self._has_complained = True
            log.error("a pin or removal has failed: this host is cut off from the others (pinfs cluster status)")
        raise OSError(errno.EIO, "this host is cut off from the others")

    # What the cluster's host calls

    def joined(self) -> None:
        self._has_complained = False
        self._is_joined.set()

    def keep(self, state: dict[str, Any]) -> None:
        self.on_state(state)

    def told(self, told: Told) -> None:
        """A removal of another host. While it stands no further pin comes into its range."""
        removal = self._told.get(told.removal)
        if removal is None:
            inode = self._nodes.get(told.removal.file)
            if inode is None:
                return  # its pins are released
            path = self._files.path(inode)
            host = told.removal.member.host
            request = RemovalRequest(inode, told.start, told.end, told.operation, path=path, host=host)
            policy = self._policies.current.for_path(path)
            removal = self._book.begin(request, policy, trio.current_time())
            self._told[told.removal] = removal
            removal.wake = partial(self._answer, told.removal, removal)
        self._answer(told.removal, removal)

    def _answer(self, key: RemovalKey, removal: Removal) -> None:
        """A release answers by itself."""
        if removal.turn is Turn.REFUSED:
            self.host.deny(key, removal.why)
        elif removal.turn is Turn.READY and not removal.order:  # here the policy is `defer`, there it is not
            self.host.deny(key, "defer")

    def told_over(self, key: RemovalKey) -> None:
        """It is cut, or refused elsewhere. One whose breaker was killed stands until its breaks are over."""
        removal = self._told.pop(key, None)
        if removal is not None:
            removal.wake = _ignore
            self._book.withdraw(removal, trio.current_time())

    def fenced(self, numbers: tuple[int, ...], why: str) -> None:
        """This host is cut off: others may cut soon, and its holders hear that first."""
        self._fences += 1
        self._is_joined = trio.Event()
        lost = [pin for number in numbers if (pin := self._pins.get(number)) is not None]
        for pin in lost:
            self._lose(pin)
        for key in [*self._told]:
            self.told_over(key)

    def _lose(self, pin: Pin) -> None:
        with logged("the revocation of a pin"):
            self._guard.lose(pin, self._policy(pin.inode).cut_off == "kill")


def _ignore() -> None:
    """Nothing waits for it."""
