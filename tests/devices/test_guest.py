"""A guest whose RAM is a file of the mount (docs/devices.md). qemu emulates its processor: KVM is not needed."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from client import handed
from support import acts
from support.actor import Actor, eventually
from support.mounts import MNT_DETACH, REPO, Mount, umount

import pinfs
from devices import vhost
from devices.guest import PAGE, SIZE, Guest, at, firmware, goes_on, qemu

PUNCH_HOLE_KEEP_SIZE = 3
EXAMPLE = REPO / "examples/guest_ram.sh"
BALLOON = ("-device", "virtio-balloon-pci,addr=5")
USER = 1000

pytestmark = pytest.mark.usefixtures("root", "installed")


@pytest.fixture
def bios(tmp_path: Path) -> Path:
    return firmware(tmp_path)


@pytest.fixture
def ram(shared_dir: Path) -> Path:
    path = shared_dir / "vm.ram"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def below(shared_mount: Mount, ram: Path) -> Path:
    """The same file in the source."""
    return shared_mount.source / ram.relative_to(shared_mount.path)


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


def pinned(ram: Path, bios: Path, *options: str) -> Guest:
    """Started by the example."""
    return Guest(["sh", EXAMPLE, ram, f"{SIZE >> 20}M"], bios, *options)


def unpinned(ram: Path, bios: Path, *options: str) -> Guest:
    return Guest(qemu(ram), bios, *options)


def refuses_all(breaker: Actor, ram: Path) -> bool:
    """Whether each way to take bytes from the file fails with EBUSY."""
    fd = breaker(os.open, str(ram), os.O_RDWR)
    failures = {
        breaker.errno(os.truncate, str(ram), 0),
        breaker.errno(os.truncate, str(ram), SIZE - 1),
        breaker.errno(os.open, str(ram), os.O_WRONLY | os.O_TRUNC),
        breaker.errno(acts.fallocate, fd, PUNCH_HOLE_KEEP_SIZE, PAGE, 4096),
    }
    breaker(os.close, fd)
    return failures == {errno.EBUSY}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_ram_of_a_guest_stays_in_the_file_until_its_end(
    bios: Path, ram: Path, below: Path, breaker: Actor, end: signal.Signals
) -> None:
    """SIGTERM has qemu quit."""
    with pinned(ram, bios) as guest:
        assert refuses_all(breaker, ram)
        assert guest.obeys(b"r") == b"Z"
        for path in (ram, below):
            assert goes_on(path)
            assert at(path, PAGE, 4096) == b"Z" * 4096
        guest.process.send_signal(end)
        assert guest.process.wait(20) == (0 if end == signal.SIGTERM else -end)
    eventually(lambda: pinfs.pins(ram) == [])
    assert breaker.errno(os.truncate, str(ram), 0) is None


def test_a_guest_outlives_the_name_of_its_ram(bios: Path, ram: Path, breaker: Actor) -> None:
    """Policy `unlink = defer`: the name goes, and what is pinned stays. A descriptor from before shows it."""
    with ram.open("r+b") as opened, pinned(ram, bios) as guest:
        breaker(os.unlink, str(ram))
        nameless = Path(f"/proc/{os.getpid()}/fd/{opened.fileno()}")
        assert refuses_all(breaker, nameless)
        assert goes_on(nameless)
        assert guest.obeys(b"r") == b"Z"


def test_the_name_is_kept_as_well_where_the_policy_says_so(bios: Path, new_mount: Callable[..., Mount]) -> None:
    mount = new_mount("unlink=deny")
    ram, breaker = mount.path / "vm.ram", mount.actor()
    with pinned(ram, bios):  # the example makes the file
        (mount.path / "other").touch()
        assert breaker.errno(os.unlink, str(ram)) == errno.EBUSY
        assert breaker.errno(os.rename, str(mount.path / "other"), str(ram)) == errno.EBUSY
        assert goes_on(ram)


def test_a_lease_ends_a_guest_that_may_be_ended(bios: Path, ram: Path, breaker: Actor) -> None:
    with Guest(["pinfs", "pin", "--mode=lease", "--on-break=term", ram, "--", *qemu(ram)], bios) as guest:
        assert goes_on(ram)
        breaker(os.truncate, str(ram), 0)
        assert guest.process.wait(20) == 0
    assert ram.stat().st_size == 0


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_without_a_pin_a_truncate_ends_the_guest(bios: Path, new_mount: Callable[..., Mount], passthrough: str) -> None:
    mount = new_mount(f"passthrough={passthrough}")
    ram = mount.path / "vm.ram"
    ram.touch()
    os.truncate(ram, SIZE)
    with unpinned(ram, bios) as guest:
        assert goes_on(ram)
        mount.actor()(os.truncate, str(ram), 0)
        assert guest.process.wait(20) == -signal.SIGBUS


def test_without_a_pin_a_punch_takes_what_the_guest_has_written(bios: Path, ram: Path, breaker: Actor) -> None:
    with unpinned(ram, bios) as guest:
        assert guest.obeys(b"r") == b"Z"
        breaker(acts.fallocate, breaker(os.open, str(ram), os.O_RDWR), PUNCH_HOLE_KEEP_SIZE, PAGE, 4096)
        assert guest.obeys(b"r") == b"\0"
        assert goes_on(ram)


# --- what qemu itself takes away


def test_a_balloon_gives_nothing_back_under_a_pin(bios: Path, ram: Path, shared_mount: Mount) -> None:
    """qemu punches a hole for each page that the balloon gets, is refused, and says so; the guest goes on."""
    with pinned(ram, bios, *BALLOON) as guest:
        assert guest.obeys(b"b") == b"b"
        assert guest.obeys(b"r") == b"Z"
        assert at(ram, PAGE, 4096) == b"Z" * 4096
        assert "Failed to fallocate ram:20000" in guest.errors()
        assert f"({-errno.EBUSY})" in guest.errors()


def test_a_balloon_gives_back_what_the_policy_leaves_to_the_holder(bios: Path, new_mount: Callable[..., Mount]) -> None:
    """`own = allow`: the pin is qemu's own, and so is the hole."""
    mount = new_mount("own=allow")
    ram = mount.path / "vm.ram"
    with pinned(ram, bios, *BALLOON) as guest:
        assert guest.obeys(b"b") == b"b"
        assert guest.obeys(b"r") == b"\0"
        assert refuses_all(mount.actor(), ram)


def test_a_balloon_gives_back_without_a_pin(bios: Path, ram: Path) -> None:
    with unpinned(ram, bios, *BALLOON) as guest:
        assert guest.obeys(b"b") == b"b"
        assert guest.obeys(b"r") == b"\0"


@pytest.mark.parametrize("option", ["seal=auto", "seal=off", "passthrough=off"])
def test_discarded_data_stays_where_the_file_is_sealed(
    bios: Path, new_mount: Callable[..., Mount], option: str
) -> None:
    """At its end qemu takes the bytes by madvise(MADV_REMOVE), of which pinfs hears nothing with passthrough: only a
    seal stops that. Without passthrough it is a punch like any other."""
    mount = new_mount(option)
    kept = discards(["pinfs", "pin", mount.path / "vm.ram", "--"], bios, mount.path / "vm.ram") == b"Z"
    sealed = option == "seal=auto" and mount.status()["seal"]
    assert kept == (sealed or not mount.status()["passthrough"])


def test_discarded_data_goes_without_a_pin(bios: Path, ram: Path) -> None:
    assert discards([], bios, ram) == b"\0"


def discards(prefix: Sequence[str | Path], bios: Path, ram: Path) -> bytes:
    """What a guest leaves of its page, whose qemu discards its data when it quits."""
    ram.touch()
    os.truncate(ram, SIZE)
    with Guest([*prefix, *qemu(ram, ",prealloc=on,discard-data=on")], bios) as guest:
        assert at(ram, PAGE, 1) == b"Z"
        guest.process.terminate()
        assert guest.process.wait(20) == 0
    return at(ram, PAGE, 1)


# --- vhost-user


def test_a_backend_of_vhost_user_pins_the_ram_that_it_is_handed(
    bios: Path, ram: Path, below: Path, shared_mount: Mount, breaker: Actor, base: Path
) -> None:
    """Another user, who does not see the mount, pins the handle that qemu sends. When qemu is killed its own pin ends;
    that of the backend stands, and what it still writes is in the file."""
    ram.chmod(0o600)
    backend = shared_mount.actor(prefix=("unshare", "--mount"))
    backend(vhost.listen, str(base / "socket"))
    backend(handed.breaks)  # imports pinfs
    backend(umount, shared_mount.path, MNT_DETACH)
    backend(acts.become, USER, USER, ())
    device = ["-chardev", f"socket,id=backend,path={base / 'socket'}", "-netdev", "vhost-user,id=net,chardev=backend"]
    device += ["-device", "virtio-net-pci,netdev=net,addr=5,romfile="]
    memory = backend.start(vhost.take_memory)
    with pinned(ram, bios, *device) as guest:
        assert guest.obeys(b"v") == b"v"
        fd = memory.result()
        backend(handed.pin, fd, owner="handle")
        backend(vhost.write, b"device")
        assert guest.obeys(b"r") == b"d"
        assert sorted(info.owner for info in pinfs.pins(ram)) == ["handle", "process"]
        guest.process.kill()
        guest.process.wait()
    eventually(lambda: [info.owner for info in pinfs.pins(ram)] == ["handle"])
    assert refuses_all(breaker, ram)
    backend(vhost.write, b"late")
    assert at(below, PAGE, 6) == b"latece"
    backend(os.close, fd)
    eventually(lambda: pinfs.pins(ram) == [])
    assert breaker.errno(os.truncate, str(ram), 0) is None
