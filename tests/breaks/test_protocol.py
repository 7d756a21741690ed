"""The life of a break (SPEC 3): who is told what, how often, what answers, what an impatient breaker leaves behind."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from support import acts as common
from support.actor import Actor, eventually
from support.mounts import Mount

from breaks import acts
from breaks.acts import INSIDE, ORIGINAL, PAGE, SIZE
from breaks.conftest import PATIENT
from breaks.seeing import Channel, drained, pin_of, waiting

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"
RT = int(signal.SIGRTMIN) + 1


def setxattr_errno(actor: Actor, path: Path, value: str, name: str = "new") -> int | None:
    """What registering a pin gives. The kernel makes EOPNOTSUPP of the EAGAIN of setxattr (docs/interfaces.md)."""
    found = actor.errno(os.setxattr, str(path), f"user.pinfs.pin.{name}", value.encode())
    return errno.EAGAIN if found == errno.EOPNOTSUPP else found


# ---- being told


@pytest.mark.parametrize(
    ("name", "number"), [("IO", int(signal.SIGIO)), ("RTMIN+1", RT), ("USR1", int(signal.SIGUSR1))]
)
def test_one_signal_for_each_break_and_holder(patient: Mount, file: Path, name: str, number: int) -> None:
    holder = patient.actor()
    holder(common.catch, number)
    holder.pin(file, "p", f"{PAGE}:{PAGE},mode=lease,signal={name}")
    pin = pin_of(patient, file)["id"]
    for _ in range(2):  # two breaks of the same pin, each wanted by two breakers
        cuts = [patient.actor().start(acts.operate, "open_trunc", str(file.parent)) for _ in range(2)]
        waiting(patient, 2)
        caught = holder(common.next_signal, number)
        assert (caught.number, caught.code, caught.value) == (number, common.SI_QUEUE, pin)
        assert (caught.pid, caught.uid) == (patient.pid, 0)
        assert holder.errno(common.next_signal, number, 0) == errno.EAGAIN
        holder.release(file, "p")
        assert [cut.error() for cut in cuts] == [None, None]
        assert holder.errno(common.next_signal, number, 0) == errno.EAGAIN
        file.write_bytes(ORIGINAL)
        holder.pin(file, "p", f"{PAGE}:{PAGE},mode=lease,signal={name}")
        pin = pin_of(patient, file)["id"]


def test_a_lease_has_sigio_unless_it_says_otherwise_and_a_deny_pin_nothing(patient: Mount, file: Path) -> None:
    for mode, named in (("lease", "IO"), ("deny", "none")):
        patient.actor().pin(file, mode, f"0:1,mode={mode}")
        assert [pin["signal"] for pin in patient.pins() if pin["name"] == mode] == [named]


def test_each_holder_is_told_once_whatever_the_number_of_its_pins(patient: Mount, file: Path) -> None:
    """One notice for each break: each pin has its own."""
    holder, other = patient.actor(), patient.actor()
    channel, others = Channel(patient, holder), Channel(patient, other)
    for number in range(3):
        holder.pin(file, f"p{number}", f"{PAGE * number}:{PAGE},mode=lease,signal=none")
    other.pin(file, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), INSIDE)
    waiting(patient)
    events = channel.next()
    assert [event["name"] for event in events] == ["p1", "p2"]  # [INSIDE, end) leaves the first page alone
    assert [event["name"] for event in others.next()] == ["p"]
    assert channel.tell(*(f"release {event['pin']}" for event in events)) is None
    other.release(file, "p")
    assert cut.error() is None
    assert [(event["event"], event["name"]) for event in channel.next()] == [("released", "p1"), ("released", "p2")]


def test_a_break_says_what_is_wanted_and_until_when(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), INSIDE)
    (event,) = channel.next()
    pin = pin_of(patient, file)
    assert (pin["state"], 0 < pin["remaining_s"] <= 100) == ("breaking", True)
    told = {"event": "break", "seq": 1, "pin": pin["id"], "name": "p", "start": PAGE, "length": PAGE, "mode": "lease"}
    told |= {"op": "truncate", "from": INSIDE, "to": None, "inode": file.stat().st_ino, "v": 1}
    told |= {"path": str(file.relative_to(patient.path))}
    assert told.items() <= event.items()
    assert abs(event["deadline"] - pin["deadline"]) < 1
    holder.release(file, "p")
    assert cut.error() is None


def test_numbers_of_events_have_no_gap_and_a_later_channel_begins_with_the_breaks_under_way(
    patient: Mount, file: Path
) -> None:
    holder = patient.actor()
    first = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    holder.pin(file, "q", LEASE)
    cut = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    holder.release(file, "q")
    assert [(event["seq"], event["event"], event["name"]) for event in first.next()] == [
        (1, "break", "p"),
        (2, "break", "q"),
        (3, "released", "q"),
    ]
    second = Channel(patient, holder)
    assert [(event["seq"], event["event"], event["name"]) for event in second.next()] == [(1, "break", "p")]
    holder.release(file, "p")
    assert cut.error() is None
    for channel in (first, second):
        assert [(event["seq"], event["event"]) for event in channel.next()] == [(4, "released")]


def test_a_handle_is_urgent_while_its_pin_is_broken(patient: Mount, file: Path) -> None:
    """Also for who polls already, and again at the next break."""
    holder = patient.actor()
    fd = holder(os.open, str(file), os.O_RDWR)
    for _ in range(2):
        pin = holder(acts.pin_handle, fd)
        assert not holder(common.poll, fd, select.POLLPRI, 0)
        asked = holder.start(common.poll, fd, select.POLLPRI)
        cut = patient.actor().start(os.truncate, str(file), INSIDE)
        assert asked.result() & select.POLLPRI
        _, start, length, mode, state, remaining_ms, want_from, want_to, _ = holder(acts.query_handle, fd, pin)
        assert (start, length, mode, state) == (PAGE, PAGE, 1, 1)
        assert (want_from, want_to, 0 < remaining_ms <= 100_000) == (INSIDE, (1 << 64) - 1, True)
        holder(acts.unpin_handle, fd, pin)
        assert cut.error() is None
        assert not holder(common.poll, fd, select.POLLPRI, 0)
        os.truncate(file, SIZE)


def test_a_deny_pin_beside_leases_refuses_and_nobody_is_told(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "lease", LEASE)
    holder.pin(file, "deny", f"{2 * PAGE}:1")
    assert patient.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
    assert holder.errno(common.read_event_lines, channel.fd, 0) == errno.EAGAIN
    assert {pin["state"] for pin in patient.pins()} == {"held"}


# ---- answering


def _by_getxattr(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    assert holder(os.getxattr, fd, "user.pinfs.release.p") == b"released"


def _by_channel(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    assert channel.tell(f"release {pin}") is None


def _by_shrinking(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    assert channel.tell(f"resize {pin} {PAGE} {INSIDE - PAGE}") is None


def _by_moving(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    assert channel.tell(f"resize {pin} 0 {PAGE}") is None


def _by_death(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    holder.kill()


def _by_unpin(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    holder(acts.unpin_handle, fd, pin)


def _by_close(holder: Actor, channel: Channel, pin: int, file: str, fd: int) -> None:
    holder(os.close, fd)


Answer = Callable[[Actor, Channel, int, str, int], None]
OF_PROCESS: list[Answer] = [_by_getxattr, _by_channel, _by_death]
BY_MOVING: list[Answer] = [_by_shrinking, _by_moving]
OF_HANDLE: list[Answer] = [_by_unpin, _by_channel, _by_close, _by_death]
TAIL = ["truncate", "ftruncate", "punch_hole"]
WHOLE_FILE = ["open_trunc", "unlink_last", "rename_over"]  # where shrinking a pin leaves no byte that is not wanted
ANSWERED = [
    *product(TAIL + WHOLE_FILE, ["process"], OF_PROCESS),
    *product(TAIL, ["process"], BY_MOVING),
    *product(TAIL + WHOLE_FILE, ["handle"], OF_HANDLE),
]


@pytest.mark.parametrize(
    ("operation", "owner", "answer"),
    ANSWERED,
    ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"),
)
def test_every_answer_lets_every_breaker_go_on(
    patient: Mount, file: Path, operation: str, owner: str, answer: Answer
) -> None:
    """While the kernel holds the inode's lock for the breaker, or the directory's."""
    patient.policy(PATIENT + 'unlink = "break"')
    (file.parent / "new").write_bytes(acts.NEW * 2)
    holder = patient.actor()
    channel = Channel(patient, holder)
    fd: int = holder(os.open, str(file), os.O_RDWR)
    if owner == "process":
        holder.pin(file, "p", LEASE)
    else:
        holder(acts.pin_handle, fd)
    breaking = patient.actor().start(acts.operate, operation, str(file.parent))
    (event,) = channel.next()
    assert event["event"] == "break"
    answer(holder, channel, event["pin"], str(file), fd)
    assert breaking.error() is None
    assert acts.IS_DONE[operation](str(patient.source / file.parent.name))
    stands = answer in BY_MOVING
    eventually(lambda: [pin["state"] for pin in patient.pins()] == ["held"] * stands)


def test_shrinking_by_setxattr_answers_an_open_that_waits(patient: Mount, file: Path) -> None:
    """open(O_TRUNC) does not hold the inode's lock, so setxattr gets through; but what it leaves is wanted as well."""
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(acts.operate, "open_trunc", str(file.parent))
    waiting(patient)
    holder.pin(file, "p", f"{PAGE}:1,mode=lease,signal=none")
    assert pin_of(patient, file)["state"] == "breaking"
    assert not cut.done()
    holder(os.removexattr, str(file), "user.pinfs.pin.p")
    assert cut.error() is None


def test_a_lease_under_a_break_cannot_harden(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(acts.operate, "open_trunc", str(file.parent))
    waiting(patient)
    assert setxattr_errno(holder, file, f"{PAGE}:{PAGE},mode=deny", "p") == errno.EAGAIN
    assert pin_of(patient, file)["mode"] == "lease"
    holder.release(file, "p")
    assert cut.error() is None


def test_revocation_by_root_lets_the_breaker_go_on(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), 0)
    (event,) = channel.next()
    root = Channel(patient, patient.actor())
    assert root.tell(f"revoke {event['pin']}") is None
    assert cut.error() is None
    (event,) = channel.next()
    assert (event["seq"], event["event"], event["by"]) == (2, "revoked", "root")


@pytest.mark.parametrize(("on_timeout", "event"), [("deny", "withdrawn"), ("revoke", "revoked")])
def test_at_the_deadline_the_holder_is_told(patient: Mount, file: Path, on_timeout: str, event: str) -> None:
    patient.policy(f'break_timeout = 0.2\non_timeout = "{on_timeout}"')
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), 0)
    assert cut.error() == (errno.EBUSY if on_timeout == "deny" else None)
    told = channel.next()
    assert [(each["seq"], each["event"]) for each in told] == [(1, "break"), (2, event)]
    before = patient.metrics()
    assert before[f'pinfs_breaks_timed_out_total{{on_timeout="{on_timeout}"}}'] >= 1


# ---- more time


def test_more_time_up_to_a_cap(patient: Mount, file: Path) -> None:
    patient.policy("break_timeout = 100\nbreak_timeout_max = 150")
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    pin = pin_of(patient, file)["id"]
    assert channel.tell(f"extend {pin} 1") == errno.ENODATA
    cut = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    begun = pin_of(patient, file)["deadline"]
    assert channel.tell(f"extend {pin} 1") is None
    assert pin_of(patient, file)["deadline"] == pytest.approx(begun, abs=0.1)  # never less than it had
    assert channel.tell(f"extend {pin} 120") is None
    assert 119 < pin_of(patient, file)["remaining_s"] <= 120
    assert channel.tell(f"extend {pin} 1000") is None
    assert pin_of(patient, file)["deadline"] == pytest.approx(begun + 50, abs=0.1)
    holder.release(file, "p")
    assert cut.error() is None


def test_more_time_counts(patient: Mount, file: Path) -> None:
    """The deadline that was passes, the one that is now decides."""
    patient.policy("break_timeout = 2\nbreak_timeout_max = 100")
    holder, other = patient.actor(), patient.actor()
    channel = Channel(patient, holder)
    second = file.parent / "second"
    second.write_bytes(ORIGINAL)
    holder.pin(file, "p", LEASE)
    other.pin(second, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), 0)
    (event,) = channel.next()
    assert channel.tell(f"extend {event['pin']} 90") is None
    assert patient.actor().errno(os.truncate, str(second), 0) == errno.EBUSY  # began later, and its deadline is past
    assert not cut.done()
    holder.release(file, "p")
    assert cut.error() is None


# ---- breakers that do not wait


def test_a_nonblocking_breaker_comes_back_later(patient: Mount, file: Path) -> None:
    holder, breaker = patient.actor(), patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    fd = breaker(os.open, str(file), os.O_RDWR | os.O_NONBLOCK)
    for _ in range(3):
        assert breaker.errno(os.ftruncate, fd, 0) == errno.EAGAIN
    (event,) = channel.next()  # one break, however often it asks
    assert event["event"] == "break"
    assert pin_of(patient, file)["state"] == "breaking"
    holder.release(file, "p")
    assert breaker.errno(os.ftruncate, fd, 0) is None


def test_truncate_of_coreutils_waits(patient: Mount, file: Path) -> None:
    """It opens with O_NONBLOCK, only so that a FIFO does not hang it."""
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    tool = patient.actor().start(os.spawnlp, os.P_WAIT, "truncate", "truncate", "-s", "0", str(file))
    waiting(patient)
    holder.release(file, "p")
    assert tool.result() == 0
    assert file.stat().st_size == 0


@pytest.mark.parametrize("owner", ["process", "handle"])
@pytest.mark.parametrize("operation", ["truncate", "punch_hole", "open_trunc", "unlink_last", "rename_over"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_breaker_returns_at_once_and_the_break_goes_on(
    patient: Mount, file: Path, owner: str, operation: str, number: signal.Signals
) -> None:
    patient.policy(PATIENT + 'unlink = "break"')
    (file.parent / "new").write_bytes(acts.NEW * 2)
    holder, breaker = patient.actor(), patient.actor()
    channel = Channel(patient, holder)
    fd = holder(acts.pin, str(file), owner, "lease")
    cut = breaker.start(acts.operate, operation, str(file.parent))
    (event,) = channel.next()
    waiting(patient)
    if number == signal.SIGKILL:
        breaker.kill()  # waits for its end
    else:
        breaker.signal(number)
        with pytest.raises((KeyboardInterrupt, ProcessLookupError)):
            cut.result()
    eventually(lambda: patient.metrics()["pinfs_waiting"] == 0)
    assert acts.is_untouched(str(file.parent))
    assert pin_of(patient, file)["state"] == "breaking"
    assert channel.tell(f"release {event['pin']}") is None
    if fd >= 0:
        holder(os.close, fd)
    assert patient.actor().errno(acts.operate, operation, str(file.parent)) is None


def test_after_an_interrupted_breaker_the_break_ends_at_its_deadline(patient: Mount, file: Path) -> None:
    patient.policy("break_timeout = 1")
    holder, breaker = patient.actor(), patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", LEASE)
    breaker.start(os.truncate, str(file), 0)
    assert [event["event"] for event in channel.next()] == ["break"]
    breaker.kill()
    assert [event["event"] for event in channel.next()] == ["withdrawn"]
    assert pin_of(patient, file)["state"] == "held"


# ---- reservations


def test_no_new_pin_in_a_range_that_a_removal_waits_for(patient: Mount, file: Path) -> None:
    holder, other = patient.actor(), patient.actor()
    holder.pin(file, "p", LEASE)
    fd = other(os.open, str(file), os.O_RDWR)
    breaker = patient.actor()
    cut = breaker.start(acts.operate, "open_trunc", str(file.parent))
    waiting(patient)
    assert setxattr_errno(other, file, "0:1") == errno.EAGAIN
    assert other.errno(acts.pin_handle, fd, 0, 1) == errno.EAGAIN
    assert setxattr_errno(holder, file, f"{PAGE}:{2 * PAGE},mode=lease", "p") == errno.EAGAIN  # nor a growing one
    assert other.errno(acts.pin_handle, fd, SIZE, 1) == errno.ENXIO
    holder.release(file, "p")
    assert cut.error() is None


def test_only_the_wanted_range_is_reserved(patient: Mount, file: Path) -> None:
    holder, other = patient.actor(), patient.actor()
    holder.pin(file, "p", LEASE)
    fd = other(os.open, str(file), os.O_RDWR)
    cut = patient.actor().start(acts.operate, "punch_hole", str(file.parent))
    waiting(patient)
    assert other.errno(acts.pin_handle, fd, PAGE, INSIDE - PAGE) is None
    assert other.errno(acts.pin_handle, fd, INSIDE + acts.HOLE, 1) is None
    assert other.errno(acts.pin_handle, fd, INSIDE, 1) == errno.EAGAIN
    holder.release(file, "p")
    assert cut.error() is None
    assert other.errno(acts.pin_handle, fd, INSIDE, 1) is None


def test_a_holder_that_pins_again_at_once_cannot_starve_a_breaker_that_comes_back(patient: Mount, file: Path) -> None:
    """A breaker that got EAGAIN finds the range free: new pins have to stay out until it has had time to return."""
    holder, breaker = patient.actor(), patient.actor()
    fd = breaker(os.open, str(file), os.O_RDWR | os.O_NONBLOCK)
    holder.pin(file, "p", LEASE)
    assert breaker.errno(os.ftruncate, fd, INSIDE) == errno.EAGAIN
    holder.release(file, "p")
    assert setxattr_errno(holder, file, LEASE, "p") == errno.EAGAIN
    assert breaker.errno(os.ftruncate, fd, INSIDE) is None
    assert setxattr_errno(holder, file, "0:1", "p") is None  # it has had its turn


def test_the_cool_down_ends(patient: Mount, file: Path) -> None:
    holder, breaker = patient.actor(), patient.actor()
    fd = breaker(os.open, str(file), os.O_RDWR | os.O_NONBLOCK)
    holder.pin(file, "p", LEASE)
    assert breaker.errno(os.ftruncate, fd, 0) == errno.EAGAIN
    holder.release(file, "p")
    eventually(lambda: setxattr_errno(holder, file, LEASE, "p") is None)
    assert pin_of(patient, file)["state"] == "held"


# ---- several at once


def test_removals_of_one_inode_go_in_order(patient: Mount, file: Path) -> None:
    """open(O_TRUNC) takes no lock in the kernel, so that their order is pinfs's."""
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    breakers = [patient.actor() for _ in range(4)]
    with patient.trace() as trace:
        cuts = []
        for number, breaker in enumerate(breakers, 1):
            cuts.append(breaker.start(acts.operate, "open_trunc", str(file.parent)))
            waiting(patient, number)
        holder.release(file, "p")
        assert [cut.error() for cut in cuts] == [None] * 4
        order = [event["breaker"]["pid"] for event in drained(trace) if event["event"] == "proceeded"]
    assert order == [breaker.pid for breaker in breakers]


def test_removals_of_different_inodes_go_side_by_side(patient: Mount, file: Path) -> None:
    second = file.parent / "second"
    second.write_bytes(ORIGINAL)
    holder = patient.actor()
    for path in (file, second):
        holder.pin(path, "p", LEASE)
    cuts = [patient.actor().start(os.truncate, str(path), 0) for path in (file, second)]
    waiting(patient, 2)
    holder.release(second, "p")
    assert cuts[1].error() is None
    assert not cuts[0].done()
    holder.release(file, "p")
    assert cuts[0].error() is None


def test_disjoint_removals_of_one_inode_do_not_wait_for_each_other(patient: Mount, file: Path) -> None:
    """As far as the kernel lets them in: an open(O_TRUNC) waits for a pin that a punched hole does not touch."""
    holder, other = patient.actor(), patient.actor()
    holder.pin(file, "p", f"0:{PAGE},mode=lease,signal=none")
    fd = other(os.open, str(file), os.O_RDWR | os.O_NONBLOCK)
    holder.pin(file, "q", f"{2 * PAGE}:{PAGE},mode=lease,signal=none")
    assert other.errno(common.fallocate, fd, acts.PUNCH_HOLE | acts.KEEP_SIZE, 0, 1) == errno.EAGAIN
    assert other.errno(common.fallocate, fd, acts.PUNCH_HOLE | acts.KEEP_SIZE, PAGE, PAGE) is None
    holder.release(file, "q")
    assert other.errno(common.fallocate, fd, acts.PUNCH_HOLE | acts.KEEP_SIZE, 2 * PAGE, PAGE) is None


@pytest.mark.parametrize("operation", ["unlink_last", "rename_over"])
def test_arguments_are_looked_at_again_after_the_wait(patient: Mount, file: Path, operation: str) -> None:
    """A file that comes to the name meanwhile is judged by its own pins. (It can come only behind the mount's back:
    through the mount the kernel holds back whatever would change the directory.)"""
    patient.policy(PATIENT + 'unlink = "break"\nseal = "off"')  # a seal would refuse what happens behind the mount
    holder, other = patient.actor(), patient.actor()
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "g").write_bytes(ORIGINAL)
    (file.parent / "new").write_bytes(acts.NEW * 2)
    other.pin(elsewhere / "g", "p", f"{PAGE}:{PAGE}")
    holder.pin(file, "p", LEASE)
    channel = Channel(patient, holder)
    pin = pin_of(patient, file)["id"]
    breaking = patient.actor().start(acts.operate, operation, str(file.parent))
    waiting(patient)
    source = patient.source / file.parent.name
    (source / "elsewhere" / "g").rename(source / "f")
    assert channel.tell(f"release {pin}") is None
    assert breaking.error() == errno.EBUSY
    assert (source / "f").read_bytes() == ORIGINAL


# ---- the name that goes


def test_a_pinned_file_without_a_name_keeps_its_bytes_until_the_last_pin_goes(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    address = holder(common.map_file, str(file), SIZE)
    holder.pin(file, "p", f"{PAGE}:{PAGE}")
    file.unlink()
    (pin,) = patient.pins()
    assert (pin["path"], pin["state"]) == (None, "held")
    assert holder(common.peek, address, SIZE) == ORIGINAL
    assert len(_deleted(patient)) == 1
    holder(common.unmap, address, SIZE)
    assert len(_deleted(patient)) == 1
    assert Channel(patient, holder).tell(f"release {pin['id']}") is None
    eventually(lambda: not _deleted(patient))


def test_a_file_without_a_name_is_guarded_as_before(patient: Mount, file: Path) -> None:
    holder, breaker = patient.actor(), patient.actor()
    fd = breaker(os.open, str(file), os.O_RDWR)
    holder.pin(file, "p", f"{PAGE}:{PAGE}")
    file.unlink()
    assert breaker.errno(os.ftruncate, fd, 0) == errno.EBUSY
    assert breaker(os.pread, fd, SIZE, 0) == ORIGINAL
    assert Channel(patient, holder).tell(f"release {patient.pins()[0]['id']}") is None
    assert breaker.errno(os.ftruncate, fd, 0) is None


def _deleted(mount: Mount) -> list[str]:
    """Files without a name that the daemon keeps."""
    links = [os.readlink(link) for link in Path(f"/proc/{mount.pid}/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(mount.source)) and link.endswith(" (deleted)")]
