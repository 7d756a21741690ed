"""A hostile user reaches nothing outside the source and nothing that the backing denies (SPEC 11)."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import acts

from parity import corner_acts
from parity.calls import checked, libc
from parity.places import Place


@pytest.fixture
def outside(place: Place) -> Iterator[Path]:
    """A directory beside the source that only root may enter: the daemon could, its users must not."""
    path = place.source.parent.parent / f"outside-{place.path.name}"
    path.mkdir(mode=0o700)
    (path / "secret").write_text("not for you")
    yield path


def untouched(outside: Path) -> bool:
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "not for you"


def test_symlinks_are_resolved_by_the_caller_not_by_the_daemon(place: Place, outside: Path) -> None:
    link = place.path / "link"
    link.symlink_to(outside)
    alice = place.alice()
    alice(os.symlink, str(outside), str(place.path / "hers"))
    for path in (link / "secret", place.path / "hers" / "secret"):
        for call in (acts.read_file, os.stat, os.listxattr, os.unlink):
            assert alice.errno(call, str(path)) == errno.EACCES
        assert alice.errno(acts.write_file, str(path), b"x") == errno.EACCES
        assert alice.errno(os.truncate, str(path), 0) == errno.EACCES
    assert untouched(outside)


def test_changes_of_a_symlink_do_not_go_through_it(place: Place, outside: Path) -> None:
    target, link = outside / "secret", place.path / "link"
    before = target.stat()
    link.symlink_to(target)
    os.lchown(link, 41001, 41001)
    os.utime(link, (1, 1), follow_symlinks=False)
    os.setxattr(link, "trusted.mark", b"x", follow_symlinks=False)
    checked(libc.linkat(-100, os.fsencode(link), -100, os.fsencode(place.path / "hard"), 0))
    os.rename(link, place.path / "moved")
    os.unlink(place.path / "moved")
    after = target.stat()
    assert (after.st_ctime_ns, after.st_nlink, os.listxattr(target)) == (before.st_ctime_ns, 1, [])
    assert (place.path / "hard").lstat().st_uid == 41001


def test_a_symlink_is_never_opened(place: Place, outside: Path) -> None:
    (place.path / "link").symlink_to(outside / "secret")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_CREAT | os.O_WRONLY, os.O_TRUNC | os.O_WRONLY):
        with pytest.raises(OSError) as failure:
            os.open(place.path / "link", flags | os.O_NOFOLLOW)
        assert failure.value.errno == errno.ELOOP
    with pytest.raises(FileExistsError):
        os.open(place.path / "link", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileExistsError):
        os.mkdir(place.path / "link")
    assert untouched(outside)


def test_magic_links_are_the_callers(place: Place) -> None:
    """/proc/self in a link is the process that follows it. If the daemon followed it, it would be the daemon."""
    (place.path / "status").symlink_to("/proc/self/status")
    actor = place.actor()
    assert f"\nPid:\t{actor.pid}\n".encode() in actor(acts.read_file, str(place.path / "status"))
    (place.path / "root").symlink_to("/proc/1/root")
    assert place.alice().errno(os.listdir, str(place.path / "root")) == errno.EACCES


def test_dots_end_at_the_mount(place: Place) -> None:
    top = place.path.parent
    fd = os.open(top, os.O_RDONLY)
    above = os.open("..", os.O_RDONLY, dir_fd=fd)
    assert os.path.samestat(os.fstat(above), top.parent.stat())
    assert (place.path / ".." / "..").resolve() == top.parent
    os.close(above)
    os.close(fd)


@pytest.mark.parametrize("side", ["through the mount", "behind it"])
def test_a_directory_swapped_with_a_link_leads_nowhere(place: Place, outside: Path, side: str) -> None:
    """The classic race: look up the directory, swap it with a link to outside, use what was looked up."""
    swapping = place.path if side == "through the mount" else place.source
    (swapping / "door").mkdir()
    (swapping / "door").chmod(0o777)
    (swapping / "link").symlink_to(outside)
    attacker, swapper = place.alice(), place.actor()
    swaps = swapper.start(corner_acts.swap_often, str(swapping / "door"), str(swapping / "link"), 1500)
    reached = attacker(corner_acts.try_reach, str(place.path / "door"), 400)
    swaps.result()
    assert [what for what in reached if "secret" in what or "not for you" in what] == []
    assert untouched(outside)


def test_a_file_swapped_with_a_link_is_not_written_through(place: Place, outside: Path) -> None:
    """Behind the mount, where the kernel of the mount cannot know."""
    (place.source / "file").write_text("mine")
    (place.source / "file").chmod(0o666)
    (place.source / "link").symlink_to(outside / "secret")
    attacker, swapper = place.alice(), place.actor()
    swaps = swapper.start(corner_acts.swap_often, str(place.source / "file"), str(place.source / "link"), 1500)
    attacker(corner_acts.try_write, str(place.path / "file"), 400)
    swaps.result()
    assert untouched(outside)


def test_nobody_else_sees_into_a_private_directory_through_a_kept_handle(place: Place) -> None:
    """A handle that was got while it was allowed shows that directory, and not what was put in its place."""
    (place.path / "open").mkdir(mode=0o777)
    (place.path / "private").mkdir(mode=0o700)
    (place.path / "private" / "secret").write_text("not for you")
    alice = place.alice()
    fd = alice(os.open, str(place.path / "open"), os.O_RDONLY)
    corner_acts.rename(str(place.path / "open"), str(place.path / "private"), "EXCHANGE")
    assert alice(os.listdir, fd) == []
    assert alice.errno(os.listdir, str(place.path / "open")) == errno.EACCES
