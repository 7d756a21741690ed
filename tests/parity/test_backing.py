"""What the backing refuses is refused with its own errno, and changes behind the mount do no harm (SPEC 11)."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import acts, mounts
from support.disks import Disks

from parity import corner_acts
from parity.places import ALICE, NATIVE, NewPlace, Place
from parity.test_corners import errno_of


class SmallTmpfs:
    """A tmpfs of its own, to be filled, write-protected, limited."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounted = False

    def mount(self, options: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", self.path], check=False).returncode:
            pytest.skip(f"this kernel, or this container, cannot mount a tmpfs with {options}")
        self.mounted = True
        self.path.chmod(0o777)
        return self.path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def umount(self) -> None:
        if self.mounted:
            mounts.umount(self.path, mounts.MNT_DETACH)


@pytest.fixture
def small() -> Iterator[SmallTmpfs]:
    base = mounts.new_base("disk")
    tmpfs = SmallTmpfs(base)
    yield tmpfs
    tmpfs.umount()
    base.rmdir()


def test_no_space(small: SmallTmpfs, new_place: NewPlace) -> None:
    place = new_place(source=small.mount("size=2m"))
    path = place.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    while (written := errno_of(os.write, fd, b"x" * 100_000)) is None:
        pass
    assert written == errno.ENOSPC
    assert os.fstat(fd).st_size == (place.source / "file").stat().st_size
    assert errno_of(corner_acts.fallocate, fd, 0, 0, 2**22) == errno.ENOSPC
    assert errno_of(os.mkdir, place.path / "d") is None  # tmpfs needs no block for that
    os.ftruncate(fd, 0)
    assert os.write(fd, b"fits") == 4
    assert os.statvfs(place.path).f_bfree == os.statvfs(place.source).f_bfree
    os.close(fd)


def test_no_inodes(small: SmallTmpfs, new_place: NewPlace) -> None:
    place = new_place(source=small.mount("nr_inodes=20"))
    made = 0
    while (failed := errno_of((place.path / f"f{made}").touch)) is None:
        made += 1
    assert failed == errno.ENOSPC
    assert len(os.listdir(place.path)) == made > 5
    assert errno_of(os.mkdir, place.path / "d") == errno.ENOSPC
    assert errno_of(os.symlink, "x", place.path / "l") == errno.ENOSPC


def test_a_quota_is_the_callers(small: SmallTmpfs, new_place: NewPlace) -> None:
    place = new_place(source=small.mount("size=16m,usrquota,usrquota_block_hardlimit=1m"))
    alice, path = place.alice(), str(place.path / "hers")
    fd = alice(os.open, path, os.O_RDWR | os.O_CREAT, 0o600)
    assert alice.errno(corner_acts.fill, fd, 3 * 2**20) == errno.EDQUOT
    assert os.stat(path).st_size <= 2**20
    assert place.bob().errno(acts.write_file, str(place.path / "his"), bytes(2**19)) is None


def test_the_quota_of_a_subvolume(disks: Disks, new_place: NewPlace, tmp_path: Path) -> None:
    """btrfs, because kernels without quota formats have these."""
    disk = disks.mount("btrfs", tmp_path / "image")
    for command in (
        ("quota", "enable", disk),
        ("subvolume", "create", disk / "limited"),
        ("qgroup", "limit", "4M", disk / "limited"),
    ):
        subprocess.run(["btrfs", *command], check=True, capture_output=True)
    place = new_place(source=disk / "limited")
    place.source.chmod(0o777)
    alice, path = place.alice(), str(place.path / "hers")
    fd = alice(os.open, path, os.O_RDWR | os.O_CREAT, 0o600)
    assert alice.errno(corner_acts.fill, fd, 2**23) == errno.EDQUOT
    assert alice.errno(corner_acts.fallocate, fd, 0, 0, 2**24) == errno.EDQUOT
    assert 0 < os.stat(path).st_size <= 2**22


def test_a_disk_that_fails(small: SmallTmpfs, disks: Disks, new_place: NewPlace) -> None:
    """The disk is an image in a tmpfs: when that is full its writes fail, when the image is cut its reads fail."""
    image = small.mount("size=16m") / "image"
    place = new_place(source=disks.mount("ext4", image, "-O", "^has_journal"))
    files = [os.open(where / name, os.O_RDWR | os.O_CREAT) for where, name in ((place.path, "a"), (place.source, "b"))]
    for fd in files:
        os.write(fd, b"x" * 2**20)
        os.fsync(fd)
    mounted, native = map(fsync_until_it_fails, files)
    assert mounted == native in (errno.ENOSPC, errno.EIO)  # the kernel may know why the disk failed, or not
    os.truncate(image, 2**20)
    for name in "ab":
        forget_pages(place.source / name)
    assert [errno_of(os.pread, fd, 10, 0) for fd in files] == [errno.EIO, errno.EIO]
    for fd in files:
        os.close(fd)
    if place.mount:
        place.mount.check_log()


def fsync_until_it_fails(fd: int) -> int | None:
    """The errno of the first fsync(2) that fails. Every write before it goes to the cache, and succeeds."""
    for _ in range(64):
        os.write(fd, b"y" * 2**20)
        if failed := errno_of(os.fsync, fd):
            return failed
    return None


def forget_pages(path: Path) -> None:
    """What is clean goes from the cache: the next read asks the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_a_read_only_backing(small: SmallTmpfs, new_place: NewPlace) -> None:
    small.mount("size=2m")
    (small.path / "file").write_text("fixed")
    place = new_place(source=small.path)
    small.remount("ro")
    path = place.path / "file"
    assert path.read_text() == "fixed"
    refused = {
        "create": errno_of((place.path / "new").touch),
        "write": errno_of(os.open, path, os.O_WRONLY),
        "truncate": errno_of(os.truncate, path, 0),
        "unlink": errno_of(os.unlink, path),
        "mkdir": errno_of(os.mkdir, place.path / "d"),
        "rename": errno_of(os.rename, path, place.path / "other"),
        "chmod": errno_of(os.chmod, path, 0o600),
        "xattr": errno_of(os.setxattr, path, "trusted.a", b""),
        "link": errno_of(os.link, path, place.path / "other"),
    }
    small.remount("rw")
    assert refused == dict.fromkeys(refused, errno.EROFS)
    (place.path / "new").touch()


def test_a_file_beyond_the_size_limit_of_the_process(place: Place) -> None:
    actor = place.actor()
    assert actor(corner_acts.write_beyond_limit, str(place.path / "file"), 10_000) == errno.EFBIG
    assert (place.path / "file").stat().st_size == 10_000


# --- changes behind the mount


def test_what_is_made_behind_the_mount_is_found(any_place: Place) -> None:
    assert not (any_place.path / "missing").exists()
    (any_place.source / "new").write_text("content")
    assert (any_place.path / "new").read_text() == "content"
    assert os.listdir(any_place.path) == ["new"]


def test_what_is_taken_away_behind_the_mount_is_an_error_and_no_more(any_place: Place) -> None:
    (any_place.path / "d").mkdir()
    (any_place.path / "d" / "file").write_text("content")
    fd = os.open(any_place.path / "d" / "file", os.O_RDWR)
    directory = os.open(any_place.path / "d", os.O_RDONLY)
    shutil.rmtree(any_place.source / "d")
    assert os.read(fd, 100) == b"content"
    os.write(fd, b" and more")
    gone = (errno.ENOENT, errno.ESTALE)
    assert errno_of(os.open, "file", os.O_RDONLY, dir_fd=directory) in (
        None,
        *gone,
    )  # the kernel may still know the name
    assert errno_of(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=directory) in gone
    assert errno_of(os.listdir, any_place.path / "d" / "file") in (*gone, errno.ENOTDIR)
    os.close(fd)
    os.close(directory)
    (any_place.path / "again").mkdir()
    (any_place.source / "d").mkdir()
    (any_place.source / "d" / "file").write_text("another")
    assert (any_place.path / "again").is_dir()


def test_a_file_replaced_behind_the_mount_does_not_mix_with_the_old_one(any_place: Place) -> None:
    path, behind = any_place.path / "file", any_place.source / "file"
    path.write_bytes(b"old" * 1000)
    old = os.open(path, os.O_RDWR)
    (any_place.source / "next").write_bytes(b"new!" * 1000)
    (any_place.source / "next").rename(behind)
    os.pwrite(old, b"OLD", 0)
    assert behind.read_bytes() == b"new!" * 1000
    assert os.pread(old, 6, 0) == b"OLDold"
    os.close(old)


def test_turmoil_behind_the_mount_never_crashes(place: Place) -> None:
    """Names change their type and meaning while the mount is used; every answer is a result or an OSError."""
    turmoil = [place.actor().start(corner_acts.turmoil, str(place.source), seed, 1500) for seed in range(2)]
    users = [place.actor().start(corner_acts.turmoil, str(place.path), seed, 700) for seed in range(2, 4)]
    for pending in turmoil + users:
        pending.result()
    shutil.rmtree(place.source)
    assert errno_of(os.listdir, place.path) in (None, errno.ENOENT, errno.ESTALE)
    (place.path.parent / "alive").write_text("alive")
    assert (place.source.parent / "alive").read_text() == "alive"


@pytest.mark.skipif(NATIVE, reason="plain directories have no daemon")
def test_a_second_pinfs_on_the_same_source_is_refused(place: Place) -> None:
    assert place.mount
    base = mounts.new_base("tmpfs")
    try:
        with pytest.raises(mounts.DaemonError) as refusal:
            mounts.Mount(base, source=place.mount.source)
        assert str(place.mount.source) in str(refusal.value)
    finally:
        shutil.rmtree(base)


@pytest.mark.skipif(NATIVE, reason="plain directories have no daemon")
@pytest.mark.parametrize("second", ["a directory", "a directory/below", "."])
def test_a_second_pinfs_inside_the_source_or_around_it_is_refused(new_place: NewPlace, second: str) -> None:
    base, other = mounts.new_base(), mounts.new_base()
    (base / "a directory" / "below").mkdir(parents=True)
    first = new_place(source=base / "a directory")
    try:
        with pytest.raises(mounts.DaemonError, match="another pinfs already serves"):
            mounts.Mount(other, source=base / second)
        assert first.mount
        first.mount.stop()
        mounts.Mount(other, source=base / second).stop()
    finally:
        shutil.rmtree(base)
        shutil.rmtree(other)


@pytest.mark.skipif(NATIVE, reason="plain directories have no daemon")
def test_sources_beside_each_other_are_served(new_place: NewPlace) -> None:
    base = mounts.new_base()
    for name in ("one", "one more"):
        (base / name).mkdir()
        assert os.listdir(new_place(source=base / name).path) == []
    shutil.rmtree(base)


def test_owners_of_what_was_made_before_the_mount_are_kept(new_place: NewPlace) -> None:
    base = mounts.new_base("tmpfs")
    (base / "file").write_text("hers")
    os.chown(base / "file", ALICE, ALICE)
    place = new_place(source=base)
    assert (place.path / "file").stat().st_uid == ALICE
    if not NATIVE:
        assert place.mount
        place.mount.stop()
        shutil.rmtree(base)
