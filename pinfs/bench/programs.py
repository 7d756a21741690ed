"""Rows of whole programs: what git, tar and rm take for each file of a tree, from their start to their end."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from pinfs.bench.commands import program, run, run_together
from pinfs.bench.material import Material
from pinfs.bench.metadata import create
from pinfs.bench.places import Room
from pinfs.bench.rows import Batch, Rows, Skip, us_each

GROUP: Final = "programs"
FILES_IN_A_DIRECTORY: Final = 1000
"""Where many files are created."""
TOGETHER: Final = 4
"""Processes that unpack at once."""
SETTLED_NS: Final = 1_000_000_000

Prepare = Callable[[Material, Room, int], Iterator[Batch]]


def create_many(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    directories = [f"{room.path}/{first:06}" for first in range(0, calls, FILES_IN_A_DIRECTORY)]
    paths = [f"{directories[at // FILES_IN_A_DIRECTORY]}/{at:06}" for at in range(calls)]

    def batch() -> float:
        for directory in directories:
            os.mkdir(directory)
        us = us_each(create, paths)
        for directory in directories:
            shutil.rmtree(directory)
        return us

    yield batch


def untar(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    yield from _unpack_in(material, room, calls, 1)


def untar_together(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    yield from _unpack_in(material, room, calls, TOGETHER)


def _unpack_in(material: Material, room: Room, calls: int, processes: int) -> Iterator[Batch]:
    directories = [f"{room.path}/{number}" for number in range(processes)]
    commands = [_unpacking(material, calls, directory) for directory in directories]

    def batch() -> float:
        for directory in directories:
            os.mkdir(directory)
        us = run_together(commands, material.environment)
        for directory in directories:
            shutil.rmtree(directory)
        return us / (calls * processes)

    yield batch


def _unpacking(material: Material, files: int, directory: str) -> list[str]:
    return [program("tar"), "-x", "-f", material.archive(files), "-C", directory]


def remove_tree(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    tree = f"{room.path}/tree"
    unpacking, removing = _unpacking(material, calls, tree), [program("rm"), "-r", "-f", tree]

    def batch() -> float:
        os.mkdir(tree)
        run(unpacking, material.environment)
        return run(removing, material.environment) / calls

    yield batch


def clone(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    tree = f"{room.path}/clone"

    def batch() -> float:
        us = _clone(material, calls, tree)
        shutil.rmtree(tree)
        return us / calls

    yield batch


def _clone(material: Material, files: int, tree: str) -> float:
    git = program("git")
    repository = material.repository(git, files)
    # Hard links are made where both lie on one file system, which they do in some directories and not in others.
    command = [git, "clone", "--quiet", "--no-hardlinks", "--template=", repository, tree]
    return run(command, material.environment)


def _status(material: Material, tree: str) -> float:
    return run([program("git"), "-C", tree, "status", "--porcelain"], material.environment)


def _settle(tree: str) -> None:
    """Make the index younger than all files: git reads those again that are as young (technical/racy-git of git)."""
    index = f"{tree}/.git/index"
    made = os.stat(index)
    os.utime(index, ns=(made.st_atime_ns, made.st_mtime_ns + SETTLED_NS))


def status(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    tree = f"{room.path}/clone"
    _clone(material, calls, tree)
    _settle(tree)
    yield lambda: _status(material, tree) / calls


def status_cold(material: Material, room: Room, calls: int) -> Iterator[Batch]:
    """Each batch has a clone that was made in the backing directory."""
    if room.back_path is None:
        raise Skip("its backing directory cannot be reached, so nothing can be made behind the kernel's back")
    behind = room.back_path
    generation = 0

    def batch() -> float:
        nonlocal generation
        generation += 1
        below = f"{behind}/{generation}"
        _clone(material, calls, below)
        _settle(below)
        tree = f"{room.path}/{generation}"
        us = _status(material, tree)
        shutil.rmtree(tree)
        return us / calls

    yield batch


ROWS: Final[tuple[tuple[str, int, Prepare], ...]] = (
    ("create many files", 20_000, create_many),
    ("untar", 5000, untar),
    (f"untar, {TOGETHER} processes", 2000, untar_together),
    ("rm -r", 5000, remove_tree),
    ("git clone", 2000, clone),
    ("git status", 2000, status),
    ("git status, first time", 2000, status_cold),
)
"""Name of the row, files in a batch (of each process)."""


def rows(material: Material) -> Rows:
    """The rows; what they work on is made when the first of them needs it."""
    made = Rows()
    for name, files, prepare in ROWS:
        made.row(GROUP, name, files)(partial(prepare, material))
    return made
