"""Data of files, on every way it can go: straight to the backing file (over memory, over a disk), through the daemon,
and through pyfuse3 alone. What a program sees is the same; what differs is said in the tests' names."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mounted.kinds import on
from mounted.world import PAGE, descriptors_of, run
from support import acts
from support.actor import eventually
from support.mounts import Mount

anywhere = on("tmpfs", "disk", "through the daemon", "plain pyfuse3")
straight = on("tmpfs", "disk")
roundabout = on("through the daemon", "plain pyfuse3")


@pytest.fixture
def file(each_dir: Path) -> Path:
    path = each_dir / "file"
    path.write_bytes(b"x" * 4 * PAGE)
    return path


def below(mount: Mount, path: Path) -> Path:
    """The backing file."""
    return mount.source / path.relative_to(mount.path)


@straight
def test_reads_and_writes_do_not_reach_the_daemon(each_mount: Mount, file: Path) -> None:
    assert each_mount.status()["passthrough"]
    fd = os.open(file, os.O_RDWR)
    before = requests(each_mount)
    for number in range(1000):
        assert os.pread(fd, 100, number) == b"x" * 100
        os.pwrite(fd, b"x", number)
    assert requests(each_mount) - before < 200
    os.close(fd)


def requests(mount: Mount) -> float:
    return sum(value for name, value in mount.metrics().items() if name.startswith("pinfs_requests_total"))


@roundabout
def test_the_state_says_that_there_is_no_passthrough(each_mount: Mount) -> None:
    status = each_mount.status()
    assert not status["passthrough"]
    assert status["passthrough_unavailable_because"]


@anywhere
@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_file_opened_many_times_and_in_many_ways_is_one_file(each_mount: Mount, file: Path, first: int) -> None:
    ways = [first, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_NONBLOCK, os.O_RDWR | os.O_APPEND]
    fds = [os.open(file, flags) for flags in ways * 5]
    for number, fd in enumerate(fds):
        if fd_writes(fd):
            os.pwrite(fd, b"%02d" % number, 0)
            seen = {os.pread(other, 2, 0) for other in fds if fd_reads(other)}
            at_end = number % len(ways) == 5  # O_APPEND writes there, wherever pwrite was told to
            assert seen == {file.read_bytes()[:2]}
            assert at_end or seen == {b"%02d" % number}
    for fd in fds[::2] + fds[1::2]:
        os.close(fd)
    assert below(each_mount, file).read_bytes() == file.read_bytes()


def fd_reads(fd: int) -> bool:
    return _access(fd) != os.O_WRONLY


def fd_writes(fd: int) -> bool:
    return _access(fd) != os.O_RDONLY


def _access(fd: int) -> int:
    flags = Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
    return int(flags, 8) & os.O_ACCMODE


@anywhere
def test_each_file_gets_its_own_data_however_often_descriptors_are_used_again(each_dir: Path) -> None:
    """A backing belongs to an inode, not to a descriptor number of the daemon."""
    names = [each_dir / str(number) for number in range(30)]
    for path in names:
        path.write_bytes(path.name.encode() * 100)
    held = [path.open("rb") for path in names[::3]]
    for path in names + names[::-1]:
        assert path.read_bytes() == path.name.encode() * 100
    for path, opened in zip(names[::3], held, strict=True):
        path.unlink()
        path.write_bytes(b"new")
        assert opened.read() == path.name.encode() * 100
        assert path.read_bytes() == b"new"
        opened.close()
        path.unlink()
        path.write_bytes(b"newer")
        assert path.read_bytes() == b"newer"


@anywhere
def test_a_file_that_is_unlinked_while_open_lives_on(each_mount: Mount, file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    file.unlink()
    file.write_bytes(b"another")
    os.pwrite(fd, b"y" * PAGE, 3 * PAGE)
    os.ftruncate(fd, 8 * PAGE)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)  # by nothing but the inode
    assert os.fstat(again).st_nlink == 0
    os.close(fd)
    assert os.pread(again, 16 * PAGE, 0) == b"x" * 3 * PAGE + b"y" * PAGE + bytes(4 * PAGE)
    os.close(again)
    assert file.read_bytes() == b"another"


@anywhere
def test_a_hard_link_leads_to_the_same_bytes(file: Path) -> None:
    link = file.with_name("link")
    link.hardlink_to(file)
    with file.open("r+b", buffering=0) as one, link.open("r+b", buffering=0) as other:
        one.write(b"first")
        assert other.read(5) == b"first"
        file.unlink()
        other.write(b"second")
        assert os.pread(one.fileno(), 6, 5) == b"second"


@anywhere
def test_a_file_that_is_replaced_while_open_lives_on(file: Path) -> None:
    new = file.with_name("new")
    new.write_bytes(b"new")
    with file.open("rb") as opened:
        new.replace(file)
        assert opened.read() == b"x" * 4 * PAGE
    assert file.read_bytes() == b"new"


# --- mappings


@straight
def test_mapped_stores_are_in_the_backing_file_at_once(each_mount: Mount, file: Path) -> None:
    user = each_mount.actor()
    address = user(acts.map_file, str(file), 4 * PAGE)
    user(acts.poke, address + 3 * PAGE, b"store")
    backing = below(each_mount, file)
    assert backing.read_bytes()[3 * PAGE :][:5] == b"store"
    with backing.open("r+b", buffering=0) as opened:
        opened.write(b"below")
    assert user(acts.peek, address, 5) == b"below"


@on("through the daemon")
def test_mapped_stores_are_in_the_backing_file_after_msync(each_mount: Mount, file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:
        mapping[3 * PAGE : 3 * PAGE + 5] = b"store"
        mapping.flush()
        assert below(each_mount, file).read_bytes()[3 * PAGE :][:5] == b"store"


@anywhere
def test_a_mapping_sees_what_others_write_through_the_mount(each_mount: Mount, file: Path) -> None:
    user = each_mount.actor()
    address = user(acts.map_file, str(file), 4 * PAGE)
    assert user(acts.peek, address, 4) == b"xxxx"
    with file.open("r+b", buffering=0) as opened:
        opened.write(b"call")
        assert user(acts.peek, address, 4) == b"call"
        user(acts.poke, address, b"poke")
        assert os.pread(opened.fileno(), 4, 0) == b"poke"


@anywhere
def test_truncating_under_a_mapping_is_what_it_is_on_any_file_system(each_mount: Mount, file: Path) -> None:
    """Unpinned: what is left can be read, what is cut is SIGBUS, what grows again is zeros, in the same mapping."""
    user = each_mount.actor()
    address = user(acts.map_file, str(file), 4 * PAGE)
    assert user(acts.peek, address + 2 * PAGE, 1) == b"x"
    os.truncate(file, PAGE + 1)
    assert user(acts.peek, address + PAGE, 2) == b"x\0"
    os.truncate(file, 4 * PAGE)
    assert user(acts.peek, address + 2 * PAGE, 1) == b"\0"
    user(acts.poke, address + 2 * PAGE, b"again")
    with file.open("rb") as opened:
        assert os.pread(opened.fileno(), 5, 2 * PAGE) == b"again"
    os.truncate(file, PAGE)
    with pytest.raises(ProcessLookupError, match=f"-{signal.SIGBUS.value}"):
        user(acts.peek, address + 2 * PAGE, 1)


@anywhere
def test_programs_run_from_the_mount(each_dir: Path) -> None:
    program = each_dir / "program"
    shutil.copy("/bin/sleep", program)
    assert run(program, "0").returncode == 0
    process = subprocess.Popen([program, "1000"])
    eventually(lambda: os.readlink(f"/proc/{process.pid}/exe") == str(program))
    for flags in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        with pytest.raises(OSError, match="Text file busy"):
            os.open(program, flags)
    with pytest.raises(OSError, match="Text file busy"):
        os.truncate(program, 0)
    process.kill()
    process.wait()
    os.truncate(program, 0)


# --- flags of open


@anywhere
def test_appending_writers_lose_nothing(each_mount: Mount, file: Path) -> None:
    writers = [subprocess.Popen(["sh", "-c", f'for i in {"1 " * 100}; do echo {letter} >&3; done 3>>"$0"', file])
               for letter in "abc"]  # fmt: skip
    for writer in writers:
        assert writer.wait(30) == 0
    lines = file.read_bytes()[4 * PAGE :].split()
    assert [lines.count(letter) for letter in (b"a", b"b", b"c")] == [100, 100, 100]
    assert below(each_mount, file).read_bytes() == file.read_bytes()


@anywhere
def test_direct_io(each_mount: Mount, file: Path) -> None:
    fd = os.open(file, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as page:
        page[:] = b"d" * PAGE
        assert os.pwritev(fd, [page], PAGE) == PAGE
        assert os.preadv(fd, [page], 0) == PAGE
        assert page[:] == b"x" * PAGE
    os.close(fd)
    assert below(each_mount, file).read_bytes() == file.read_bytes() == b"x" * PAGE + b"d" * PAGE + b"x" * 2 * PAGE


@anywhere
@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes_are_written(each_mount: Mount, file: Path, flag: int) -> None:
    fd = os.open(file, os.O_WRONLY | flag)
    os.pwrite(fd, b"sync", PAGE)
    os.close(fd)
    assert below(each_mount, file).read_bytes()[PAGE:][:4] == b"sync"


@anywhere
@pytest.mark.parametrize("owner", [True, False])
def test_writing_by_an_ordinary_user_drops_set_ids(each_mount: Mount, file: Path, owner: bool) -> None:
    """write(2): set-user-id always goes, set-group-id where the group may execute."""
    file.chmod(0o6777)
    user = each_mount.actor(uid=1000)
    if owner:
        os.chown(file, 1000, 1000)
        file.chmod(0o6777)
    fd = user(os.open, str(file), os.O_WRONLY)
    user(os.pwrite, fd, b"y", 0)
    assert file.stat().st_mode & 0o7777 == below(each_mount, file).stat().st_mode & 0o7777 == 0o777


# --- what the kernel remembers


@anywhere
def test_writing_and_cutting_changes_size_and_time_at_once(each_mount: Mount, file: Path) -> None:
    below_it = below(each_mount, file)
    with file.open("r+b", buffering=0) as opened:
        file.stat()
        opened.write(b"y" * 9 * PAGE)
        assert true_to(below_it, file)
        opened.truncate(100)
        assert true_to(below_it, file)


def true_to(below: Path, path: Path) -> bool:
    seen, true = path.stat(), below.stat()
    return (seen.st_size, seen.st_mtime_ns) == (true.st_size, true.st_mtime_ns)


@straight
def test_nothing_of_a_file_stays_open_in_the_daemon(each_mount: Mount, each_dir: Path) -> None:
    """Backing descriptors go with the last handle, even if a mapping outlives it: it holds the backing file itself."""
    names = [each_dir / str(number) for number in range(50)]
    for path in names:
        path.write_bytes(b"x" * PAGE)
    user = each_mount.actor()
    before = descriptors_of(each_mount.pid)
    addresses = [user(acts.map_file, str(path), PAGE) for path in names]
    eventually(lambda: descriptors_of(each_mount.pid) <= before + 5)
    for path in names:
        path.unlink()
    assert {user(acts.peek, address, 1) for address in addresses} == {b"x"}
