"""Load that takes minutes: pytest -m long tests/parity

PINFS_LONG_SECONDS (default 30) is how long a load works. Needs the Debian packages stress-ng, fio, dbench, bonnie++ and
postgresql. Every test ends with the daemon having written nothing of level warning.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pinfs
from parity.places import NATIVE, NewPlace, Place

pytestmark = pytest.mark.long
SECONDS = os.environ.get("PINFS_LONG_SECONDS", "30")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
STRESSORS = [
    "access",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dup",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "hdd",
    "inode-flags",
    "io",
    "iomix",
    "link",
    "lockf",
    "lockofd",
    "mknod",
    "mmapaddr",
    "mmapfork",
    "msync",
    "open",
    "readahead",
    "rename",
    "revio",
    "seek",
    "sendfile",
    "splice",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
]
"""The file system stressors of stress-ng 0.15 (Debian 12). Not verity: an ioctl of the backing (promises.md)."""


def run(*command: str | Path, cwd: Path, user: str | None = None, limit_s: int = 200) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        [*command], cwd=cwd, user=user, capture_output=True, text=True, timeout=limit_s, check=False, env=_environment()
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def _environment() -> dict[str, str]:
    more = ":".join(map(str, POSTGRES))
    return {"PATH": f"{os.environ['PATH']}:{more}", "LC_ALL": "C", "HOME": "/nonexistent"}


@pytest.fixture(params=["tmpfs", "disk"])
def own_place(new_place: NewPlace, request: pytest.FixtureRequest) -> Iterator[Place]:
    place = new_place(request.param)
    yield place
    if place.mount:
        place.mount.check_log()


@pytest.mark.parametrize("stressor", STRESSORS)
def test_stress_ng(new_place: NewPlace, stressor: str) -> None:
    place = new_place("disk")
    time = str(max(int(SECONDS) // 10, 2))
    run("stress-ng", f"--{stressor}", "2", "--verify", "--timeout", time, "--temp-path", place.path, cwd=place.path)
    if place.mount:
        place.mount.check_log()


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio --direct=1", "io_uring --size=4m"])
def test_fio_reads_back_what_it_wrote(own_place: Place, engine: str) -> None:
    """io_uring with less: the kernel makes it slow on a mount (promises.md)."""
    job = "--name=v --rw=randrw --bs=4k --size=64m --nrfiles=4 --verify=crc32c --do_verify=1 --verify_fatal=1"
    options = f"{job} --fallocate=none --loops=2 --output-format=json --ioengine={engine}"
    report = json.loads(run("fio", *options.split(), cwd=own_place.path))
    assert [job["error"] for job in report["jobs"]] == [0]


def test_dbench(own_place: Place) -> None:
    loads = next(Path("/usr/share/dbench").glob("client.txt*"))
    output = run("dbench", "-c", loads, "-t", SECONDS, "-D", own_place.path, "4", cwd=own_place.path)
    assert "Throughput" in output
    assert not re.search("failed (for|on) ", output)


def test_bonnie(own_place: Place) -> None:
    assert "nobody" in run("id", "-nu", cwd=Path("/"), user="nobody")
    run("bonnie++", "-q", "-d", own_place.path, "-r", "64", "-s", "128", "-n", "4", "-u", "root", cwd=own_place.path)


def test_postgres_while_its_files_are_pinned(new_place: NewPlace) -> None:
    """pgbench works, its files are pinned, attempts to cut them are refused, and pg_amcheck finds nothing."""
    place = new_place("disk")
    data, sockets = place.path / "data", place.path / "sockets"
    for directory in (data, sockets):
        directory.mkdir()
        shutil.chown(directory, "postgres", "postgres")
    data.chmod(0o700)
    run("initdb", "-D", data, "-k", "--auth=trust", cwd=data, user="postgres")
    server = ("pg_ctl", "-D", data, "-o", f"-c listen_addresses= -c unix_socket_directories={sockets}", "-w")
    run(*server, "-l", place.path / "sockets" / "log", "start", cwd=data, user="postgres")
    try:
        _bench(data, sockets)
    finally:
        run(*server, "-m", "fast", "stop", cwd=data, user="postgres")
    run("pg_checksums", "-D", data, "--check", cwd=data, user="postgres")
    if place.mount:
        place.mount.check_log()


def _bench(data: Path, sockets: Path) -> None:
    where = ("-h", sockets, "-U", "postgres")
    run("pgbench", *where, "-i", "-s", "5", "-q", "postgres", cwd=sockets, user="postgres")
    table = _sql(sockets, "SELECT pg_relation_filepath('pgbench_accounts')")
    file = data / table
    if NATIVE:
        run("pgbench", *where, "-c", "4", "-T", SECONDS, "postgres", cwd=sockets, user="postgres")
    else:
        with pinfs.pin(file, 0, 0):
            run("pgbench", *where, "-c", "4", "-T", SECONDS, "postgres", cwd=sockets, user="postgres")
            with pytest.raises(OSError, match="busy"):
                os.truncate(file, 8192)
    _sql(sockets, "CREATE EXTENSION amcheck")
    assert run("pg_amcheck", *where, "--heapallindexed", "postgres", cwd=sockets, user="postgres") == ""


def _sql(sockets: Path, statement: str) -> str:
    return run("psql", "-h", sockets, "-U", "postgres", "-Atc", statement, cwd=sockets, user="postgres").strip()
