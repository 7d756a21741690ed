"""What whole programs work on: an archive and a git repository, made once for a run, outside of what is measured.

Both hold the same files, which are the same in every run. git reads no configuration but what stands here, asks nobody,
and has its authors and dates from here as well.
"""

import io
import os
import random
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Final

from pinfs.bench.commands import run
from pinfs.bench.places import scratch

MEMORY: Final = "/dev/shm"
FILES_IN_A_DIRECTORY: Final = 20
DIRECTORIES_IN_A_DIRECTORY: Final = 25
MAX_BYTES: Final = 4096
"""Of a file; the mean is half of it."""
DATE_S: Final = 1_700_000_000
"""Of all files and of the commit, since the epoch."""
AUTHOR: Final = f"pinfs bench <bench@invalid> {DATE_S} +0000"

CONFIGURATION: Final = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "fastimport.unpackLimit": "1",  # one pack, however few files there are
    "gc.auto": "0",
    "init.defaultBranch": "main",
    "maintenance.auto": "false",
    "safe.directory": "*",  # a mount may show files as another user's
}
"""All that git is told, whatever is configured for the user and the machine."""


def environment(home: str) -> dict[str, str]:
    """Variables of the programs. `home`: where a program finds nothing that is the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "TAR_"))}
    told = {"GIT_CONFIG_COUNT": str(len(CONFIGURATION))}
    for number, (key, value) in enumerate(CONFIGURATION.items()):
        told |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return kept | told | {
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "HOME": home,
        "LC_ALL": "C",
        "XDG_CONFIG_HOME": home,
    }  # fmt: skip


def tree(files: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents: lines of text, from empty files to MAX_BYTES."""
    chance = random.Random(1)
    for number in range(files):
        directory = number // FILES_IN_A_DIRECTORY
        above = directory // DIRECTORIES_IN_A_DIRECTORY
        size = chance.randrange(MAX_BYTES + 1)
        text = chance.randbytes(size).hex("\n", 32).encode()[:size]
        yield f"{above:02}/{directory % DIRECTORIES_IN_A_DIRECTORY:02}/{number:06}.txt", text


class Material:
    """Archives and repositories by their number of files, each made at its first use; all removed at the end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._home: str | None = None
        self._made: set[str] = set()

    def __enter__(self) -> "Material":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._home = None
        self._made.clear()

    @property
    def home(self) -> str:
        """The directory that all of it lies in: in TMPDIR where that is set, else in memory."""
        if self._home is None:
            in_memory = "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK | os.X_OK)
            self._home = self._stack.enter_context(scratch(MEMORY if in_memory else tempfile.gettempdir()))
        return self._home

    @property
    def environment(self) -> Mapping[str, str]:
        """For every program."""
        return environment(self.home)

    def archive(self, files: int) -> str:
        """The path of a tar archive, with its directories. A file belongs to the caller."""
        path = f"{self.home}/{files}.tar"
        if path not in self._made:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                _fill(archive, files)
            self._made.add(path)
        return path

    def repository(self, git: str, files: int) -> str:
        """The path of a bare repository of one commit, in one pack. Skip: git cannot make it."""
        path = f"{self.home}/{files}.git"
        if path not in self._made:
            run([git, "init", "--quiet", "--bare", "--template=", path], self.environment)
            run([git, "-C", path, "fast-import", "--quiet", "--done"], self.environment, commit(files))
            self._made.add(path)
        return path


def _fill(archive: tarfile.TarFile, files: int) -> None:
    there: set[str] = set()
    for name, content in tree(files):
        directory = os.path.dirname(name)
        for parent in (os.path.dirname(directory), directory):
            if parent not in there:
                there.add(parent)
                archive.addfile(_member(parent, 0o755, tarfile.DIRTYPE))
        member = _member(name, 0o644, tarfile.REGTYPE)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _member(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.mtime = mode, kind, DATE_S
    member.uid, member.gid = os.getuid(), os.getgid()
    return member


def commit(files: int) -> bytes:
    """A stream for git-fast-import(1)."""
    parts = [f"commit refs/heads/main\ncommitter {AUTHOR}\ndata 6\nfiles\n".encode()]
    for name, content in tree(files):
        parts.append(b"M 644 inline %b\ndata %d\n%b\n" % (name.encode(), len(content), content))
    return b"".join([*parts, b"done\n"])
