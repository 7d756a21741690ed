"""Real programs do their work on the mount. What they need is in scripts/install-needs.

Those that take minutes are in tests/parity/test_long.py.
"""

import filecmp
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path

import pytest

OWNER, GROUP = 41001, 42000
ACL = "user:41002:rwx"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a command, which must succeed. Its absence is an error: nothing is left out silently."""
    if not shutil.which(str(command[0])):
        pytest.fail(f"{command[0]} is not installed (scripts/install-needs)")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run([*command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def furnished(tmp_path: Path) -> Path:
    """A native tree with one of everything that archivers can carry."""
    tree = tmp_path / "tree"
    (tree / "sub" / "deeper").mkdir(parents=True)
    (tree / "empty").mkdir(mode=0o1770)
    (tree / "file").write_bytes(os.urandom(300_000))
    os.link(tree / "file", tree / "sub" / "hard link")
    (tree / "symlink").symlink_to("sub/deeper")
    os.mkfifo(tree / "fifo")
    (tree / "sub" / "program").write_text("#!/bin/sh\necho runs\n")
    os.chown(tree / "sub" / "program", OWNER, GROUP)
    (tree / "sub" / "program").chmod(0o6755)
    with (tree / "sparse").open("wb") as sparse:
        sparse.seek(50 << 20)
        sparse.write(b"end")
    os.setxattr(tree / "file", "user.note", b"kept")
    run("setfacl", "-m", ACL, tree / "sub")
    os.utime(tree / "file", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    return tree


def listing(tree: Path) -> dict[str, tuple[object, ...]]:
    """What must survive a copy, by relative path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [tree, *tree.rglob("*")]:
        st = path.lstat()
        times = st.st_mtime_ns if stat.S_ISREG(st.st_mode) else 0  # rsync leaves those of a FIFO
        attributes = (
            sorted((name, os.getxattr(path, name)) for name in os.listxattr(path)) if not path.is_symlink() else []
        )
        links = st.st_nlink if stat.S_ISREG(st.st_mode) else 0
        found[str(path.relative_to(tree))] = (st.st_mode, st.st_uid, st.st_gid, times, links, attributes)
    return found


def assert_same(copy: Path, original: Path) -> None:
    assert listing(copy) == listing(original)
    for path in original.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert filecmp.cmp(path, copy / path.relative_to(original), shallow=False)
    assert (copy / "sparse").stat().st_blocks < 10_000


def test_tar(each_dir: Path, furnished: Path, tmp_path: Path) -> None:
    with_all = ("--xattrs", "--acls", "--sparse", "--numeric-owner")
    run("tar", *with_all, "-C", furnished, "-cf", tmp_path / "in.tar", ".")
    (each_dir / "copy").mkdir()
    run("tar", *with_all, "-C", each_dir / "copy", "-xpf", tmp_path / "in.tar")
    assert_same(each_dir / "copy", furnished)
    run("tar", *with_all, "-C", each_dir / "copy", "-cf", tmp_path / "out.tar", ".")
    run("tar", *with_all, "-C", furnished, "-df", tmp_path / "out.tar")


def test_rsync(each_dir: Path, furnished: Path) -> None:
    run("rsync", "-aHAXS", "--numeric-ids", f"{furnished}/", each_dir / "copy")
    assert_same(each_dir / "copy", furnished)
    again = run(
        "rsync", "-aHAXSn", "--numeric-ids", "--itemize-changes", "--checksum", f"{furnished}/", each_dir / "copy"
    )
    assert again == ""


def test_cp(each_dir: Path, furnished: Path) -> None:
    run("cp", "-a", "--sparse=always", furnished, each_dir / "copy")
    assert_same(each_dir / "copy", furnished)
    run("cp", "-a", "--reflink=auto", each_dir / "copy", each_dir / "copy of the copy")
    assert_same(each_dir / "copy of the copy", furnished)
    run("diff", "-r", "--no-dereference", each_dir / "copy" / "sub", furnished / "sub")


def test_df_du_and_find(each_dir: Path, furnished: Path) -> None:
    run("cp", "-a", furnished, each_dir / "copy")
    run("sync")
    assert "fuse.pinfs" in run("df", "-T", each_dir)
    blocks = sum(
        path.lstat().st_blocks for path in {p.lstat().st_ino: p for p in (each_dir / "copy").rglob("*")}.values()
    )
    du = int(run("du", "-s", "--block-size=512", each_dir / "copy").split()[0])
    assert du == blocks + (each_dir / "copy").stat().st_blocks
    assert run("find", each_dir / "copy", "-perm", "-6000").splitlines() == [str(each_dir / "copy/sub/program")]
    assert (
        run("find", each_dir / "copy", "-newermt", "2001-09-09", "!", "-newermt", "2010-01-01", "-type", "f").count(
            "\n"
        )
        == 2
    )


def test_git(each_dir: Path) -> None:
    work, clone = each_dir / "work", each_dir / "clone"
    git = ("git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "core.fsync=all", "-C")
    run("git", "init", "-q", "-b", "main", work)
    for commit in range(8):
        for i in range(25):
            (work / f"file{i}").write_text(f"{commit} {i}\n" * 200)
        run(*git, work, "add", "-A")
        run(*git, work, "commit", "-qm", f"commit {commit}")
    run(*git, work, "gc", "-q", "--aggressive", "--prune=now")
    run(*git, work, "fsck", "--strict", "--full")
    run("git", "clone", "-q", "--local", work, clone)
    run(*git, clone, "checkout", "-q", "HEAD~5")
    run(*git, clone, "checkout", "-q", "main")
    assert run(*git, clone, "status", "--porcelain") == ""
    run("diff", "-r", "-x", ".git", work, clone)


def _insert(database: Path, writer: int, rows: int) -> None:
    with sqlite3.connect(database, timeout=60, isolation_level=None) as connection:
        connection.execute("PRAGMA mmap_size = 67108864")
        for i in range(rows):
            connection.execute("INSERT INTO t VALUES (?, ?)", (writer * rows + i, "x" * 500))
    connection.close()


def test_sqlite_with_wal_and_mmap(each_dir: Path) -> None:
    database = each_dir / "db"
    connection = sqlite3.connect(database, timeout=60)
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    connection.execute("PRAGMA mmap_size = 67108864")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, data TEXT)")
    connection.commit()
    writers = [threading.Thread(target=_insert, args=(database, writer, 150)) for writer in range(3)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert connection.execute("SELECT count(*), sum(length(data)) FROM t").fetchone() == (450, 225_000)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("VACUUM")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


LMDB = """
import lmdb, os, sys
with lmdb.open(sys.argv[1], map_size=1 << 26, writemap=True) as db:
    for batch in range(10):
        with db.begin(write=True) as transaction:
            for i in range(200):
                transaction.put(b"%d-%d" % (batch, i), os.urandom(300))
    with db.begin() as transaction:
        assert transaction.stat()["entries"] == 2000
    db.copy(sys.argv[2], compact=True) if os.makedirs(sys.argv[2]) is None else None
with lmdb.open(sys.argv[2], readonly=True) as copy, copy.begin() as transaction:
    print(sum(len(value) for _, value in transaction.cursor()))
"""


def test_lmdb(each_dir: Path) -> None:
    (each_dir / "db").mkdir()
    assert run("/usr/bin/python3", "-c", LMDB, each_dir / "db", each_dir / "copy") == "600000\n"


def test_a_compiler_and_make(each_dir: Path) -> None:
    for i in range(6):
        (each_dir / f"part{i}.c").write_text(f"int part{i}(void) {{ return {i}; }}\n")
    calls = " + ".join(f"part{i}()" for i in range(6))
    heads = "".join(f"int part{i}(void);" for i in range(6))
    (each_dir / "main.c").write_text(f'#include <stdio.h>\n{heads}int main(void) {{ printf("%d\\n", {calls}); }}\n')
    objects = " ".join(["main.o", *(f"part{i}.o" for i in range(6))])
    (each_dir / "Makefile").write_text(f"all: {objects}\n\tgcc -g -o all {objects}\n.c.o:\n\tgcc -g -c $<\n")
    run("make", "-j2", cwd=each_dir)
    assert run(each_dir / "all") == "15\n"
    assert "Nothing to be done" in run("make", cwd=each_dir) or "is up to date" in run("make", cwd=each_dir)
    os.utime(each_dir / "part3.c")
    assert run("make", cwd=each_dir).count("gcc") == 2
