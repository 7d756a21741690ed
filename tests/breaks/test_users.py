"""Who may pin, release, see and revoke (SPEC 4), and how much: several users, each as a process of its own uid."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support.actor import Actor
from support.mounts import Mount

from breaks import acts
from breaks.acts import PAGE
from breaks.conftest import PATIENT
from breaks.seeing import Channel, pin_of

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
DENY = f"{PAGE}:{PAGE}"
ALICE, BOB = 1000, 1001
SECRETS = {"name", "pid", "uid", "comm", "signal", "note"}


def may_pin(actor: Actor, path: Path, name: str = "p", value: str = DENY) -> int | None:
    return actor.errno(os.setxattr, str(path), f"user.pinfs.pin.{name}", value.encode())


# ---- pinning


def test_who_may_write_may_pin(patient: Mount, file: Path) -> None:
    os.chown(file, ALICE, ALICE)
    file.chmod(0o640)
    assert may_pin(patient.actor(uid=ALICE), file) is None
    assert may_pin(patient.actor(uid=BOB, groups=(ALICE,)), file) == errno.EACCES  # may read
    assert may_pin(patient.actor(uid=BOB), file) == errno.EACCES
    assert may_pin(patient.actor(), file) is None
    file.chmod(0o660)
    assert may_pin(patient.actor(uid=BOB, groups=(ALICE,)), file) is None


def test_who_has_the_file_open_for_writing_may_pin(patient: Mount, file: Path, base: Path) -> None:
    """Whatever the file's mode has become, and wherever the descriptor came from."""
    base.chmod(0o777)
    opener, receiver = patient.actor(), patient.actor(uid=BOB)
    for flags, wanted in ((os.O_RDWR, None), (os.O_WRONLY, None), (os.O_RDONLY, errno.EACCES)):
        path = str(base / f"socket{flags}")
        listener = receiver(acts.listen_for_fd, path)
        opener(acts.send_fd, path, opener(os.open, str(file), flags))
        assert receiver.errno(acts.pin_handle, receiver(acts.receive_fd, listener)) == wanted
    assert {pin["uid"] for pin in patient.pins()} == {BOB}


def test_pins_for_processes_of_others(patient: Mount, file: Path) -> None:
    """`pid=`: a process of the same uid, or any for root; one that has been set-uid is not simply of its uid."""
    file.chmod(0o666)
    alice, bob, root = patient.actor(uid=ALICE), patient.actor(uid=BOB), patient.actor()
    alices = patient.actor(uid=ALICE)
    assert may_pin(alice, file, "a", f"{DENY},pid={alices.pid}") is None
    assert may_pin(alice, file, "b", f"{DENY},pid={bob.pid}") == errno.EPERM
    assert may_pin(alice, file, "c", f"{DENY},pid={root.pid}") == errno.EPERM
    assert may_pin(root, file, "d", f"{DENY},pid={bob.pid}") is None
    root(os.setresuid, ALICE, ALICE, 0)
    assert may_pin(alice, file, "e", f"{DENY},pid={root.pid}") == errno.EPERM


# ---- releasing and revoking


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_who_may_release_and_revoke(patient: Mount, file: Path, owner: str) -> None:
    """The owner's uid from any of its processes, and root; only root revokes."""
    file.chmod(0o666)
    holder = patient.actor(uid=ALICE)
    pins = []
    for _ in range(2):
        holder(acts.pin, str(file), owner, "deny")
        pins.append(max(pin["id"] for pin in patient.pins()))
    alice, bob, root = (Channel(patient, patient.actor(uid=uid)) for uid in (ALICE, BOB, 0))
    for command in ("release", "revoke", "extend", "resize"):
        rest = {"extend": " 1", "resize": f" {PAGE} 1"}.get(command, "")
        assert bob.tell(f"{command} {pins[-1]}{rest}") == errno.EPERM
    assert alice.tell(f"revoke {pins[-1]}") == errno.EPERM
    assert alice.tell(f"release {pins[-1]}") is None
    assert alice.tell(f"release {pins[-1]}") == errno.ENOENT
    if owner == "handle":
        assert root.tell(f"release {pins[0]}") is None
    else:  # the same name replaced the first
        assert pins[0] == pins[1]
    holder(acts.pin, str(file), owner, "deny")
    assert root.tell(f"revoke {patient.pins()[0]['id']}") is None
    assert not patient.pins()


def test_resize_changes_the_range_and_nothing_else(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    channel = Channel(patient, holder)
    holder.pin(file, "p", f"{DENY},mode=lease,note=kept")
    before = pin_of(patient, file)
    for place in ("0 1,mode=deny", "0:1 1", "0", "0 1 2", f"0 {PAGE * 4}", "x y"):
        wanted = errno.ENXIO if place.endswith(str(PAGE * 4)) else errno.EINVAL
        assert channel.tell(f"resize {before['id']} {place}") == wanted, place
    assert pin_of(patient, file) == before
    assert channel.tell(f"resize {before['id']} 0 1") is None
    assert pin_of(patient, file) == {**before, "start": 0, "length": 1}
    holder(acts.pin_handle, holder(os.open, str(file), os.O_RDWR))
    handles = max(pin["id"] for pin in patient.pins())
    assert channel.tell(f"resize {handles} 0 1") == errno.EINVAL


def test_names_belong_to_their_process(patient: Mount, file: Path) -> None:
    """Two processes may use the same one, and none can touch the other's by it, not even root."""
    file.chmod(0o666)
    first, second, root = patient.actor(uid=ALICE), patient.actor(uid=ALICE), patient.actor()
    assert may_pin(first, file) is None
    for other in (second, root):
        for call in (os.getxattr, os.removexattr):
            assert other.errno(call, str(file), "user.pinfs.pin.p") == errno.ENODATA
        assert other.errno(os.getxattr, str(file), "user.pinfs.release.p") == errno.ENODATA
    assert may_pin(second, file) is None
    second.release(file, "p")
    assert pin_of(patient, file)["pid"] == first.pid


# ---- seeing


def seen_by(mount: Mount, file: Path, uid: int) -> list[dict[str, object]]:
    """The pins of a file as a user sees them: in both listings the same."""
    actor = mount.actor(uid=uid)
    listed = json.loads(actor(os.getxattr, str(file), "user.pinfs.pins"))["pins"]
    text = actor(Path.read_text, mount.control("pins"))
    pins = [json.loads(line) for line in text.splitlines()]
    assert [pin.keys() for pin in listed] == [pin.keys() for pin in pins]
    return pins


def test_others_see_that_a_range_is_pinned_but_not_by_whom(patient: Mount, file: Path) -> None:
    file.chmod(0o666)
    holder = patient.actor(uid=ALICE)
    holder.pin(file, "p", f"{DENY},note=secret")
    for uid in (ALICE, 0):
        (pin,) = seen_by(patient, file, uid)
        assert pin.keys() >= SECRETS
        assert (pin["note"], pin["uid"], pin["pid"]) == ("secret", ALICE, holder.pid)
    (pin,) = seen_by(patient, file, BOB)
    assert not SECRETS & pin.keys()
    assert (pin["start"], pin["length"], pin["mode"], pin["state"]) == (PAGE, PAGE, "deny", "held")


def test_only_root_sees_all_and_changes_the_policy(patient: Mount) -> None:
    for uid, wanted in ((ALICE, errno.EACCES), (0, None)):
        actor = patient.actor(uid=uid)
        assert actor.errno(os.open, str(patient.control("trace")), os.O_RDONLY) == wanted
        assert actor.errno(os.open, str(patient.control("policy")), os.O_WRONLY) == wanted
        for name in ("policy", "metrics", "status", "pins"):
            assert actor(Path.read_bytes, patient.control(name)) is not None


def test_an_event_channel_tells_of_its_own_process_only(patient: Mount, file: Path) -> None:
    file.chmod(0o666)
    holder = patient.actor(uid=ALICE)
    others = [Channel(patient, patient.actor(uid=uid)) for uid in (ALICE, BOB, 0)]
    mine = Channel(patient, holder)
    holder.pin(file, "p", f"{DENY},mode=lease,signal=none")
    cut = patient.actor().start(os.truncate, str(file), 0)
    assert [event["event"] for event in mine.next()] == ["break"]
    holder.release(file, "p")
    assert cut.error() is None
    for other in others:
        with pytest.raises(BlockingIOError):
            other.next(0)


def test_a_channel_acts_for_who_opened_it(patient: Mount, file: Path, base: Path) -> None:
    """As any descriptor: one that root passes on can revoke."""
    base.chmod(0o777)
    root, bob = patient.actor(), patient.actor(uid=BOB)
    file.chmod(0o666)
    path = str(base / "socket")
    listener = bob(acts.listen_for_fd, path)
    root(acts.send_fd, path, root(os.open, str(patient.control("events")), os.O_RDWR))
    holder = patient.actor(uid=ALICE)
    holder.pin(file, "p", DENY)
    channel = bob(acts.receive_fd, listener)
    assert bob.errno(os.write, channel, f"revoke {patient.pins()[0]['id']}\n".encode()) is None


# ---- how much


def limit_reached(mount: Mount, limit: str) -> float:
    return mount.metrics().get(f'pinfs_limit_reached_total{{limit="{limit}"}}', 0)


@pytest.mark.parametrize("owner", ["process", "handle"])
@pytest.mark.parametrize(
    ("limit", "value", "held", "for_root"),
    [
        ("max_pins", 3, 3, True),
        ("max_pins_per_user", 2, 2, False),
        ("max_pinned_bytes_per_user", 2 * PAGE, 2, False),
    ],
)
def test_each_limit_is_edquot_and_is_counted(
    patient: Mount, file: Path, owner: str, limit: str, value: int, held: int, for_root: bool
) -> None:
    """Below the limit all goes well, above it nothing; what is given back can be had again. Root is a user like any
    other for the limit of all, and has none of its own."""
    file.chmod(0o666)
    patient.policy(f"{PATIENT}{limit} = {value}")
    alice = patient.actor(uid=ALICE)
    fd = alice(os.open, str(file), os.O_RDWR)

    def one_more(actor: Actor, number: int, handle: int = fd) -> int | None:
        if owner == "handle":
            return actor.errno(acts.pin_handle, handle, 0, PAGE, "deny")
        return may_pin(actor, file, f"p{number}", f"0:{PAGE}")

    before = limit_reached(patient, limit)
    assert [one_more(alice, number) for number in range(held + 1)] == [None] * held + [errno.EDQUOT]
    assert limit_reached(patient, limit) == before + 1
    root = patient.actor()
    assert one_more(root, 0, root(os.open, str(file), os.O_RDWR)) == (errno.EDQUOT if for_root else None)
    pin = next(pin["id"] for pin in patient.pins() if pin["uid"] == ALICE)
    assert Channel(patient, alice).tell(f"release {pin}") is None
    assert one_more(alice, 0) is None
    assert one_more(alice, held) == errno.EDQUOT


def test_at_the_limit_a_pin_can_still_shrink_and_move(patient: Mount, file: Path) -> None:
    file.chmod(0o666)
    alice = patient.actor(uid=ALICE)
    alice.pin(file, "p", f"0:{2 * PAGE}")
    patient.policy(f"{PATIENT}max_pins = 1\nmax_pins_per_user = 1\nmax_pinned_bytes_per_user = 1")
    alice.pin(file, "p", f"{PAGE}:{2 * PAGE}")
    assert may_pin(alice, file, "p", f"0:{2 * PAGE + 1}") == errno.EDQUOT
    assert pin_of(patient, file)["start"] == PAGE  # a pin that cannot be replaced stays as it was
    alice.pin(file, "p", "0:1")


def test_one_user_cannot_take_all(mount: Mount) -> None:
    """The defaults leave half of the pins to the others."""
    policy = mount.policy()
    assert policy["max_pins_per_user"] * 2 <= policy["max_pins"]
