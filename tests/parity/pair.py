"""Two directories driven side by side, and a script that does it again. Standard library only (see calls.py)."""

import ast
import ctypes
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from parity.calls import PROGRAM, Side, checked, libc  # left out of replay scripts

Step = tuple[Any, ...]
"""(actor, call, *arguments)"""

ACTORS: dict[str, tuple[int, int, list[int]]] = {
    "root": (0, 0, [0]),
    "root2": (0, 0, [0]),
    "alice": (41001, 41001, [41001, 42000]),
    "alone": (41001, 41001, []),  # alice again, without her supplementary group
    "bob": (41002, 42000, [42000]),
}
"""uid, gid, supplementary groups. Two roots and two alices: other processes of the same user."""

ANSWER_LIMIT_S = 60.0
"""A call that takes longer counts as hung."""

TMPFS_MAGIC = 0x01021994  # statfs(2)
LEFT_OUT = "# left out of replay scripts"
REPLAY_SOURCES = ("calls.py", "pair.py")


class DifferenceError(AssertionError):
    """The two sides do not agree."""


class Worker:
    """One actor's process; see calls.serve."""

    def __init__(
        self, who: tuple[int, int, list[int]], roots: Sequence[bytes], unseen: Iterable[str], known: Iterable[str]
    ) -> None:
        command = [sys.executable, PROGRAM, "--worker", repr((who, list(roots), list(unseen), list(known)))]
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def ask(self, name: str, arguments: Sequence[Any]) -> tuple[list[tuple[str, Any]], list[tuple[bytes, int]]]:
        """The outcomes of one call, one for each side, and the modes of files to set after it (calls.Leveller)."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(repr((name, tuple(arguments))).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise DifferenceError(f"hangs in {Path(f'/proc/{self.process.pid}/syscall').read_text()}")
        line = self.process.stdout.readline()
        if not line:
            raise DifferenceError(f"the worker died: {self.process.wait()}")
        answers: list[tuple[str, Any]]
        changes: list[tuple[bytes, int]]
        answers, changes = ast.literal_eval(line.decode())
        return answers, changes

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Pair:
    """A native directory and one on the mount, made anew for each sequence of steps; `source` lies behind it.

    `unseen` names facts that are not compared. Blocks never are but on tmpfs, which alone gives the same file the same
    blocks every time. `known` names the differences in set-id bits that the mount may show (calls.KNOWN).
    """

    def __init__(
        self,
        native: Path,
        mounted: Path,
        source: Path | None = None,
        unseen: Iterable[str] = (),
        known: Iterable[str] = (),
    ) -> None:
        self._tops = [native, mounted]
        self._source = source
        self.roots = [os.fsencode(top / "parity" / "root") for top in self._tops]
        self.unseen = sorted({*unseen, *(() if _magic(native) == TMPFS_MAGIC else ("blocks",))})
        self.known = sorted(known)
        self._make_roots()
        actors = ACTORS if os.geteuid() == 0 else {"root": ACTORS["root"], "root2": ACTORS["root2"]}
        self.workers = {name: Worker(who, self.roots, self.unseen, self.known) for name, who in actors.items()}
        self.steps: list[Step] = []

    def begin(self) -> None:
        """Fresh directories, and workers that remember nothing."""
        for worker in self.workers.values():
            worker.ask("reset", ())
        self._remove_roots()
        self._make_roots()
        self.steps = []

    def _make_roots(self) -> None:
        """ "root" is open to all; "parity" above it catches what climbs out."""
        for root in self.roots:
            os.makedirs(root)
            os.chmod(root, 0o777)

    def _remove_roots(self) -> None:
        for root in self.roots:
            _remove_tree(os.path.dirname(root))

    def step(self, who: str, name: str, *arguments: Any) -> Any:
        """Makes one call on both sides. Returns its outcome; raises DifferenceError."""
        self.steps.append((who, name, *arguments))
        worker = self.workers.get(who, self.workers["root2"])  # an ordinary user plays all of them
        (native, mounted), changes = worker.ask(name, arguments)
        for path, mode in changes:
            os.chmod(path, mode)
        if native != mounted:
            raise DifferenceError(f"{who}: {name}{arguments}\n{_difference(native, mounted)}")
        return native

    def existing(self, pick: int) -> bytes:
        """One of the paths that exist now on the native side, relative to the root; the root itself is b""."""
        try:
            root = os.open(self.roots[0], os.O_RDONLY | os.O_NOATIME)
        except FileNotFoundError:  # the root is a directory like any other: it can be removed
            return b""
        paths = sorted(_paths_below(root))
        return paths[pick % len(paths)]

    def end(self) -> None:
        """Everything closed, everything compared once more, and the mount with what is behind it."""
        self.step("root", "tree", "above")
        for who in self.workers:
            self.step(who, "reset")
        if self._source:
            self._compare_with_source(self._source)

    def _compare_with_source(self, source: Path) -> None:
        sides = [os.fsencode(top / "parity" / "root") for top in (source, self._tops[1])]
        behind, mounted = (Side(root, self.unseen).tree("above") for root in sides)
        if behind != mounted:
            raise DifferenceError(f"what is behind the mount is not what it shows\n{_difference(behind, mounted)}")

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        for root in self.roots:
            with suppress(OSError):  # the mount may have gone, which is told elsewhere
                _remove_tree(os.path.dirname(root))

    def script(self) -> str:
        """A Python program of its own that makes the steps so far again: `python3 SCRIPT NATIVE MOUNTED`."""
        here = Path(__file__).parent
        sources = [here.joinpath(name).read_text() for name in REPLAY_SOURCES]
        lines = [line for source in sources for line in source.splitlines() if not line.endswith(LEFT_OUT)]
        steps = "".join(f"    {step!r},\n" for step in self.steps)
        replaying = f"replay(STEPS, Path(sys.argv[1]), Path(sys.argv[2]), {self.unseen!r}, {self.known!r})"
        main = f"if __name__ == '__main__':\n    {replaying}\n"
        return "\n".join(lines) + f"\n\nSTEPS = [\n{steps}]\n\n{main}"


def replay(
    steps: Sequence[Step], native: Path, mounted: Path, unseen: Sequence[str], known: Sequence[str] = ()
) -> None:
    """Makes the steps and shows each outcome; ends with the first difference."""
    pair = Pair(native, mounted, unseen=unseen, known=known)
    try:
        for who, name, *arguments in steps:
            print(who, name, arguments, "->", pair.step(who, name, *arguments))
        pair.end()
        print("no difference")
    finally:
        pair.close()


def _paths_below(directory: int, prefix: bytes = b"") -> Iterator[bytes]:
    """Without changing any atime: looking must not be a step that only one side makes. Closes `directory`."""
    yield prefix.rstrip(b"/")
    try:
        for entry in os.scandir(directory):
            path = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                below = os.open(entry.name, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW, dir_fd=directory)
                yield from _paths_below(below, path + b"/")
            else:
                yield path
    finally:
        os.close(directory)


def _remove_tree(top: bytes) -> None:
    """Also for an ordinary user, who may have locked himself out."""
    os.chmod(top, 0o700)
    for where, directories, _ in os.walk(top):
        for path in (os.path.join(where, name) for name in directories):
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(top)


def _magic(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    checked(libc.statfs(os.fsencode(path), buffer))
    return int.from_bytes(buffer.raw[:8], "little")


def _difference(native: Any, mounted: Any) -> str:
    """The parts that differ, found by descending."""
    if isinstance(native, dict) and isinstance(mounted, dict):
        keys = [key for key in {**native, **mounted} if native.get(key) != mounted.get(key)]
        return "\n".join(f"[{key!r}] {_difference(native.get(key), mounted.get(key))}" for key in keys)
    both = (list, tuple)
    if isinstance(native, both) and isinstance(mounted, both) and len(native) == len(mounted):
        pairs = [(n, m) for n, m in zip(native, mounted, strict=True) if n != m]
        context = f"{native[0]!r} " if native[0] == mounted[0] and isinstance(native[0], str | bytes) else ""
        return "\n".join(context + _difference(n, m) for n, m in pairs)
    return f"native {native!r}, mounted {mounted!r}"
