"""Who holds (SPEC 4): processes and open file descriptions, in all the ways in which they come and go."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from support import acts as common
from support.actor import eventually
from support.mounts import Mount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE, SIZE
from breaks.seeing import Channel, pin_of, waiting

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"
DENY = f"{PAGE}:{PAGE}"


def cut(mount: Mount, path: Path) -> int | None:
    """A truncate by somebody else."""
    return mount.actor().errno(os.truncate, str(path), 0)


# ---- processes


def test_a_pin_belongs_to_the_process_whatever_thread_asked(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    tid, _ = holder(common.in_thread, os.setxattr, str(file), "user.pinfs.pin.p", DENY.encode())
    assert tid != holder.pid
    assert pin_of(patient, file)["pid"] == holder.pid
    assert cut(patient, file) == errno.EBUSY  # although that thread has ended
    holder(common.in_thread, os.getxattr, str(file), "user.pinfs.release.p")
    assert cut(patient, file) is None


def test_a_process_lives_on_in_its_other_threads(patient: Mount, file: Path) -> None:
    """Its first thread, whose id is the process's, is gone; the pin stands and dies with the last thread."""
    nest = patient.actor()
    survivor = nest(acts.leave_to_threads, str(file))
    assert pin_of(patient, file)["pid"] == survivor
    breaker = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    nest(common.end_child, survivor)
    assert breaker.error() is None


def test_fork_copies_no_pin(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    holder.pin(file, "p", DENY)
    child = holder(common.fork_child)
    try:
        assert cut(patient, file) == errno.EBUSY
        holder.kill()
        assert cut(patient, file) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_is_another_process(patient: Mount, file: Path) -> None:
    """Its parent's pins are in its way, and are not its to release."""
    holder = patient.actor()
    holder.pin(file, "p", DENY)
    assert holder(acts.in_child, "truncate", str(file.parent)) == errno.EBUSY
    assert patient.actor().errno(os.removexattr, str(file), "user.pinfs.pin.p") == errno.ENODATA


def test_exec_keeps_the_pins_of_a_process(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    holder.pin(file, "p", DENY)
    holder.start(os.execvp, "sleep", ["sleep", "1000"])
    eventually(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
    assert cut(patient, file) == errno.EBUSY
    assert pin_of(patient, file)["comm"] == "sleep"
    holder.kill()
    assert cut(patient, file) is None


@pytest.mark.parametrize("inherited", [True, False])
def test_exec_keeps_the_pins_of_the_handles_that_it_keeps(patient: Mount, file: Path, inherited: bool) -> None:
    holder = patient.actor()
    fd = holder(acts.pin, str(file), "handle", "deny")
    holder(os.set_inheritable, fd, inherited)
    holder.start(os.execvp, "sleep", ["sleep", "1000"])
    eventually(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
    assert cut(patient, file) == (errno.EBUSY if inherited else None)


def test_a_holder_may_change_its_parent(patient: Mount, file: Path) -> None:
    holder = patient.actor()(acts.grandchild_that_pins, str(file))
    assert pin_of(patient, file)["pid"] == holder
    patient.dismiss()
    assert cut(patient, file) == errno.EBUSY
    os.kill(holder, signal.SIGKILL)
    eventually(lambda: cut(patient, file) is None)  # init, not we, hears of its end


def test_a_stopped_holder_answers_when_it_goes_on(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    holder.signal(signal.SIGSTOP)
    eventually(lambda: holder.state() == "T")
    breaker = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    released = holder.start(os.getxattr, str(file), "user.pinfs.release.p")
    assert not breaker.done()
    holder.signal(signal.SIGCONT)
    assert released.result() == b"released"
    assert breaker.error() is None


def test_who_has_seen_a_holder_end_is_not_refused_for_its_pins(patient: Mount, file: Path) -> None:
    nest = patient.actor()
    for _ in range(50):
        for owner in ("process", "handle"):
            nest(acts.hatch, "dead", [(str(file), owner, "deny")])  # has been waited for
            os.truncate(file, 0)
            os.truncate(file, SIZE)


def test_a_process_with_the_pid_of_a_dead_holder_holds_nothing(patient: Mount, file: Path) -> None:
    """Its number is not what a process is known by."""
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(100):
        first = patient.actor()
        first.pin(file, "p", DENY)
        pid = first.pid
        first.kill()
        last_pid.write_text(str(pid - 1))
        second = patient.actor()
        if second.pid == pid:
            break
        second.close()
    else:
        pytest.skip("somebody else always took the number")
    assert second.errno(os.getxattr, str(file), "user.pinfs.pin.p") == errno.ENODATA
    second.pin(file, "p", DENY)
    assert cut(patient, file) == errno.EBUSY


def test_nothing_stays_of_holders_that_are_gone(patient: Mount, file: Path) -> None:
    """Descriptors above all: a pidfd for each holder that ever was would end the mount one day."""
    nest = patient.actor()
    for _ in range(400):
        nest(acts.hatch, "dead", [(str(file), "process", "lease")])
    eventually(lambda: not patient.pins())
    assert patient.metrics()["pinfs_descriptors"] < 350  # it remembers the last 256 callers


# ---- handles


def test_fork_and_dup_share_a_handle_and_its_pins(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    fd = holder(acts.pin, str(file), "handle", "deny")
    holder(os.dup, fd)
    child = holder(common.fork_child)
    holder(os.close, fd)
    assert cut(patient, file) == errno.EBUSY
    holder.kill()
    assert cut(patient, file) == errno.EBUSY
    os.kill(child, signal.SIGKILL)
    eventually(lambda: cut(patient, file) is None)


def test_a_handle_that_was_passed_on_keeps_its_pins(patient: Mount, file: Path, base: Path) -> None:
    holder, receiver = patient.actor(), patient.actor()
    path = str(base / "socket")
    listener = receiver(acts.listen_for_fd, path)
    fd = holder(acts.pin, str(file), "handle", "deny")
    holder(acts.send_fd, path, fd)
    holder.kill()
    assert cut(patient, file) == errno.EBUSY
    received = receiver(acts.receive_fd, listener)
    assert receiver(acts.query_handle, received)[1:3] == (PAGE, PAGE)
    receiver(os.close, received)
    assert cut(patient, file) is None


def test_each_open_is_a_handle_of_its_own(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    first, second = (holder(os.open, str(file), os.O_RDWR) for _ in range(2))
    pin = holder(acts.pin_handle, first, PAGE, PAGE, "deny")
    assert holder.errno(acts.unpin_handle, second, pin) == errno.ENOENT
    assert holder.errno(acts.query_handle, second) == errno.ENOENT
    holder(os.close, second)
    assert cut(patient, file) == errno.EBUSY


def test_one_handle_holds_many_pins(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    fd = holder(os.open, str(file), os.O_RDWR)
    pins = [holder(acts.pin_handle, fd, page * PAGE, PAGE, "deny") for page in range(3)]
    seen, following = [], 0
    while True:
        answer = holder(acts.query_handle, fd, following)
        seen.append(answer[0])
        following = answer[8]
        if not following:
            break
    assert seen == pins
    holder(os.close, fd)
    assert not patient.pins()


def test_a_mapping_does_not_keep_the_handle(patient: Mount, file: Path) -> None:
    """As the header says: keep the descriptor as long as the mapping."""
    holder = patient.actor()
    fd = holder(acts.pin, str(file), "handle", "deny")
    address = holder(common.map_fd, fd, SIZE)
    holder(os.close, fd)
    assert not patient.pins()
    assert holder(common.peek, address, SIZE) == ORIGINAL


def test_who_shares_the_handle_is_an_owner_of_its_pins(patient: Mount, file: Path) -> None:
    """A truncate through the very handle that holds the pin: the breaker's own, whatever process it is."""
    holder = patient.actor()
    fd = holder(acts.pin, str(file), "handle", "lease")
    assert holder(acts.cut_in_child, fd) == errno.EBUSY
    patient.policy('break_timeout = 100\nown = "allow"')
    assert holder(acts.cut_in_child, fd) is None
    assert file.stat().st_size == acts.INSIDE


def test_own_pins_beside_those_of_others_are_not_enough(patient: Mount, file: Path) -> None:
    """`own = allow` lets a process cut only where its pins are the only ones in conflict."""
    patient.policy('break_timeout = 100\nown = "allow"')
    holder, other = patient.actor(), patient.actor()
    holder.pin(file, "p", LEASE)
    other.pin(file, "p", LEASE)
    assert holder.errno(os.truncate, str(file), 0) == errno.EBUSY
    assert {pin["state"] for pin in patient.pins()} == {"held"}  # and nobody is told
    other.release(file, "p")
    assert holder.errno(os.truncate, str(file), 0) is None


# ---- pins for others


def test_a_pin_for_another_process(patient: Mount, file: Path) -> None:
    """What a shell needs: the pin belongs to `pid=`, and who registered it can release it by name."""
    shell, holder = patient.actor(), patient.actor()
    shell.pin(file, "p", f"{DENY},pid={holder.pid}")
    assert pin_of(patient, file)["pid"] == holder.pid
    another_shell = patient.actor()
    another_shell.release(file, "p")
    assert not patient.pins()
    shell.pin(file, "p", f"{DENY},pid={holder.pid}")
    holder.kill()
    assert cut(patient, file) is None


def test_a_name_that_stands_for_two_processes_stands_for_none(patient: Mount, file: Path) -> None:
    shell, holders = patient.actor(), [patient.actor() for _ in range(2)]
    for holder in holders:
        shell.pin(file, "p", f"{DENY},pid={holder.pid}")
    assert shell.errno(os.getxattr, str(file), "user.pinfs.release.p") == errno.ENODATA
    holders[0].release(file, "p")
    shell.release(file, "p")
    assert not patient.pins()


def test_no_such_process(patient: Mount, file: Path) -> None:
    gone = patient.actor()
    gone.kill()
    value = f"{DENY},pid={gone.pid}".encode()
    assert patient.actor().errno(os.setxattr, str(file), "user.pinfs.pin.p", value) == errno.ESRCH


# ---- namespaces


def test_a_caller_in_a_pid_namespace_below_is_known_by_its_outer_number(patient: Mount, file: Path) -> None:
    holder = patient.actor(prefix=("unshare", "--pid", "--fork", "--kill-child"))
    assert holder.pid == 1  # as it sees itself
    holder.pin(file, "p", LEASE)
    assert pin_of(patient, file)["pid"] > 1
    breaker = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    holder.release(file, "p")
    assert breaker.error() is None


def test_root_of_a_user_namespace_is_nobody_special(patient: Mount, file: Path) -> None:
    file.chmod(0o666)
    victim = patient.actor(uid=1001)
    victim.pin(file, "p", DENY)
    pin = pin_of(patient, file)["id"]
    pretender = patient.actor(prefix=("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "-Ur"))
    assert pretender(os.getuid) == 0
    assert Channel(patient, pretender).tell(f"revoke {pin}") == errno.EPERM
    assert Channel(patient, pretender).tell(f"release {pin}") == errno.EPERM
    assert pretender.errno(os.open, str(patient.control("trace")), os.O_RDONLY) == errno.EACCES
    value = f"{DENY},pid={victim.pid}".encode()
    assert pretender.errno(os.setxattr, str(file), "user.pinfs.pin.q", value) == errno.EPERM
    pretender.pin(file, "p", DENY)
    assert sorted(pin["uid"] for pin in patient.pins()) == [1000, 1001]
