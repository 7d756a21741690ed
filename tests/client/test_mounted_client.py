"""The client on a real mount: this process holds, actors break."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from support.actor import Actor, eventually
from support.mounts import Mount, umount

import pinfs
import pinfs.client.trio
from pinfs.client import callbacks
from pinfs.client.mounts import control_file

SIZE = 1 << 20
LIMIT_S = 20  # when a test counts as hung; no test waits for it


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


@pytest.fixture(autouse=True)
def _no_channel_stays_open() -> Iterator[None]:
    yield
    eventually(lambda: not any(t.name.startswith("pinfs-") for t in threading.enumerate()), LIMIT_S)
    assert not callbacks._by_device


class Callback:
    """A callback that a test holds up until it has seen enough."""

    def __init__(self) -> None:
        self.events: list[pinfs.Event] = []
        self.called, self.go_on = threading.Event(), threading.Event()

    def __call__(self, event: pinfs.Event) -> None:
        self.events.append(event)
        self.called.set()
        assert self.go_on.wait(LIMIT_S)


@pytest.fixture
def callback() -> Iterator[Callback]:
    callback = Callback()
    yield callback
    callback.go_on.set()


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_a_deny_pin_refuses_until_it_is_released(file: Path, breaker: Actor, owner) -> None:
    with pinfs.pin(file, 4096, 4096, owner=owner) as pin:
        assert pin.state() == "held"
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
        assert breaker.errno(os.truncate, str(file), 8192) is None
    assert pin.state() == "gone"
    assert breaker.errno(os.truncate, str(file), 0) is None
    pin.release()


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_a_lease_is_broken_by_way_of_the_callback(file: Path, breaker: Actor, callback: Callback, owner) -> None:
    with pinfs.pin(file, 0, 8192, mode="lease", on_break=callback, owner=owner) as pin:
        cut = breaker.start(os.truncate, str(file), 100)
        assert callback.called.wait(LIMIT_S)
        (event,) = callback.events
        assert (event.event, event.pin, event.start, event.length) == ("break", pin.id, 0, 8192)
        assert (event.from_, event.to, event.mode) == (100, None, "lease")
        assert event.remaining_s is not None and event.remaining_s > 0
        assert pin.state() == "breaking"
        assert not cut.done()
        callback.go_on.set()
        cut.result()
        assert pin.state() == "gone"
    assert file.stat().st_size == 100


@pytest.mark.parametrize("owner", ["process", "handle"])
@pytest.mark.mount("conflict=break")
def test_a_deny_pin_is_asked_where_the_policy_says_so(mount: Mount, owner) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x" * SIZE)
    events: list[pinfs.Event] = []
    with pinfs.pin(file, on_break=events.append, owner=owner) as pin:
        assert mount.actor().errno(os.truncate, str(file), 0) is None
        assert [(event.event, event.pin, event.mode) for event in events] == [("break", pin.id, "deny")]


def test_the_event_of_a_process_pin_says_it_all(file: Path, shared_mount: Mount, breaker, callback) -> None:
    with pinfs.pin(file, mode="lease", on_break=callback, name="weights"):
        cut = breaker.start(os.truncate, str(file), 0)
        assert callback.called.wait(LIMIT_S)
        callback.go_on.set()
        cut.result()
    (event,) = callback.events
    assert (event.name, event.op, event.inode) == ("weights", "truncate", file.stat().st_ino)
    assert event.path == str(file.relative_to(shared_mount.path))


def test_a_slow_holder_delays_no_other(
    shared_dir: Path, breaker: Actor, callback: Callback, shared_mount: Mount
) -> None:
    slow, quick = shared_dir / "slow", shared_dir / "quick"
    slow.write_bytes(b"x")
    quick.write_bytes(b"x")
    other = shared_mount.actor()
    with pinfs.pin(slow, mode="lease", on_break=callback), pinfs.pin(quick, mode="lease", on_break=lambda event: None):
        cut = breaker.start(os.truncate, str(slow), 0)
        assert callback.called.wait(LIMIT_S)
        assert other.errno(os.truncate, str(quick), 0) is None
        assert not cut.done()
        callback.go_on.set()
        cut.result()


@pytest.mark.parametrize("owner", ["process", "handle"])
@pytest.mark.mount("break_timeout=1", "retry_after=0")
def test_a_callback_that_fails_keeps_the_pin_and_is_called_again(mount: Mount, owner, caplog) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x" * SIZE)
    breaker, times = mount.actor(), []

    def fail_once(event: pinfs.Event) -> None:
        times.append(event)
        if len(times) == 1:
            raise RuntimeError("the device does not stop")

    with pinfs.pin(file, mode="lease", on_break=fail_once, owner=owner) as pin:
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
        assert pin.state() == "held"
        assert breaker.errno(os.truncate, str(file), 0) is None
        assert pin.state() == "gone"
    assert "the device does not stop" in caplog.text


def test_release_while_a_truncate_waits(file: Path, breaker: Actor) -> None:
    with pinfs.EventChannel(file) as channel, pinfs.pin(file, mode="lease", signal="none") as pin:
        cut = breaker.start(os.truncate, str(file), 0)
        assert channel.read(LIMIT_S)[0].event == "break"
        pin.release()
        cut.result()


def test_the_channel_releases_and_extends(file: Path, breaker: Actor) -> None:
    with pinfs.EventChannel(file) as channel, pinfs.pin(file, mode="lease", signal="none") as pin:
        with pytest.raises(OSError, match="not being broken") as failure:
            channel.extend(pin.id, 10)
        assert failure.value.errno == errno.ENODATA
        cut = breaker.start(os.truncate, str(file), 0)
        events = iter(channel)
        (event,) = [next(events)]
        pin.extend(3600)
        deadline = pin.info().deadline
        assert deadline is not None and event.deadline is not None and deadline > event.deadline
        channel.release(pin.id)
        cut.result()
        released = next(events)
        assert (released.event, released.pin, released.by) == ("released", pin.id, "holder")
        assert released.seq == event.seq + 1


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_a_callback_may_ask_for_time(file: Path, breaker: Actor, owner) -> None:
    deadlines: list[float | None] = []

    def slowly(event: pinfs.Event) -> None:
        pin.extend(3600)
        deadlines.extend([event.deadline, pin.info().deadline])

    with pinfs.pin(file, mode="lease", on_break=slowly, owner=owner) as pin:
        assert breaker.errno(os.truncate, str(file), 0) is None
    told, extended = deadlines
    assert told is not None and extended is not None and extended > told + 1


def test_a_channel_opened_late_begins_with_the_break(file: Path, breaker: Actor, shared_mount: Mount) -> None:
    with shared_mount.trace() as trace, pinfs.pin(file, mode="lease", signal="none") as pin:
        cut = breaker.start(os.truncate, str(file), 0)
        trace.until("break", pin=pin.id)
        event = next(pinfs.events(file))
        assert (event.event, event.pin) == ("break", pin.id)
        pin.release()
        cut.result()


def test_what_a_pin_says_of_itself(file: Path, shared_mount: Mount) -> None:
    with pinfs.pin(file, 10, 20, mode="lease", signal="USR1", dirty=True, note="for tests", name="n") as pin:
        info = pin.info()
        assert (info.id, info.start, info.length, info.mode, info.state) == (pin.id, 10, 20, "lease", "held")
        assert (info.owner, info.signal, info.dirty, info.note, info.name) == (
            "process",
            "USR1",
            True,
            "for tests",
            "n",
        )
        assert (info.pid, info.uid, info.deadline) == (os.getpid(), os.getuid(), None)
        assert info.path == str(file.relative_to(shared_mount.path))
        assert pinfs.pins(file) == [info]
        assert info in pinfs.all_pins(shared_mount.path)


@pytest.fixture
def sigio() -> Iterator[Callable[[Any], object]]:
    """Gives SIGIO a disposition."""
    before = signal.getsignal(signal.SIGIO)
    yield lambda handler: signal.signal(signal.SIGIO, handler)
    signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_sigio_is_for_programs_that_mind_it(file: Path, sigio, owner) -> None:
    for handler, told in ((signal.SIG_DFL, "none"), (signal.SIG_IGN, "IO"), (lambda *_: None, "IO")):
        sigio(handler)
        for how, expected in (
            ({"mode": "lease"}, told),
            ({"mode": "lease", "signal": "IO"}, "IO"),
            ({"mode": "lease", "signal": "none"}, "none"),
            ({"mode": "lease", "on_break": print}, "none"),
            ({"mode": "deny"}, "none"),
        ):
            with pinfs.pin(file, owner=owner, **how):
                assert [info.signal for info in pinfs.pins(file)] == [expected]
        with pinfs.pin(file, owner=owner) as pin:
            pin.change(mode="lease")
            assert [info.signal for info in pinfs.pins(file)] == [told]


def test_another_process_gets_no_signal_unasked(file: Path, shared_mount: Mount, sigio) -> None:
    sigio(signal.SIG_IGN)
    holder = shared_mount.actor()
    with pinfs.pin(file, mode="lease", pid=holder.pid) as pin:
        assert pin.info().signal == "none"


@pytest.mark.mount("break_timeout=1")
def test_a_lease_without_callback_and_handler_outlives_a_break(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x")
    program = "import sys, pinfs\npin = pinfs.pin(sys.argv[1], mode='lease')\nprint('up', flush=True)\nsys.stdin.read()"
    words = [sys.executable, "-c", program, str(file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "up\n"
        assert mount.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
        holder.communicate(timeout=LIMIT_S)
    assert holder.returncode == 0


def test_more_pins_than_an_attribute_holds(file: Path) -> None:
    pins = [pinfs.pin(file, n, 1, note="x" * 200) for n in range(400)]
    assert sorted(info.start for info in pinfs.pins(file)) == list(range(400))
    for pin in pins:
        pin.release()
    assert pinfs.pins(file) == []


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_resize_and_change(file: Path, breaker: Actor, owner) -> None:
    with pinfs.pin(file, 0, 8192, mode="lease", signal="none", owner=owner) as pin:
        pin.change(mode="deny")
        pin.resize(0, 4096)
        info = pin.info()
        assert (info.id, info.start, info.length, info.mode) == (pin.id, 0, 4096, "deny")
        assert (pin.start, pin.length, pin.mode) == (0, 4096, "deny")
        assert len(pinfs.pins(file)) == 1
        assert breaker.errno(os.truncate, str(file), 4096) is None
        assert breaker.errno(os.truncate, str(file), 4095) == errno.EBUSY
        with pytest.raises(OSError, match="inside the file"):
            pin.resize(SIZE, 1)
        assert pin.info().length == 4096
    with pytest.raises(OSError, match="released"):
        pin.resize(0, 1)


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_a_break_is_answered_by_a_smaller_pin(file: Path, breaker: Actor, callback: Callback, owner) -> None:
    def shrink(event: pinfs.Event) -> None:
        pin.resize(0, 5)
        callback(event)

    with pinfs.pin(file, mode="lease", on_break=shrink, owner=owner) as pin:
        assert breaker.errno(os.truncate, str(file), 5) is None
        assert callback.called.wait(LIMIT_S)
        info = pin.info()
        assert (info.start, info.length, info.state) == (0, 5, "held")
        assert (pin.start, pin.length) == (0, 5)
        callback.go_on.set()


def test_a_resize_where_no_channel_can_be_had(file: Path, monkeypatch) -> None:
    """As in a container that sees a part of the mount only."""
    monkeypatch.setattr(pinfs.client.processpin, "Commands", lambda inode: (_ for _ in ()).throw(FileNotFoundError()))
    with pinfs.pin(file) as pin:
        pin.resize(10, 20)
        assert (pin.info().start, pin.info().length) == (10, 20)


@pytest.mark.mount("break_timeout=1", "on_timeout=revoke")
def test_a_change_that_comes_too_late_registers_nothing(mount: Mount) -> None:
    """The kernel holds setxattr back until the truncate is through, and by then the pin is revoked."""
    file = mount.path / "file"
    file.write_bytes(b"x" * SIZE)
    breaker = mount.actor()
    with pinfs.EventChannel(file) as channel, pinfs.pin(file, mode="lease", signal="none") as pin:
        cut = breaker.start(os.truncate, str(file), 5)
        assert channel.read(LIMIT_S)[0].event == "break"
        with pytest.raises(OSError, match="revoked") as failure:
            pin.change(mode="deny")
        assert failure.value.errno == errno.ENODATA
        cut.result()
        assert pinfs.pins(file) == []


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_a_revoked_pin_does_not_come_back(file: Path, owner) -> None:
    with pinfs.pin(file, owner=owner) as pin:
        revoke(file, pin)
        for change in (lambda: pin.resize(0, 5), lambda: pin.change(mode="lease")):
            with pytest.raises(OSError, match="no such pin"):
                change()
            assert pinfs.pins(file) == []


def revoke(file: Path, pin: pinfs.Pin) -> None:
    control_file(file, "events").write_bytes(b"revoke %d\n" % pin.id)


def test_a_closed_handle_changes_no_other_file(file: Path, shared_dir: Path) -> None:
    """Its number may mean another file by now."""
    (shared_dir / "other").write_bytes(b"x" * SIZE)
    fd = os.open(file, os.O_RDWR)
    pin = pinfs.pin(fd, owner="handle")
    os.close(fd)
    other = os.open(shared_dir / "other", os.O_RDWR)
    assert other == fd
    with pytest.raises(OSError, match="handle is closed"):
        pin.resize(0, 5)
    assert pinfs.pins(other) == []
    pin.release()
    os.close(other)


def test_a_change_that_the_kernel_holds_back_keeps_no_release_waiting(file: Path, breaker: Actor, callback) -> None:
    failures: list[OSError] = []

    def change() -> None:
        try:
            pin.change(mode="deny")
        except OSError as failure:
            failures.append(failure)

    with pinfs.pin(file, mode="lease", on_break=callback) as pin:
        cut = breaker.start(os.truncate, str(file), 5)
        assert callback.called.wait(LIMIT_S)
        changing = threading.Thread(target=change)
        changing.start()
        stat = Path(f"/proc/self/task/{changing.native_id}/stat")
        eventually(lambda: stat.read_text().rsplit(") ", 1)[1][0] == "D")  # it waits for the file's lock
        callback.go_on.set()
        cut.result()
        changing.join()
    assert [failure.errno for failure in failures] == [errno.ENODATA]
    assert pinfs.pins(file) == []


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_outside_the_file(file: Path, owner) -> None:
    with pytest.raises(OSError, match="does not lie inside the file") as failure:
        pinfs.pin(file, SIZE - 1, 2, owner=owner)
    assert failure.value.errno == errno.ENXIO
    assert pinfs.pins(file) == []


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_only_regular_files(shared_dir: Path, owner) -> None:
    os.mkfifo(shared_dir / "fifo")
    directory = os.open(shared_dir, os.O_RDONLY)
    for file in (shared_dir, shared_dir / "fifo", directory):
        with pytest.raises(OSError, match="only regular files can be pinned") as failure:
            pinfs.pin(file, owner=owner)
        assert failure.value.errno == errno.EINVAL
    os.close(directory)


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_no_new_pin_while_a_removal_goes_on(file: Path, shared_mount: Mount, owner) -> None:
    """The breaker is killed, so that the inode's lock is free, and the break goes on (SPEC 3.7)."""
    breaker = shared_mount.actor()
    with shared_mount.trace() as trace, pinfs.pin(file, mode="lease", signal="none") as first:
        breaker.start(os.truncate, str(file), 0)
        trace.until("break", pin=first.id)
        breaker.kill()
        with pytest.raises(BlockingIOError, match="a removal of an overlapping range is under way"):
            pinfs.pin(file, owner=owner)


def test_a_pin_survives_renaming_and_unlinking(file: Path) -> None:
    with pinfs.pin(file) as pin:
        file.rename(file.with_name("other"))
        assert pin.info().path == str(file.with_name("other").relative_to(file.parents[1]))
        file.with_name("other").unlink()
        assert pin.info().path is None
        assert pin.state() == "held"
    assert pin.state() == "gone"


def test_a_descriptor_may_be_closed_and_its_locks_stay_alone(file: Path) -> None:
    """POSIX locks go with the first close of any descriptor of the file; the client must close none."""
    fd = os.open(file, os.O_RDWR)
    os.lockf(fd, os.F_LOCK, 10)
    with pinfs.pin(fd):
        pass
    child = os.fork()
    if not child:
        try:
            os.lockf(fd, os.F_TLOCK, 10)
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    pin = pinfs.pin(fd)
    os.close(fd)
    assert pin.state() == "held"
    pin.release()


@pytest.mark.parametrize("on_break", [None, lambda event: None])
def test_a_handle_pin_goes_with_the_last_close(file: Path, shared_mount: Mount, on_break) -> None:
    fd = os.open(file, os.O_RDWR)
    with shared_mount.trace() as trace:
        pin = pinfs.pin(fd, mode="lease", on_break=on_break, owner="handle")
        shared = os.dup(fd)
        os.close(fd)
        assert len(pinfs.pins(file)) == 1
        os.close(shared)
        assert trace.until("released", pin=pin.id)["by"] == "close"
    pin.release()
    assert not pin.active


def test_a_handle_needs_write_access(file: Path) -> None:
    with open(file, "rb") as reader, pytest.raises(PermissionError, match="open for writing"):
        pinfs.pin(reader, owner="handle")


@pytest.mark.mount("allow_other")
def test_who_may_not_write_pins_by_the_descriptor_it_was_given(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x" * SIZE)
    file.chmod(0o644)
    fd, reader = os.open(file, os.O_RDWR), os.open(file, os.O_RDONLY)
    user = mount.actor()
    with as_user(1234):
        for how in ({"file": file}, {"file": reader}, {"file": fd, "name": "n"}, {"file": fd, "pid": os.getpid()}):
            with pytest.raises(PermissionError):
                pinfs.pin(**how)
        pin = pinfs.pin(fd, 0, 10, mode="lease", on_break=lambda event: None)
        other = pinfs.pin(fd, 20, 10)
    assert {(info.id, info.owner, info.uid) for info in pinfs.pins(file)} == {
        (pin.id, "handle", 1234),
        (other.id, "handle", 1234),
    }
    assert user.errno(os.truncate, str(file), 10) == errno.EBUSY
    other.release()
    assert user.errno(os.truncate, str(file), 0) is None
    assert pin.state() == "gone"
    os.close(fd)
    os.close(reader)


@pytest.mark.mount("allow_other", "bridge=off")
def test_a_file_that_may_not_be_written_where_there_are_no_ioctls(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x")
    with file.open("r+b") as given, as_user(1234), pytest.raises(PermissionError, match="takes permission to write"):
        pinfs.pin(given)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("owner", ["process", "handle"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_releases_nothing(file: Path, breaker: Actor, callback: Callback, owner) -> None:
    with pinfs.pin(file, mode="lease", on_break=callback, owner=owner) as pin:
        child = os.fork()
        if not child:
            with pin:
                pass
            os._exit(0 if not pin.active else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert pin.state() == "held"
        callback.go_on.set()
        assert breaker.errno(os.truncate, str(file), 0) is None
        assert len(callback.events) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_pins_for_itself(file: Path, breaker: Actor) -> None:
    """Its callbacks come from a channel of its own."""
    ready, told = os.pipe()
    with pinfs.pin(file, 0, 10, mode="lease", on_break=lambda event: None):
        child = os.fork()
        if not child:
            called = threading.Event()
            pin = pinfs.pin(file, 4096, 10, mode="lease", on_break=lambda event: called.set())
            os.write(told, b"x")
            called.wait(LIMIT_S)
            while pin.active:
                select.select([], [], [], 0.01)
            os._exit(0)
        os.read(ready, 1)
        assert breaker.errno(os.truncate, str(file), 100) is None
        assert os.waitpid(child, 0)[1] == 0
    os.close(ready)
    os.close(told)


def test_a_pin_for_another_process(file: Path, shared_mount: Mount, breaker: Actor) -> None:
    holder = shared_mount.actor()
    pin = pinfs.pin(file, pid=holder.pid)
    assert pin.info().pid == holder.pid
    assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    holder.kill()
    eventually(lambda: pin.state() == "gone")
    with pytest.raises(ProcessLookupError, match="no such process"):
        pinfs.pin(file, pid=holder.pid)
    pin.release()


def test_the_mount_is_not_busy_when_all_is_released(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x")
    with pinfs.pin(file, mode="lease", on_break=lambda event: None):
        with pytest.raises(OSError) as busy:
            umount(mount.path)
        assert busy.value.errno == errno.EBUSY
    eventually(lambda: not any(t.name == "pinfs-events" for t in threading.enumerate()))
    mount.stop(by="umount")


def test_a_mount_that_dies_is_reported(new_mount: Callable[..., Mount], caplog) -> None:
    """The thread ends, and a later pin on another mount starts its own."""
    mount = new_mount()
    file = mount.path / "file"
    file.write_bytes(b"x")
    pin = pinfs.pin(file, mode="lease", on_break=lambda event: None)
    mount.stop()
    eventually(lambda: not any(t.name == "pinfs-events" for t in threading.enumerate()))
    assert "no more breaks will be reported" in caplog.text
    assert pin.state() == "gone"
    pin.release()
    assert not pin.active


@pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts take root")
def test_a_bind_mount_of_a_part(file: Path, tmp_path: Path, breaker: Actor) -> None:
    """The whole mount is visible elsewhere, so that even callbacks work. (Where it is not: test_client_elsewhere.)"""
    run_mount(file.parent, tmp_path)
    try:
        with pinfs.pin(tmp_path / "file", mode="lease", on_break=lambda event: None):
            assert breaker.errno(os.truncate, str(file), 0) is None
    finally:
        umount(tmp_path)


def run_mount(source: Path, target: Path) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, 4096, None):  # MS_BIND
        raise OSError(ctypes.get_errno(), "mount")


async def test_trio_callback(file: Path, breaker: Actor) -> None:
    events: list[pinfs.Event] = []

    async def let_go(event: pinfs.Event) -> None:
        await trio.lowlevel.checkpoint()
        assert held.active
        events.append(event)

    async with pinfs.client.trio.pin(file, mode="lease", on_break=let_go) as held:
        assert await held.state() == "held"
        await trio.to_thread.run_sync(breaker, os.truncate, str(file), 0)
        assert await held.state() == "gone"
    assert [event.pin for event in events] == [held.id]


@pytest.mark.mount("conflict=break")
async def test_trio_callback_of_a_deny_pin(mount: Mount) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x")
    asked = trio.Event()

    async def let_go(event: pinfs.Event) -> None:
        asked.set()

    async with pinfs.client.trio.pin(file, on_break=let_go):
        await trio.to_thread.run_sync(mount.actor(), os.truncate, str(file), 0)
    assert asked.is_set()


async def test_trio_breaks(file: Path, breaker: Actor) -> None:
    async with pinfs.client.trio.pin(file, mode="lease") as held, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, partial(breaker, os.truncate, str(file), 0))
        seen = []
        async for event in held.breaks():
            seen.append(event.op)
            assert await held.state() == "breaking"
            await held.release()
        assert seen == ["truncate"]


async def test_trio_a_break_is_answered_by_a_smaller_pin(file: Path, breaker: Actor) -> None:
    async with pinfs.client.trio.pin(file, mode="lease") as held:
        cut = breaker.start(os.truncate, str(file), 5)
        event = await held.next_break()
        assert event is not None and event.from_ == 5
        await held.resize(0, 5)
        await trio.to_thread.run_sync(cut.result)
        assert await held.state() == "held"
        assert (held.start, held.length) == (0, 5)


async def test_trio_block_without_a_break(file: Path, breaker: Actor) -> None:
    async def never(event: pinfs.Event) -> None:
        raise AssertionError(event)

    async with pinfs.client.trio.pin(file, 0, 10, mode="lease", on_break=never) as held:
        await held.resize(0, 5)
        await held.change(mode="deny")
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    assert await held.state() == "gone"
    assert pinfs.pins(file) == []


async def test_trio_callback_that_fails_ends_the_block(file: Path, breaker: Actor) -> None:
    async def fail(event: pinfs.Event) -> None:
        raise RuntimeError("cannot let go")

    cut = None
    with pytest.raises(ExceptionGroup) as failure:
        async with pinfs.client.trio.pin(file, mode="lease", on_break=fail):
            cut = breaker.start(os.truncate, str(file), 0)
            await trio.sleep_forever()
    assert [type(exc) for exc in failure.value.exceptions] == [RuntimeError]
    assert cut is not None
    cut.result()
    assert pinfs.pins(file) == []


@pytest.mark.parametrize(("on_timeout", "answer"), [("deny", errno.EBUSY), ("revoke", None)])
async def test_trio_callback_that_never_returns(new_mount: Callable[..., Mount], on_timeout, answer) -> None:
    mount = new_mount("break_timeout=1", f"on_timeout={on_timeout}")
    file = mount.path / "file"
    file.write_bytes(b"x")
    begun = trio.Event()

    async def never(event: pinfs.Event) -> None:
        begun.set()
        await trio.sleep_forever()

    with trio.fail_after(LIMIT_S):
        async with pinfs.client.trio.pin(file, mode="lease", on_break=never):
            cut = mount.actor().start(os.truncate, str(file), 0)
            await begun.wait()
    assert cut.error() == answer
    assert pinfs.pins(file) == []


async def test_trio_callback_that_has_begun_lets_go_in_peace(file: Path, breaker: Actor) -> None:
    begun, done = trio.Event(), trio.Event()

    async def slowly(event: pinfs.Event) -> None:
        begun.set()
        await trio.sleep(0.1)
        assert await held.state() == "breaking"
        done.set()

    async with pinfs.client.trio.pin(file, mode="lease", on_break=slowly) as held:
        cut = breaker.start(os.truncate, str(file), 0)
        await begun.wait()
    assert done.is_set()
    cut.result()


async def test_trio_not_on_pinfs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(pinfs.NotPinfsError):
        async with pinfs.client.trio.pin(tmp_path / "file", mode="lease"):
            pass
    async with pinfs.client.trio.pin(tmp_path / "file", mode="lease", missing_ok=True) as held:
        assert [event async for event in held.breaks()] == []
