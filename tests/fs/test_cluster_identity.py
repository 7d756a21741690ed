"""What hosts call files, a source and their cluster, and how they find out that a source is not shared."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pinfs.cluster.keys import MarkKey, check_file, read_key
from pinfs.fs import identity
from pinfs.fs.identity import (
    DIRECTORY,
    FileNames,
    cluster_name,
    file_name,
    not_seen,
    place,
    read_tokens,
    remove_token,
    write_token,
)
from pinfs.fs.shared import HELD, open_held
from pinfs.linux.filesystems import TMPFS_MAGIC

from .test_identity import use_number_again

FUSE = 0x65735546


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def name_of(path: Path) -> str:
    fd = os.open(path, os.O_PATH)
    try:
        return file_name(fd)
    finally:
        os.close(fd)


def place_of(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return place(fd)
    finally:
        os.close(fd)


# Files


def test_a_name_begins_with_the_inode_number_and_fits_into_a_key(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    name = name_of(file)
    check_file(name)
    assert read_key(f"f/{name}") == MarkKey(name)
    ino, _, hashed = name.partition(".")
    assert int(ino, 16) == file.stat().st_ino
    assert len(hashed) == 16


def test_all_links_of_a_file_have_its_name_and_no_other_file_has(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.touch()
    two.hardlink_to(one)
    other.touch()
    assert name_of(one) == name_of(two) != name_of(other)
    two.write_text("longer, and changed")
    two.rename(other)
    assert name_of(one) == name_of(other)


def test_the_next_file_with_a_number_has_another_name(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    before, ino = name_of(file), file.stat().st_ino
    file.unlink()
    use_number_again(file, ino)
    after = name_of(file)
    assert after != before
    assert after.partition(".")[0] == before.partition(".")[0]


@pytest.mark.parametrize("kind", [FUSE, 0x794C7630, 0xFE534D42, 0x01021997])
def test_handles_that_are_not_alike_on_all_hosts_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    monkeypatch.setattr(identity, "file_system_magic", lambda fd: kind)
    assert name_of(tmp_path) == f"{tmp_path.stat().st_ino:x}"
    assert place_of(tmp_path) == f"{kind:x}.{tmp_path.stat().st_ino:x}"


def test_a_kind_without_handles_has_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(identity, "handle_of", unsupported)
    assert name_of(tmp_path) == f"{tmp_path.stat().st_ino:x}"


def test_the_largest_number_still_fits(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        check_file(FileNames(fd).name(fd, 2**64 - 1))
    finally:
        os.close(fd)


def test_a_name_is_made_in_microseconds(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    ino = os.fstat(fd).st_ino
    names = FileNames(fd)
    best = min(_time_of(lambda: names.name(fd, ino)) for _ in range(200))
    os.close(fd)
    assert best < 50e-6  # 4 us on an idle machine


def _time_of(call: object) -> float:
    begin = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - begin


# The source


def test_a_source_is_the_same_by_every_path_and_differs_from_its_copy(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    (tmp_path / "link").symlink_to(one)
    shutil.copytree(one, copy)
    assert place_of(one) == place_of(tmp_path / "link") != place_of(copy)
    assert len(place_of(one)) <= 60


@pytest.mark.usefixtures("root")
def test_a_bind_mount_is_the_same_place_and_another_tmpfs_is_not(tmp_path: Path) -> None:
    kinds = {name: tmp_path / name for name in ("one", "bound", "two")}
    for path in kinds.values():
        path.mkdir()
    mounted: list[Path] = []
    tmpfs = ("-t", "tmpfs", "x")
    try:
        for how, point in ((tmpfs, "one"), (tmpfs, "two"), (("--bind", str(kinds["one"])), "bound")):
            subprocess.run(["mount", *how, kinds[point]], check=True)
            mounted.append(kinds[point])
        (kinds["one"] / "f").touch()
        (kinds["two"] / "f").touch()
        assert place_of(kinds["one"]) == place_of(kinds["bound"]) != place_of(kinds["two"])
        assert place_of(kinds["one"]).startswith(f"{TMPFS_MAGIC:x}.")
        assert name_of(kinds["one"] / "f") == name_of(kinds["bound"] / "f")
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=True)


@pytest.mark.usefixtures("root")
def test_overlayfs_is_named_by_numbers_alike_through_two_paths(tmp_path: Path) -> None:
    base = Path("/dev/shm") / f"pinfs-{uuid.uuid4().hex}"
    lower, upper, work, merged = (base / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir(parents=True)
    (lower / "f").write_text("x")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        if subprocess.run(["mount", "-t", "overlay", "x", "-o", options, merged], check=False).returncode:
            pytest.skip("this kernel, or this container, cannot mount overlay")
        before = name_of(merged / "f")
        (merged / "f").write_text("copied up")
        assert name_of(merged / "f") == before == f"{(merged / 'f').stat().st_ino:x}"
        subprocess.run(["umount", merged], check=True)
    finally:
        shutil.rmtree(base)


# The cluster's name


def test_a_source_is_named_once(source: int, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cluster_name(source, create=False)
    assert not (tmp_path / DIRECTORY).exists()
    name = cluster_name(source, create=True)
    assert str(uuid.UUID(name)) == name
    assert cluster_name(source, create=True) == cluster_name(source, create=False) == name
    assert [path.name for path in (tmp_path / DIRECTORY).iterdir()] == ["name"]
    assert (tmp_path / DIRECTORY).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("has_links", [True, False])
def test_of_hosts_that_begin_together_one_names_it(
    source: int, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
        cluster_name(source, create=True)  # alone: without links a reader may meet a file without its text
    barrier = Barrier(8)

    def begin(_: int) -> str:
        barrier.wait()
        return cluster_name(source, create=True)

    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(begin, range(8))}) == 1


def test_a_copy_has_the_name_and_is_another_place(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    fd = os.open(one, os.O_RDONLY)
    name = cluster_name(fd, create=True)
    os.close(fd)
    subprocess.run(["cp", "-a", one, copy], check=True)
    fd = os.open(copy, os.O_RDONLY)
    assert cluster_name(fd, create=False) == name
    assert place(fd) != place_of(one)
    os.close(fd)


@pytest.mark.parametrize("text", ["", "models\n", "\xff"])
def test_what_is_no_name_is_refused(source: int, tmp_path: Path, text: str) -> None:
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / "name").write_text(text)
    with pytest.raises(OSError, match=DIRECTORY) as raised:
        cluster_name(source, create=True)
    assert raised.value.errno == errno.EINVAL


def test_nothing_is_followed_out_of_the_source(source: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(f"{uuid.uuid4()}\n")
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / "name").symlink_to(elsewhere)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        cluster_name(source, create=True)


# Tokens


def test_tokens_are_seen_by_all_and_replaced(source: int, tmp_path: Path) -> None:
    assert read_tokens(source) == {}
    write_token(source, "a", "1f")
    write_token(source, "b.example.org", "2f")
    write_token(source, "a", "3f")
    assert read_tokens(source) == {"a": "3f", "b.example.org": "2f"}
    cluster_name(source, create=True)
    (tmp_path / DIRECTORY / "host-c").write_text("not a token at all")
    (tmp_path / DIRECTORY / "host-d").write_text("e 4f")
    assert read_tokens(source) == {"a": "3f", "b.example.org": "2f"}


def test_a_host_takes_its_own_token_along(source: int) -> None:
    write_token(source, "a", "1f")
    remove_token(source, "a", "other")
    assert read_tokens(source) == {"a": "1f"}
    remove_token(source, "a", "1f")
    remove_token(source, "a", "1f")
    assert read_tokens(source) == {}


@pytest.mark.parametrize("host", ["", "a/b", "../x", "x" * 65])
def test_a_host_cannot_lead_out_of_the_directory(source: int, host: str) -> None:
    with pytest.raises(OSError, match="not a name of a host"):
        write_token(source, host, "1f")


def test_a_failed_write_leaves_nothing(source: int, tmp_path: Path) -> None:
    (tmp_path / DIRECTORY / "host-a").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_token(source, "a", "1f")
    assert [path.name for path in (tmp_path / DIRECTORY).iterdir()] == ["host-a"]


def test_members_without_a_token_serve_another_directory() -> None:
    members = [
        {"host": "a", "incarnation": "1", "own": True},
        {"host": "a", "incarnation": "0", "own": False},
        {"host": "b", "incarnation": "2", "own": False},
        {"host": "b", "incarnation": "3", "own": False},
        {"host": "c", "incarnation": "4", "own": False},
        {"host": "d", "incarnation": "5", "own": False},
    ]
    assert not_seen(members, "a", {"a": "1", "b": "3", "c": "9"}) == ["c", "d"]
    assert not_seen([], "a", {}) == []


# Users who may write the root of the source


def owned_by_a_user(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, 1000, 1000)


def writable_by_users(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def a_link_elsewhere(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)


@pytest.mark.parametrize("made", [owned_by_a_user, writable_by_users, a_link_elsewhere])
def test_a_directory_that_a_user_has_made_is_refused(
    source: int, tmp_path: Path, root: None, made: Callable[[Path], None]
) -> None:
    """Else hosts would get names as the user likes, and files of root be linked where the user can remove them."""
    made(tmp_path / DIRECTORY)
    for call in (
        lambda: cluster_name(source, create=True),
        lambda: write_token(source, "a", "1"),
        lambda: read_tokens(source),
        lambda: open_held(source, create=True),
    ):
        with pytest.raises(OSError, match=DIRECTORY):
            call()
    remove_token(source, "a", "1")
    assert not [*(tmp_path / DIRECTORY).iterdir()]


@pytest.mark.parametrize("made", [owned_by_a_user, writable_by_users, a_link_elsewhere])
def test_names_that_keep_bytes_are_not_put_where_users_can_remove_them(
    source: int, tmp_path: Path, root: None, made: Callable[[Path], None]
) -> None:
    (tmp_path / DIRECTORY).mkdir()
    made(tmp_path / DIRECTORY / HELD)
    with pytest.raises(OSError, match=HELD):
        open_held(source, create=True)
