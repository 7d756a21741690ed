"""The directories under comparison: their kind, their backing, and a scratch directory in each."""

# Paths are strings here, as the rows hand them to system calls.

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinfs.linux.mountinfo import MountEntry, mount_at


@dataclass(frozen=True, slots=True)
class Membership:
    """A mount's place in a cluster: `host` is its name there, `endpoints` are those of etcd."""

    name: str
    host: str
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A directory under measurement. `work` is the scratch directory in it; `back_work` is the same directory seen from
    below the file system (`work` itself on a native one), None where that cannot be reached. `peer_work` is the same
    directory at another host of the cluster that is under measurement as well; None where there is none."""

    path: str
    label: str
    role: str  # "mount", "backing", "other"
    fstype: str
    pinfs: bool
    work: str
    back_work: str | None
    cluster: Membership | None = None
    peer_work: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """An empty directory for one row in one place."""

    place: Place
    path: str
    back_path: str | None
    peer_path: str | None = None

    def file(self, name: str = "file", size: int = 4096) -> str:
        """Create a file of `size` bytes; return its path."""
        path = f"{self.path}/{name}"
        block = os.urandom(min(size, 1 << 20))
        with open(path, "wb", buffering=0) as file:
            for _ in range(0, size, len(block) or 1):
                file.write(block)
            file.truncate(size)
        return path

    def names(self, count: int) -> list[str]:
        """Paths for `count` files that do not exist yet."""
        return [f"{self.path}/{i:06}" for i in range(count)]


def mount_of(path: str) -> MountEntry:
    """The mount that `path` lies on."""
    return mount_at(os.path.realpath(path)) or MountEntry(0, "/", "/", "unknown", "none", "")


def pinfs_status(mount: MountEntry) -> dict[str, Any]:
    """The status of a pinfs mount; empty if `mount` is no pinfs."""
    try:
        status = json.loads(Path(mount.point, ".pinfs", "status").read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def pinfs_source(mount: MountEntry) -> str | None:
    """The source directory of a pinfs mount, from its status; None if `mount` is no pinfs."""
    source = pinfs_status(mount).get("source")
    return None if source is None else str(source)


@contextmanager
def scratch(directory: str) -> Iterator[str]:
    """A temporary directory in `directory`, removed with its contents at the end."""
    work = tempfile.mkdtemp(prefix="pinfs-bench.", dir=directory)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def room(place: Place) -> Iterator[Room]:
    """A directory for one row in `place`, removed at the end."""
    with scratch(place.work) as path:
        name = os.path.basename(path)
        yield Room(place, path, *(there and f"{there}/{name}" for there in (place.back_work, place.peer_work)))


@contextmanager
def open_places(directories: Sequence[str]) -> Iterator[list[Place]]:
    """The places to compare, with scratch directories: the first, its backing if that can be reached, the others.

    OSError where a scratch directory cannot be made.
    """
    with ExitStack() as stack:
        first, *others = directories
        backing = backing_of(first)
        roles = {first: "mount"}
        if backing is not None and not any(os.path.samefile(backing, other) for other in directories):
            roles[backing] = "backing"
        roles |= {other: "backing" if backing and os.path.samefile(backing, other) else "other" for other in others}
        works = {path: stack.enter_context(scratch(path)) for path in roles}
        yield _label(with_peers([_place(path, role, works[path], backing) for path, role in roles.items()]))


def backing_of(directory: str) -> str | None:
    """The directory below a stacked file system with the same files; None where it cannot be reached."""
    mount = mount_of(directory)
    source = pinfs_source(mount) or mount.source
    if not source.startswith("/") or not os.path.isdir(source):
        return None
    candidate = os.path.normpath(os.path.join(source, os.path.relpath(os.path.realpath(directory), mount.point)))
    try:
        with tempfile.TemporaryDirectory(prefix="pinfs-bench.", dir=directory) as probe:
            return candidate if os.path.isdir(f"{candidate}/{os.path.basename(probe)}") else None
    except OSError:
        return None


def _place(path: str, role: str, work: str, first_backing: str | None) -> Place:
    mount = mount_of(path)
    pinfs = pinfs_source(mount) is not None
    label = "backing" if role == "backing" else "pinfs" if pinfs else _short(mount, path)
    below = _from_below(mount, path, work, first_backing)
    return Place(path, label, role, mount.fstype, pinfs, work, below, membership(mount))


def membership(mount: MountEntry) -> Membership | None:
    """None: `mount` is in no cluster, or no pinfs."""
    found = pinfs_status(mount).get("cluster")
    return Membership(found["name"], found["host"], tuple(found["endpoints"])) if found else None


def with_peers(places: list[Place]) -> list[Place]:
    """Of each the first other host of its cluster that has its files."""
    return [replace(place, peer_work=next(_peers(place, places), None)) for place in places]


def _peers(place: Place, places: list[Place]) -> Iterator[str]:
    inside = os.path.relpath(os.path.realpath(place.work), mount_of(place.path).point)
    for other in places:
        if place.cluster and other.cluster and place.cluster.name == other.cluster.name:
            there = os.path.join(mount_of(other.path).point, inside)
            if place.cluster.host != other.cluster.host and os.path.isdir(there):
                yield there


def _short(mount: MountEntry, path: str) -> str:
    plain = mount.fstype.removeprefix("fuse.")
    return os.path.basename(os.path.normpath(path)) if plain == "fuse" else plain


def _from_below(mount: MountEntry, path: str, work: str, first_backing: str | None) -> str | None:
    """The path of `work` below the file system: the kernel has no cache entries for files that are created there."""
    if not mount.fstype.startswith("fuse"):
        return work
    for directory in (backing_of(path), first_backing):
        candidate = directory and f"{directory}/{os.path.basename(work)}"
        if candidate and os.path.isdir(candidate):
            return candidate
    return None


def _label(places: list[Place]) -> list[Place]:
    """Make labels distinct: by the last component of the path, or else by the whole path."""
    for names in ([os.path.basename(os.path.normpath(place.path)) for place in places], [p.path for p in places]):
        labels = [place.label for place in places]
        places = [
            replace(place, label=name) if labels.count(place.label) > 1 else place
            for place, name in zip(places, names, strict=True)
        ]
    return places
