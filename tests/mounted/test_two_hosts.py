"""Two mounts of one source, as two hosts of a cluster have them: locks, seals and caches. What pins do between them is
for tests/cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.mounts import DaemonError, Mount

from pinfs.fs.seallist import SealedFile, SealList, list_path
from pinfs.linux.filehandles import handle_of
from pinfs.linux.inodeflags import APPEND, get_flags, set_flags

NO_ETCD = "cluster=127.0.0.1:1"
UNREACHABLE = r"cluster|is mounted on"
"""Matches all that a daemon says of a cluster that it cannot reach, and what each daemon says."""

Pair = tuple[Mount, Mount]


def started(stack: ExitStack, base: Path, host: str, *options: str) -> Mount:
    (base / host).mkdir()
    mount = Mount(base / host, [NO_ETCD, f"cluster_host={host}", *options], source=base / "source")
    mount.expect_log(UNREACHABLE)
    return stack.enter_context(mount)


@pytest.fixture
def hosts(base: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    (base / "source").mkdir()
    options = getattr(request, "param", ())
    with ExitStack() as stack:
        yield started(stack, base, "a", *options), started(stack, base, "b", *options)
    shutil.rmtree(base / "source")


def test_what_one_host_does_the_other_sees_at_once(hosts: Pair) -> None:
    a, b = (mount.path for mount in hosts)
    assert not (b / "new").exists()
    assert os.listdir(b) == os.listdir(a)
    (a / "new").write_text("1")
    assert (b / "new").read_text() == "1"
    assert "new" in os.listdir(b)
    with (a / "new").open("a") as file:
        file.write("234")
    assert (b / "new").stat().st_size == 4
    assert (b / "new").read_text() == "1234"
    (a / "new").chmod(0o640)
    (a / "new").rename(a / "newer")
    assert (b / "newer").stat().st_mode & 0o777 == 0o640
    assert not (b / "new").exists()


@pytest.mark.parametrize("hosts", [("passthrough=off",)], indirect=True)
def test_pages_that_a_host_has_cached_do_not_outlast_a_change_of_the_same_size(hosts: Pair) -> None:
    """Also where times of the file tell nothing: they may be of another host's clock."""
    a, b = (mount.path for mount in hosts)
    (a / "file").write_text("one")
    times = (a / "file").stat()
    for text in ("two", "six", "ten"):
        assert len((b / "file").read_text()) == 3
        with (a / "file").open("r+") as file:
            file.write(text)
        os.utime(a / "file", ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (b / "file").read_text() == text


def test_no_host_seals(hosts: Pair) -> None:
    for mount in hosts:
        status = mount.status()
        assert not status["seal"]
        assert "cluster=..." in status["seal_unavailable_because"]


def test_hosts_leave_the_list_of_each_other_alone(base: Path) -> None:
    """A daemon without cluster was killed: the first host lifts its seals, and the second one finds nothing to do."""
    source = base / "source"
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    file = os.open(source / "sealed", os.O_RDWR | os.O_CREAT)
    st = os.fstat(file)
    seals = SealList(list_path(fd), str(source))
    seals.add(SealedFile(st.st_dev, st.st_ino, handle_of(file), b"sealed"))
    try:
        set_flags(file, get_flags(file) | APPEND)
    except OSError as e:
        pytest.skip(f"no seals here: {e}")
    try:
        with ExitStack() as stack:
            for host in ("a", "b"):
                started(stack, base, host)
                assert not get_flags(file) & APPEND
        assert not list_path(fd).exists()
    finally:
        set_flags(file, get_flags(file) & ~APPEND)
        seals.close()
        os.close(file)
        os.close(fd)


def test_a_host_and_a_daemon_alone_exclude_each_other(base: Path, hosts: Pair) -> None:
    (base / "alone").mkdir()
    with pytest.raises(DaemonError, match=r"already serves .*, with cluster="):
        Mount(base / "alone", source=base / "source")
    hosts[0].stop()
    with pytest.raises(DaemonError, match=r"already serves .*, with cluster="):
        Mount(base / "alone", source=base / "source")
    hosts[1].stop()
    with Mount(base / "alone", source=base / "source"):
        (base / "c").mkdir()
        with pytest.raises(DaemonError, match=r"already serves .*, without cluster="):
            Mount(base / "c", [NO_ETCD, "cluster_host=c"], source=base / "source")


@pytest.mark.parametrize("hosts", [("attr_timeout=5",)], indirect=True)
def test_a_timeout_of_the_operator_wins_with_a_warning(hosts: Pair) -> None:
    for mount in hosts:
        assert "attr_timeout: what other hosts change may go unnoticed for 5 seconds" in mount.log()
        mount.expect_log("attr_timeout: ")
