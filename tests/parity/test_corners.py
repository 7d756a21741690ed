"""The hard corners of a file system: names, links, renames, big and shared data, locks, special files (SPEC 11)."""

import errno
import fcntl
import itertools
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import acts

from parity import corner_acts
from parity.calls import checked, libc, next_tick
from parity.places import NATIVE, Place


def errno_of(call, *arguments, **named) -> int | None:  # type: ignore[no-untyped-def]
    """The errno that a call fails with, None when it succeeds."""
    try:
        call(*arguments, **named)
    except OSError as failure:
        return failure.errno
    return None


# --- rename


def test_rename_noreplace_never_replaces(place: Place) -> None:
    old, new = place.path / "old", place.path / "new"
    old.write_text("old")
    new.write_text("new")
    assert errno_of(corner_acts.rename, str(old), str(new), "NOREPLACE") == errno.EEXIST
    new.unlink()
    corner_acts.rename(str(old), str(new), "NOREPLACE")
    assert (new.read_text(), old.exists()) == ("old", False)


def test_rename_exchange_swaps_a_file_and_a_directory(place: Place) -> None:
    file, directory = place.path / "one" / "file", place.path / "two" / "directory"
    file.parent.mkdir()
    (directory / "inner").mkdir(parents=True)
    file.write_text("content")
    inodes = file.stat().st_ino, directory.stat().st_ino
    corner_acts.rename(str(file), str(directory), "EXCHANGE")
    assert (directory.stat().st_ino, file.stat().st_ino) == inodes
    assert directory.read_text() == "content"
    assert os.listdir(file) == ["inner"]
    assert (file.parent.stat().st_nlink, directory.parent.stat().st_nlink) == (3, 2)
    assert os.path.samefile(file / "..", file.parent)


def test_rename_exchange_needs_both_names(place: Place) -> None:
    (place.path / "one").touch()
    assert errno_of(corner_acts.rename, str(place.path / "one"), str(place.path / "two"), "EXCHANGE") == errno.ENOENT


def test_rename_over_directories(place: Place) -> None:
    for name in ("empty", "full", "full/inner", "moved", "full/inner/deep"):
        (place.path / name).mkdir()
    (place.path / "file").touch()
    refused = {
        ("moved", "full"): errno.ENOTEMPTY,
        ("moved", "file"): errno.ENOTDIR,
        ("file", "moved"): errno.EISDIR,
        ("full", "full/inner/deep/below"): errno.EINVAL,
    }
    for (old, new), expected in refused.items():
        assert errno_of(os.rename, place.path / old, place.path / new) == expected, (old, new)
    os.rename(place.path / "moved", place.path / "empty")
    assert sorted(os.listdir(place.path)) == ["empty", "file", "full"]


def test_a_directory_is_renamed_while_it_is_read(place: Place) -> None:
    directory = place.path / "before"
    directory.mkdir()
    names = {f"{i:04}" for i in range(2000)}
    for name in names:
        (directory / name).touch()
    with corner_acts.directory(str(directory)) as stream:
        seen = [next(stream.names()) for _ in range(100)]
        directory.rename(place.path / "after")
        seen += stream.names()
    assert sorted(seen) == sorted([b".", b"..", *map(os.fsencode, names)])


def test_a_renamed_file_stays_the_file_that_is_open(place: Place) -> None:
    fd = os.open(place.path / "a", os.O_RDWR | os.O_CREAT)
    (place.path / "b").write_text("to be replaced")
    old = os.open(place.path / "b", os.O_RDONLY)
    os.rename(place.path / "a", place.path / "b")
    os.write(fd, b"mine")
    assert (place.path / "b").read_bytes() == b"mine"
    assert os.read(old, 100) == b"to be replaced"
    assert (os.fstat(old).st_nlink, os.fstat(fd).st_nlink) == (0, 1)
    os.close(fd)
    os.close(old)


# --- links


def test_link_counts_and_ctimes_are_seen_at_once_through_other_names(place: Place) -> None:
    first, second, third = (place.path / name for name in "abc")
    first.touch()
    fd = os.open(first, os.O_RDONLY)
    before = first.stat()
    os.link(first, second)
    assert (first.stat().st_nlink, os.fstat(fd).st_nlink) == (2, 2)
    assert first.stat().st_ctime_ns > before.st_ctime_ns
    os.rename(second, third)
    second_ctime = third.stat().st_ctime_ns
    first.chmod(0o600)
    assert third.stat().st_mode == first.stat().st_mode == os.fstat(fd).st_mode
    assert third.stat().st_ctime_ns > second_ctime
    first.unlink()
    assert (third.stat().st_nlink, os.fstat(fd).st_nlink) == (1, 1)
    third.unlink()
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_data_and_size_are_seen_at_once_through_other_names_and_handles(place: Place) -> None:
    first, second = place.path / "a", place.path / "b"
    first.write_bytes(b"1234")
    os.link(first, second)
    reader = os.open(second, os.O_RDONLY)
    assert os.read(reader, 100) == b"1234"
    with first.open("ab", buffering=0) as writer:
        writer.write(b"5678")
        assert (os.read(reader, 100), second.stat().st_size) == (b"5678", 8)
        os.truncate(second, 2)
        assert (os.fstat(writer.fileno()).st_size, os.pread(reader, 100, 0)) == (2, b"12")
    os.close(reader)


def test_an_unlinked_file_lives_as_long_as_it_is_open(any_place: Place) -> None:
    path = any_place.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    os.write(fd, b"still here")
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0o640)
    facts = os.fstat(fd)
    assert (os.pread(fd, 100, 0), facts.st_size, facts.st_nlink, stat.S_IMODE(facts.st_mode)) == (b"still", 5, 0, 0o640)
    assert os.listdir(any_place.path) == os.listdir(any_place.source) == []
    os.close(fd)


def test_an_unlinked_directory_is_empty_and_takes_nothing(place: Place) -> None:
    (place.path / "d").mkdir()
    fd = os.open(place.path / "d", os.O_RDONLY)
    os.rmdir(place.path / "d")
    assert os.listdir(fd) == []
    assert errno_of(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == errno.ENOENT
    os.close(fd)


def test_a_nameless_file_gets_a_name(any_place: Place) -> None:
    fd = os.open(any_place.path, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    corner_acts.link(f"/proc/self/fd/{fd}", str(any_place.path / "named"))
    assert (any_place.path / "named").read_bytes() == b"content"
    assert os.fstat(fd).st_nlink == 1
    os.close(fd)


# --- names


def test_names_of_any_bytes(any_place: Place) -> None:
    root = os.fsencode(any_place.path)
    names = {bytes([value]) + b"x" for value in range(1, 256) if value != ord("/")} | {b"n" * 255, b"\xff" * 255}
    for name in names:
        os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_EXCL))
    assert set(os.listdir(root)) == set(os.listdir(os.fsencode(any_place.source))) == names
    for name in names:
        os.unlink(root + b"/" + name)
    assert errno_of(os.mkdir, root + b"/" + b"n" * 256) == errno.ENAMETOOLONG


def test_names_that_only_look_alike_are_different(place: Place) -> None:
    names = ["é", "e\u0301", "A", "a", "a ", " a", "a.", "...", "..a", "-a", "con", "a\\b", "a\nb"]
    for name in names:
        (place.path / name).write_text(name)
    assert {(place.path / name).read_text() for name in names} == set(names)


def test_a_tree_deeper_than_any_path(place: Place) -> None:
    depth, name = 600, "directory"
    fds = [os.open(place.path, os.O_RDONLY)]
    for _ in range(depth):
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
    bottom = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fds[-1])
    for fd in [bottom, *fds[1:-1]]:
        os.close(fd)
    up = fds[-1]
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY, dir_fd=up)
        os.close(up)
        up = above
    assert os.path.sameopenfile(up, fds[0])
    os.close(up)
    os.close(fds[0])
    shutil.rmtree(place.path / name)
    assert os.listdir(place.source) == []


HUNDRED_THOUSAND = 100_000


def test_a_huge_directory_is_read_while_it_changes(place: Place) -> None:
    fd = os.open(place.source, os.O_RDONLY)
    for i in range(HUNDRED_THOUSAND):
        os.mknod(f"stays{i}", dir_fd=fd)
    os.close(fd)
    with corner_acts.directory(str(place.path)) as stream:
        seen, changes = [], itertools.count()
        for name in stream.names():
            seen.append(name)
            if len(seen) % 500 == 0:
                change = next(changes)
                (place.path / f"comes{change}").touch()
                (place.path / f"comes{change - 1}").unlink(missing_ok=True)
    stayed = [name for name in seen if name.startswith(b"stays")]
    assert len(stayed) == len(set(stayed)) == HUNDRED_THOUSAND


def test_positions_in_a_directory_stay_good(any_place: Place) -> None:
    for i in range(3000):
        (any_place.path / f"f{i}").touch()
    with corner_acts.directory(str(any_place.path)) as stream:
        whole, marks = [], {}
        for name in stream.names():
            whole.append(name)
            if len(whole) % 250 == 0:
                marks[len(whole)] = stream.tell()
        for count in reversed(marks):
            stream.seek(marks[count])
            assert stream.next() == (whole[count] if count < len(whole) else None)
        (any_place.path / "new").touch()
        stream.rewind()
        assert set(stream.names()) == {*whole, b"new"}


# --- data


def test_a_file_beyond_4_gib(any_place: Place) -> None:
    path = any_place.path / "big"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    far = 5 * 2**30 + 123
    os.pwrite(fd, b"far", far)
    os.pwrite(fd, b"near", 0)
    facts = path.stat()
    assert (facts.st_size, os.pread(fd, 10, far), os.pread(fd, 4, 2**32)) == (far + 3, b"far", bytes(4))
    assert facts.st_blocks * 512 < 2**20
    assert os.lseek(fd, 4096, os.SEEK_DATA) == far // 4096 * 4096
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
    with mmap.mmap(fd, 126, offset=far // 4096 * 4096) as shared:
        assert shared[123:126] == b"far"
    os.ftruncate(fd, 2**40)
    assert ((any_place.source / "big").stat().st_size, os.lseek(fd, 0, os.SEEK_END)) == (2**40, 2**40)
    os.close(fd)


def test_holes_are_punched_and_found(any_place: Place) -> None:
    fd = os.open(any_place.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 65536)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    corner_acts.fallocate(fd, 3, 16384, 16384)
    assert os.fstat(fd).st_blocks == before - 32
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 16384
    assert os.lseek(fd, 16384, os.SEEK_DATA) == 32768
    assert os.pread(fd, 16385, 16384) == bytes(16384) + b"x"
    os.close(fd)


def test_many_writers_append(any_place: Place) -> None:
    path, records, length = any_place.path / "log", 300, 100
    path.touch()
    writers = {letter: any_place.actor() for letter in (b"a", b"b", b"c", b"d")}
    append = corner_acts.append_records
    for pending in [w.start(append, str(path), letter, records, length) for letter, w in writers.items()]:
        pending.result()
    data = path.read_bytes()
    found = [data[at : at + length] for at in range(0, len(data), length)]
    assert sorted(found) == sorted(letter * length for letter in writers for _ in range(records))


def test_a_mapping_is_shared_between_processes(any_place: Place) -> None:
    path = str(any_place.path / "shared")
    acts.write_file(path, bytes(8192))
    one, other = any_place.actor(), any_place.actor()
    first, second = one(acts.map_file, path, 8192), other(acts.map_file, path, 8192)
    one(acts.poke, first + 4000, b"hello" * 40)
    assert other(acts.peek, second + 4000, 200) == b"hello" * 40
    assert acts.read_file(path)[4000:4200] == b"hello" * 40
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"written", 0)
    os.close(fd)
    assert one(acts.peek, first, 7) == b"written"


def test_no_update_of_a_shared_counter_is_lost(place: Place) -> None:
    path = str(place.path / "counter")
    acts.write_file(path, bytes(8))
    for pending in [place.actor().start(corner_acts.add_one, path, 500) for _ in range(3)]:
        pending.result()
    assert int.from_bytes(acts.read_file(path), "little") == 1500


def test_msync_reaches_the_backing(disk_place: Place) -> None:
    path = disk_place.path / "file"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as shared:
        shared[:5] = b"synced"[:5]
        shared.flush()
        assert (disk_place.source / "file").read_bytes()[:5] == b"synce"


def test_stores_are_seen_in_the_attributes_after_two_ticks(any_place: Place) -> None:
    """While a handle is open, and when only the mapping is left: the kernel tells nobody of them."""
    path, behind = any_place.path / "file", any_place.source / "file"
    path.touch()
    os.truncate(path, 2**20)
    path.stat()  # remembered from before the file is open
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 2**20) as shared:
        for page in range(8):
            if page == 4:
                os.close(fd)
            before = behind.stat()
            next_tick()
            shared[page * 8192] = 1
            next_tick()
            next_tick()
            seen, true = path.stat(), behind.stat()
            assert (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_blocks) == (
                true.st_mtime_ns,
                true.st_ctime_ns,
                true.st_blocks,
            )
            assert true.st_mtime_ns > before.st_mtime_ns


@pytest.mark.skipif(NATIVE, reason="counts the daemon's requests")
def test_attributes_are_remembered_when_nobody_can_store_any_more(any_place: Place) -> None:
    assert any_place.mount
    path = any_place.path / "file"
    path.write_bytes(bytes(8192))
    looks: list[Callable[[], object]] = [path.stat, next_tick, next_tick] * 20
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
        shared[0] = 1
        assert requests_of(any_place, looks) >= 20
    assert requests_of(any_place, looks) < 20


def requests_of(place: Place, calls: list[Callable[[], object]]) -> float:
    """How many requests some calls come to (and looking at that)."""
    before = _requests(place)
    for call in calls:
        call()
    return _requests(place) - before


def _requests(place: Place) -> float:
    assert place.mount
    samples = place.mount.metrics().items()
    return sum(value for name, value in samples if name.startswith("pinfs_requests_total"))


def test_direct_io(disk_place: Place) -> None:
    path = disk_place.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as memory:
        memory.write(b"d" * 8192)
        assert os.pwrite(fd, memory, 4096) == 8192
        assert (disk_place.source / "file").read_bytes() == bytes(4096) + b"d" * 8192
        (disk_place.path / "file").write_bytes(b"e" * 8192)
        assert os.preadv(fd, [memory], 0) == 8192
        assert memory[:] == b"e" * 8192
    os.close(fd)


@pytest.mark.parametrize("how", ["fsync", "fdatasync", "O_SYNC", "O_DSYNC"])
def test_synced_data_has_a_place_on_the_disk(disk_place: Place, how: str) -> None:
    path, behind = disk_place.path / "file", str(disk_place.source / "file")
    path.touch()
    flags = getattr(os, how, 0) if how.startswith("O_") else 0
    plain, synced = os.open(path, os.O_WRONLY), os.open(path, os.O_WRONLY | flags)
    offset = 0
    while flags == 0 and not corner_acts.delayed_extents(behind):  # until one is seen: the system may be faster
        os.pwrite(plain, b"x" * 4096, offset)
        offset += 8192
    os.pwrite(synced, b"y" * 4096, offset)
    if not flags:
        getattr(os, how)(synced)
    assert corner_acts.delayed_extents(behind) == 0
    os.close(plain)
    os.close(synced)


def test_directories_can_be_synced(disk_place: Place) -> None:
    fd = os.open(disk_place.path, os.O_RDONLY)
    (disk_place.path / "file").touch()
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)


def test_copy_file_range_copies(any_place: Place) -> None:
    (any_place.path / "from").write_bytes(bytes(range(256)) * 64)
    source = os.open(any_place.path / "from", os.O_RDONLY)
    target = os.open(any_place.path / "to", os.O_RDWR | os.O_CREAT)
    assert os.copy_file_range(source, target, 10000, 100, 5000) == 10000
    assert (any_place.path / "to").read_bytes() == bytes(5000) + (bytes(range(256)) * 64)[100:10100]
    os.close(source)
    os.close(target)


def test_a_running_program_cannot_be_written(place: Place) -> None:
    program = place.path / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        assert errno_of(os.open, program, os.O_WRONLY) == errno.ETXTBSY
        running.kill()
    os.close(os.open(program, os.O_WRONLY))


# --- locks


@pytest.mark.parametrize("api", ["flock", "posix", "ofd"])
def test_locks_exclude_other_processes(place: Place, api: str) -> None:
    path = str(place.path / "file")
    acts.write_file(path, b"")
    one, other = place.actor(), place.actor()
    fds = one(os.open, path, os.O_RDWR), other(os.open, path, os.O_RDWR)
    assert one(corner_acts.try_lock, fds[0], api, "RDLCK")
    assert other(corner_acts.try_lock, fds[1], api, "RDLCK")
    assert not other(corner_acts.try_lock, fds[1], api, "WRLCK")
    assert one(corner_acts.try_lock, fds[0], api, "UNLCK")
    assert other(corner_acts.try_lock, fds[1], api, "WRLCK")
    waiting = one.start(corner_acts.lock, fds[0], api, "WRLCK")
    assert not waiting.done()
    other.kill()
    waiting.result()


@pytest.mark.parametrize("api", ["posix", "ofd"])
def test_locks_of_ranges_beyond_4_gib(place: Place, api: str) -> None:
    path = str(place.path / "file")
    acts.write_file(path, b"")
    one, other = place.actor(), place.actor()
    fds = one(os.open, path, os.O_RDWR), other(os.open, path, os.O_RDWR)
    assert one(corner_acts.try_lock, fds[0], api, "WRLCK", 2**33, 10)
    assert other(corner_acts.try_lock, fds[1], api, "WRLCK", 2**33 + 10, 0)
    assert not other(corner_acts.try_lock, fds[1], api, "WRLCK", 2**33 + 9, 1)


# --- special files


def test_fifos_connect_processes(place: Place) -> None:
    path = str(place.path / "fifo")
    os.mkfifo(path)
    reader, writer = place.actor(), place.actor()
    reading = reader.start(acts.read_file, path)
    writer(acts.write_file, path, b"through the fifo")
    assert reading.result() == b"through the fifo"


def test_sockets_connect_processes(place: Place) -> None:
    path = str(place.path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        server.listen()
        client.connect(path)
        peer, _ = server.accept()
        with peer:
            client.send(b"through the socket")
            assert peer.recv(100) == b"through the socket"


def test_device_nodes(any_place: Place) -> None:
    path = any_place.path / "zero"
    os.mknod(path, stat.S_IFCHR | 0o640, os.makedev(1, 5))
    for seen in (path, any_place.source / "zero"):
        facts = seen.stat()
        assert (stat.filemode(facts.st_mode), facts.st_rdev) == ("crw-r-----", os.makedev(1, 5))
    alice = any_place.alice()
    assert alice.errno(os.mknod, str(any_place.path / "mine"), stat.S_IFCHR, os.makedev(1, 5)) == errno.EPERM


# --- the file system


def test_df_and_du_see_the_backing(any_place: Place) -> None:
    def facts(path: Path) -> tuple[int, ...]:
        df = os.statvfs(path)
        return df.f_bsize, df.f_frsize, df.f_blocks, df.f_files, df.f_namemax

    assert facts(any_place.path) == facts(any_place.source)
    (any_place.path / "file").write_bytes(b"x" * 100_000)
    os.sync()
    assert (any_place.path / "file").stat().st_blocks == (any_place.source / "file").stat().st_blocks > 0


def test_immutable_and_append_only_files(disk_place: Place) -> None:
    path, behind = disk_place.path / "file", disk_place.source / "file"
    path.write_text("fixed")
    subprocess.run(["chattr", "+i", behind], check=True)
    try:
        refused = {
            "write": errno_of(os.open, path, os.O_WRONLY),
            "truncate": errno_of(os.truncate, path, 0),
            "unlink": errno_of(os.unlink, path),
            "rename": errno_of(os.rename, path, disk_place.path / "other"),
            "link": errno_of(os.link, path, disk_place.path / "other"),
            "chmod": errno_of(os.chmod, path, 0o600),
            "utime": errno_of(os.utime, path, (1, 1)),
            "xattr": errno_of(os.setxattr, path, "user.a", b""),
        }
    finally:
        subprocess.run(["chattr", "-i", behind], check=True)
    assert refused == dict.fromkeys(refused, errno.EPERM)
    subprocess.run(["chattr", "+a", behind], check=True)
    try:
        with path.open("ab") as log:
            log.write(b" and more")
        assert errno_of(os.open, path, os.O_WRONLY) == errno.EPERM
        assert errno_of(os.truncate, path, 0) == errno.EPERM
    finally:
        subprocess.run(["chattr", "-a", behind], check=True)
    assert path.read_text() == "fixed and more"


def test_file_flags_are_set_and_shown_through_the_mount(disk_place: Place) -> None:
    path, behind = disk_place.path / "file", disk_place.source / "file"
    path.touch()
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        shown = [subprocess.check_output(["lsattr", p], text=True).split()[0] for p in (path, behind)]
        assert shown[0] == shown[1]
        assert "i" in shown[0]
        assert errno_of(os.unlink, path) == errno.EPERM
        assert disk_place.alice()(subprocess.call, ["chattr", "-i", str(path)], stderr=subprocess.DEVNULL)
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    path.unlink()


@pytest.mark.skipif(NATIVE, reason="plain directories can do it")
@pytest.mark.parametrize("mode", [8, 32], ids=["collapse", "insert"])
def test_the_kernel_does_not_pass_on_collapse_and_insert(disk_place: Place, mode: int) -> None:
    """fuse_file_fallocate: EOPNOTSUPP before pinfs is asked, so the bytes stay where they are."""
    fd = os.open(disk_place.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 16384)
    assert errno_of(corner_acts.fallocate, fd, mode, 4096, 4096) == errno.EOPNOTSUPP
    os.close(fd)


def test_changes_are_told_to_watchers(place: Place) -> None:
    watch = checked(libc.inotify_init1(os.O_NONBLOCK))
    checked(libc.inotify_add_watch(watch, os.fsencode(place.path), 0x100 | 0x200))  # IN_CREATE, IN_DELETE
    (place.path / "file").touch()
    (place.path / "file").unlink()
    events = os.read(watch, 4096)
    assert int.from_bytes(events[4:8], "little") == 0x100
    assert events.count(b"file") == 2
    os.close(watch)


def test_a_lock_file_is_created_by_one_process_only(place: Place) -> None:
    path = str(place.path / "lock")
    actors = [place.actor() for _ in range(4)]
    tries = [actor.start(os.open, path, os.O_CREAT | os.O_EXCL) for actor in actors]
    errors = [pending.error() for pending in tries]
    assert sorted(errors, key=str) == [errno.EEXIST] * 3 + [None]


def test_fcntl_reports_the_flags_of_the_open(place: Place) -> None:
    fd = os.open(place.path / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOATIME)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    assert flags & (os.O_ACCMODE | os.O_APPEND | os.O_NOATIME | os.O_TRUNC) == os.O_RDWR | os.O_APPEND | os.O_NOATIME
    os.close(fd)
