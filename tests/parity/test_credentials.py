"""Operations happen with the caller's uid, gid and groups; what the backing denies, the mount denies (SPEC 11)."""

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support import acts

from parity import corner_acts
from parity.calls import become
from parity.grammar import acl
from parity.places import ALICE, BOB, NATIVE, SHARED_GROUP, Place

CAPABILITY = struct.pack(
    "<5I", 0x02000001, 1 << 10, 0, 0, 0
)  # cap_net_bind_service=ep (capabilities(7), struct vfs_cap_data)


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def make(path: Path, owner: int, group: int, permissions: int, data: bytes = b"data") -> Path:
    """A file as root wants it."""
    path.write_bytes(data)
    os.chown(path, owner, group)
    path.chmod(permissions)
    return path


def test_what_a_user_makes_is_the_users(any_place: Place) -> None:
    alice, root = any_place.alice(), any_place.path
    alice(os.umask, 0o027)
    os.close(os.open(root / "unused", os.O_CREAT))
    alice(os.open, str(root / "file"), os.O_CREAT, 0o666)
    alice(os.mkdir, str(root / "dir"), 0o777)
    alice(os.mkfifo, str(root / "fifo"), 0o666)
    alice(os.symlink, "target", str(root / "link"))
    alice(os.open, str(root), os.O_TMPFILE | os.O_RDWR, 0o666)
    for name, expected in {
        "file": "-rw-r-----",
        "dir": "drwxr-x---",
        "fifo": "prw-r-----",
        "link": "lrwxrwxrwx",
    }.items():
        for seen in (root / name, any_place.source / name):
            facts = seen.lstat()
            assert (facts.st_uid, facts.st_gid, stat.filemode(facts.st_mode)) == (ALICE, ALICE, expected)


def test_a_set_gid_directory_hands_down_its_group(any_place: Place) -> None:
    directory = any_place.path / "d"
    directory.mkdir()
    os.chown(directory, 0, 43000)
    directory.chmod(0o2777)
    alice = any_place.alice()
    alice(os.open, str(directory / "file"), os.O_CREAT, 0o2775)
    alice(os.mkdir, str(directory / "sub"), 0o755)
    file, sub = (directory / "file").stat(), (directory / "sub").stat()
    assert (file.st_gid, stat.filemode(file.st_mode)) == (43000, "-rwxr-xr-x")  # not her group: no set-gid for her
    assert (sub.st_gid, sub.st_mode & stat.S_ISGID) == (43000, stat.S_ISGID)


def test_supplementary_groups_open_doors(any_place: Place) -> None:
    file = make(any_place.path / "file", 0, SHARED_GROUP, 0o640)
    directory = any_place.path / "d"
    directory.mkdir()
    os.chown(directory, 0, SHARED_GROUP)
    directory.chmod(0o770)
    alice, alone = any_place.alice(), any_place.actor(ALICE, ALICE)
    assert alice(acts.read_file, str(file)) == b"data"
    assert alone.errno(acts.read_file, str(file)) == errno.EACCES
    alice(acts.write_file, str(directory / "new"), b"")
    assert alone.errno(os.listdir, str(directory)) == errno.EACCES
    assert alone.errno(os.unlink, str(directory / "new")) == errno.EACCES
    alice(os.chown, str(directory / "new"), -1, SHARED_GROUP)
    assert alice.errno(os.chown, str(directory / "new"), -1, 43000) == errno.EPERM


def test_the_last_of_many_groups_counts(any_place: Place) -> None:
    file = make(any_place.path / "file", 0, 50299, 0o640)
    member = any_place.actor(ALICE, ALICE, tuple(range(50000, 50300)))
    assert member(acts.read_file, str(file)) == b"data"


def test_groups_that_change_count_at_once(any_place: Place) -> None:
    file = make(any_place.path / "file", 0, SHARED_GROUP, 0o640)
    actor = any_place.actor()
    actor(os.setegid, 44444)
    actor(os.setgroups, [])
    actor(os.seteuid, ALICE)
    assert actor.errno(acts.read_file, str(file)) == errno.EACCES
    actor(os.seteuid, 0)
    actor(os.setgroups, [SHARED_GROUP])
    actor(os.seteuid, ALICE)
    assert actor(acts.read_file, str(file)) == b"data"


@pytest.mark.parametrize("cut", ["write", "truncate", "ftruncate", "chown", "fallocate", "open_trunc", "copy"])
def test_set_id_bits_fall_when_an_ordinary_user_changes_the_file(any_place: Place, cut: str) -> None:
    file = make(any_place.path / "program", ALICE, ALICE, 0o6777)
    who = any_place.alice() if cut == "chown" else any_place.bob()
    path = str(file)
    fd = who(os.open, path, os.O_RDWR)
    cuts: dict[str, Callable[[], object]] = {
        "write": lambda: who(os.write, fd, b"x"),
        "truncate": lambda: who(os.truncate, path, 1),
        "ftruncate": lambda: who(os.ftruncate, fd, 1),
        "chown": lambda: who(os.chown, path, -1, SHARED_GROUP),
        "fallocate": lambda: who(corner_acts.fallocate, fd, 0, 0, 8192),
        "open_trunc": lambda: who(os.open, path, os.O_WRONLY | os.O_TRUNC),
        "copy": lambda: who(os.copy_file_range, fd, fd, 1, 0, 2),
    }
    cuts[cut]()
    assert mode(file) == mode(any_place.source / "program") == "-rwxrwxrwx"


def test_set_id_bits_and_writers_who_may_keep_them(any_place: Place) -> None:
    """Root keeps them on a plain directory. Through passthrough the kernel writes as anybody: they fall (limits.md)."""
    file = make(any_place.path / "program", ALICE, ALICE, 0o6777)
    fd = os.open(file, os.O_RDWR)
    os.ftruncate(fd, 1)
    assert mode(file) == "-rwsrwsrwx"
    os.write(fd, b"x")
    os.close(fd)
    assert mode(file) in ("-rwsrwsrwx", "-rwxrwxrwx")
    assert mode(file) == mode(any_place.source / "program")


@pytest.mark.parametrize("bits", [0o4755, 0o2755])
def test_a_chown_of_nothing_drops_the_set_id_bits_of_nobody_else(any_place: Place, bits: int) -> None:
    file = make(any_place.path / "program", ALICE, ALICE, bits)
    before = mode(file)
    assert any_place.bob().errno(os.chown, str(file), -1, -1) == errno.EPERM
    assert mode(file) == mode(any_place.source / "program") == before
    any_place.alice()(os.chown, str(file), -1, -1)
    assert mode(file) == mode(any_place.source / "program") == "-rwxr-xr-x"


@pytest.mark.parametrize(("group", "shown"), [(ALICE, "-rw-r-S---"), (BOB, "-rw-r-----")])
def test_an_acl_costs_the_set_group_id_bit_of_a_group_that_its_owner_is_not_in(
    any_place: Place, group: int, shown: str
) -> None:
    file = make(any_place.path / "file", ALICE, group, 0o2640)
    any_place.alice()(os.setxattr, str(file), "system.posix_acl_access", acl(4, owner=6, group=4, mask=4, other=0))
    assert mode(file) == mode(any_place.source / "file") == shown


@pytest.mark.parametrize(("by_alice", "group"), [(False, BOB), (True, ALICE), (True, SHARED_GROUP), (True, BOB)])
@pytest.mark.parametrize("has_one", [True, False])
def test_removing_an_acl_costs_the_set_group_id_bit_where_it_does_on_the_backing(
    any_place: Place, by_alice: bool, group: int, has_one: bool
) -> None:
    """On tmpfs, of a group that the caller is not in."""
    remover = any_place.alice() if by_alice else any_place.actor()
    modes = []
    for number, place in enumerate((any_place.path, any_place.source)):
        file = make(place / f"{number}", ALICE, group, 0o2755)
        if has_one:
            os.setxattr(file, "system.posix_acl_access", acl(4, owner=7, group=5, mask=5, other=5))
        remover.errno(os.removexattr, str(file), "system.posix_acl_access")
        modes.append(mode(any_place.source / file.name))
    assert modes[0] == modes[1]


@pytest.mark.skipif(NATIVE, reason="plain directories refuse it there as well")
def test_but_while_it_is_open_for_writing(any_place: Place) -> None:
    """There it could be what drops them for a write (docs/promises.md)."""
    file = make(any_place.path / "program", ALICE, ALICE, 0o4755)
    with file.open("r+b"):
        any_place.bob()(os.chown, str(file), -1, -1)
    assert mode(file) == "-rwxr-xr-x"


def test_writing_drops_file_capabilities(any_place: Place) -> None:
    file = make(any_place.path / "program", ALICE, ALICE, 0o777)
    os.setxattr(file, "security.capability", CAPABILITY)
    assert "security.capability" in os.listxattr(file)
    fd = any_place.alice()
    fd(acts.write_file, str(file), b"changed")
    assert "security.capability" not in os.listxattr(any_place.source / "program")
    assert "security.capability" not in os.listxattr(file)


def test_setting_a_foreign_group_drops_set_gid(any_place: Place) -> None:
    file = make(any_place.path / "file", ALICE, 43000, 0o755)
    any_place.alice()(os.chmod, str(file), 0o2755)
    assert mode(file) == "-rwxr-xr-x"


def test_only_the_owner_changes_what_is_the_owners(any_place: Place) -> None:
    path = str(make(any_place.path / "file", ALICE, SHARED_GROUP, 0o666))
    bob = any_place.bob()
    refused = {
        "chmod": bob.errno(os.chmod, path, 0o777),
        "chown": bob.errno(os.chown, path, BOB, -1),
        "times": bob.errno(os.utime, path, (1, 1)),
        "trusted": bob.errno(os.setxattr, path, "trusted.x", b""),
    }
    assert refused == dict.fromkeys(refused, errno.EPERM)
    bob(os.utime, path, None)  # now: whoever may write may do that


def test_sticky_directories(any_place: Place) -> None:
    directory = any_place.path / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    alice, bob = any_place.alice(), any_place.bob()
    alice(acts.write_file, str(directory / "hers"), b"")
    bob(acts.write_file, str(directory / "his"), b"")
    assert bob.errno(os.unlink, str(directory / "hers")) == errno.EPERM
    assert bob.errno(os.rename, str(directory / "hers"), str(directory / "x")) == errno.EPERM
    assert bob.errno(os.rename, str(directory / "his"), str(directory / "hers")) == errno.EPERM
    assert bob.errno(corner_acts.rename, str(directory / "his"), str(directory / "hers"), "EXCHANGE") == errno.EPERM
    alice(os.unlink, str(directory / "hers"))


def test_default_acls_and_umask(any_place: Place) -> None:
    """A default ACL takes the place of the umask (acl(5)). What the backing itself makes of it must come out."""
    found: list[list[object]] = []
    for root in (any_place.path, any_place.source):
        directory = root / f"acl-{len(found)}"
        directory.mkdir()
        directory.chmod(0o777)
        os.setxattr(directory, "system.posix_acl_default", acl(user=6, owner=7, group=5, mask=6, other=1))
        alice = any_place.alice()
        alice(os.umask, 0o077)
        alice(os.open, str(directory / "file"), os.O_CREAT, 0o664)
        alice(os.mkdir, str(directory / "sub"), 0o775)
        seen = [any_place.path / directory.name / name for name in ("file", "sub")]
        found.append([(mode(p), sorted((n, os.getxattr(p, n)) for n in os.listxattr(p))) for p in seen])
    assert found[0] == found[1]
    assert mode(any_place.path / "acl-0" / "file") == "-rw-rw----"


def test_acls_are_obeyed(any_place: Place) -> None:
    file = make(any_place.path / "file", 0, 0, 0o600)
    alice, bob = any_place.alice(), any_place.bob()
    assert bob.errno(acts.read_file, str(file)) == errno.EACCES
    os.setxattr(file, "system.posix_acl_access", acl(user=4, owner=6, group=0, mask=4, other=0))
    assert bob(acts.read_file, str(file)) == b"data"  # by name
    assert alice(acts.read_file, str(file)) == b"data"  # by group
    assert bob.errno(os.open, str(file), os.O_WRONLY) == errno.EACCES
    assert mode(file) == "-rw-r-----"
    file.chmod(0o600)  # closes the mask
    assert bob.errno(acts.read_file, str(file)) == errno.EACCES


def test_unreadable_stays_unreadable_when_others_have_just_looked(any_place: Place) -> None:
    secret = any_place.path / "private" / "inner" / "secret"
    secret.parent.mkdir(parents=True)
    make(secret, 0, 0, 0o600)
    (any_place.path / "private").chmod(0o700)
    assert secret.read_bytes() == b"data"
    alice = any_place.alice()
    for call in (os.stat, os.listdir, os.readlink, acts.read_file, os.listxattr):
        assert alice.errno(call, str(secret)) == errno.EACCES
    (any_place.path / "private").chmod(0o755)
    assert alice.errno(acts.read_file, str(secret)) == errno.EACCES
    alice(os.stat, str(secret))
    (any_place.path / "private").chmod(0o700)
    assert alice.errno(os.stat, str(secret)) == errno.EACCES


def test_an_open_file_outlives_its_permissions(any_place: Place) -> None:
    file = make(any_place.path / "file", ALICE, ALICE, 0o600)
    alice = any_place.alice()
    fd = alice(os.open, str(file), os.O_RDWR)
    os.chown(file, 0, 0)
    file.chmod(0)
    assert alice(os.pread, fd, 100, 0) == b"data"
    assert alice(os.pwrite, fd, b"more", 0) == 4
    assert alice.errno(os.open, str(file), os.O_RDONLY) == errno.EACCES


def test_a_read_only_handle_does_not_write(any_place: Place) -> None:
    file = make(any_place.path / "file", ALICE, ALICE, 0o600)
    fd = os.open(file, os.O_RDONLY)
    for call, arguments in ((os.write, (b"x",)), (os.pwrite, (b"x", 0))):
        with pytest.raises(OSError) as failure:
            call(fd, *arguments)
        assert failure.value.errno == errno.EBADF
    os.close(fd)


def test_root_without_its_capabilities_is_nobody_special(any_place: Place) -> None:
    file = make(any_place.path / "file", ALICE, ALICE, 0o600)
    actor = any_place.actor()
    actor(corner_acts.drop_capabilities)
    assert actor.errno(acts.read_file, str(file)) == errno.EACCES
    assert actor.errno(os.chown, str(file), 0, 0) == errno.EPERM
    assert actor.errno(os.chmod, str(file), 0o777) == errno.EPERM


def test_credentials_are_those_of_the_thread(any_place: Place) -> None:
    """A server that takes on its client's credentials in one thread (setfsuid(2)) gets that client's rights there."""
    file = make(any_place.path / "file", 0, 0, 0o600)
    actor = any_place.actor()
    assert actor(corner_acts.errno_as, BOB, "open", str(file)) == errno.EACCES
    assert actor(acts.read_file, str(file)) == b"data"


def test_becoming_another_user_leaves_nothing_behind(any_place: Place) -> None:
    directory = any_place.path / "d"
    directory.mkdir(mode=0o700)
    actor = any_place.actor()
    actor(os.listdir, str(directory))
    actor(become, BOB, SHARED_GROUP, [])
    assert actor.errno(os.listdir, str(directory)) == errno.EACCES
