"""Two file systems over two directories that begin alike: one with the fast path, one without. The kernel, which is the
test, sends both the same requests; what the two answer and what they come to must be the same."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
from survival.kept import Image, Store, image

from pinfs.bridge import wire
from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.negotiate import WANTED, Init, Negotiated, Requested
from pinfs.bridge.once import Once
from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.fs.backing import BackingRegistry, NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.pendingpins import PendingPins
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Restored
from pinfs.journal import records
from pinfs.journal.records import HandleKind, Kind
from pinfs.journal.slots import Slots, new_journal_file
from pinfs.serve.assembly import FileSystem, assemble

HOUR_NS = 3_600_000_000_000
NOW = "now"
Reply = SimpleNamespace
Body = bytes | Callable[["Side"], bytes]


class Registry:
    """Registers each backing file, as a kernel with passthrough does."""

    unavailable_because = ""

    def __init__(self) -> None:
        self.last = 0
        self.registered: set[int] = set()

    def open(self, fd: int) -> int:
        os.fstat(fd)
        self.last += 1
        self.registered.add(self.last)
        return self.last

    def close(self, backing_id: int) -> None:
        self.registered.remove(backing_id)

    def adopt(self) -> None:
        raise AssertionError("there is no daemon before")


@dataclass
class Mount:
    """How the twins are served: with a journal, with passthrough, with generations; the long form of SETXATTR."""

    journal: bool = False
    passthrough: bool = False
    exports: bool = False
    long_setxattr: bool = True
    policy: str = ""
    """TOML."""

    @property
    def negotiated(self) -> Negotiated:
        flags = WANTED if self.long_setxattr else WANTED & ~Init.SETXATTR_EXT
        return Negotiated(45, flags, flags)


class Side:
    """One of the two."""

    def __init__(self, base: Path, mount: Mount, *, fast: bool) -> None:
        self.source = base / ("fast" if fast else "long")
        self.mount = mount
        self.kernel, self.daemon_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.daemon_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            end.setblocking(False)
        config = load(["nfs_export=on"] if mount.exports else [], None)
        self.registry: BackingRegistry = Registry() if mount.passthrough else NoPassthrough()
        policies = PolicyBox(config.policies)
        policies.replace(mount.policy, "the test")
        fd = os.open(self.source, os.O_PATH | os.O_DIRECTORY)
        self.fs: FileSystem = assemble(fd, config, policies, self.registry, dict, 1 << 16)
        self.store = Store()
        self.journal = new_journal_file() if mount.journal else -1
        self.recorder: Recorder | None = None
        if mount.journal:
            self.recorder = Recorder(
                Slots(self.journal, max_slots=4096), self.store, self.fs.inodes.device,
                self.fs.guard.book.files.__contains__,
            )  # fmt: skip
            self.fs.record(self.recorder)
        if not fast:
            self.fs.operations.fast = None
        self.dispatcher = Dispatcher(
            self.daemon_end.fileno(), self.fs.operations, Requested(nfs_export=mount.exports), self._begin, Counter()
        )
        self.last_unique = 0
        self.restored: Restored | None = None
        """Of a daemon that takes over; and the pins that are still to come."""
        self.pending: PendingPins | None = None

    def _begin(self, negotiated: Negotiated) -> Once | None:
        if self.recorder is None:
            return None
        return Once(self.recorder, self.fs.operations, self.fs.parts, self.restored, self.pending)

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.fs.guard.run)
            await nursery.start(self.fs.holders.run)
            await self.dispatcher.run(self.mount.negotiated)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        self.fs.close()
        if self.recorder is not None:
            self.recorder.close()
            os.close(self.journal)
        self.store.close()
        self.kernel.close()
        self.daemon_end.close()

    def send(self, opcode: int, nodeid: int, body: bytes, caller: tuple[int, int, int], extensions: int = 0) -> int:
        self.last_unique += 2
        size = wire.IN_SIZE + len(body)
        self.kernel.send(wire.IN_HEADER.pack(size, opcode, self.last_unique, nodeid, *caller, extensions, 0) + body)
        return self.last_unique

    async def answered(self, unique: int) -> tuple[Reply, list[bytes]]:
        """The reply to a request, and what the kernel has been told before it."""
        told: list[bytes] = []
        while True:
            with trio.fail_after(7200):  # on a clock that jumps
                await trio.lowlevel.wait_readable(self.kernel)
            message = self.kernel.recv(2 << 20)
            size, error, number = wire.OUT_HEADER.unpack_from(message)
            assert size == len(message)
            if number:
                assert number == unique
                return Reply(error=error, body=message[wire.OUT_SIZE :]), told
            told.append(message)

    def tree(self) -> dict[str, tuple[int, tuple[Any, ...]]]:
        """What the source directory holds, by path: the inode's number, and what can be compared."""
        found = {}
        below = [Path(at, name) for at, *names in os.walk(self.source) for some in names for name in some]
        for path in sorted([self.source, *below]):
            st = path.lstat()
            kind = stat.S_IFMT(st.st_mode)
            content: bytes | str = b""
            if stat.S_ISREG(st.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            attributes = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            owner = st.st_uid, st.st_gid, st.st_nlink
            size = st.st_size if kind != stat.S_IFDIR else 0
            told = st.st_mode, *owner, size, content, attributes, moment(st.st_mtime_ns)
            found[str(path.relative_to(self.source))] = st.st_ino, told
        return found

    def intents(self) -> int:
        """Records of requests that are not over."""
        if self.recorder is None:
            return 0
        with closing(Slots(self.journal)) as slots:
            return len(slots.load().get(Kind.INTENT, {}))


def moment(ns: int) -> int | str:
    """A time that a request has set; "now" for what a call has set to the time of its own."""
    return NOW if abs(time.time_ns() - ns) < HOUR_NS else ns


class DifferError(AssertionError):
    """The two are not alike."""


@dataclass
class Twins:
    """`sides`: the one with the fast path first."""

    sides: tuple[Side, Side]
    nodes: list[tuple[int, int]] = field(default_factory=list)
    """Node ids of the same inode on both sides, in the order in which they were given."""
    handles: list[int] = field(default_factory=list)
    """File handles that were given, open or not."""
    twin_of: dict[int, int] = field(default_factory=dict)

    # The same inode

    def match(self, fast: int, long: int) -> None:
        """These are numbers of one inode."""
        known = self.twin_of.setdefault(fast, long)
        if known != long:
            raise DifferError(f"inode {fast} is {known} on the long way, and {long} now")
        if (fast, long) not in self.nodes:
            self.nodes.append((fast, long))

    def look(self) -> None:
        """Compare the source trees, and learn which inodes are the same."""
        fast, long = (side.tree() for side in self.sides)
        if fast.keys() != long.keys():
            raise DifferError(f"names: {fast.keys() ^ long.keys()}")
        for path, (ino, told) in fast.items():
            other_ino, other_told = long[path]
            if path == ".":
                self.match(ROOT_ID, ROOT_ID)
            elif self.twin_of.setdefault(ino, other_ino) != other_ino:
                raise DifferError(f"{path} is another inode")
            if told != other_told:
                raise DifferError(f"{path}: {told} with the fast path, else {other_told}")

    # Requests

    async def ask(
        self,
        opcode: int,
        node: tuple[int, int] | int = ROOT_ID,
        body: Body = b"",
        caller: tuple[int, int, int] = (0, 0, 0),
        extensions: int = 0,
    ) -> Reply:
        """Send both the same request. `node`: a pair of `nodes`, or one number for both. The reply of the first; where
        the opcode has none, to another request after it."""
        pair = (node, node) if isinstance(node, int) else node
        uniques = []
        for side, nodeid in zip(self.sides, pair, strict=True):
            uniques.append(
                side.send(opcode, nodeid, body if isinstance(body, bytes) else body(side), caller, extensions)
            )
        if opcode in (wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT):
            # what is answered shows that both have taken what came before it
            return await self.ask(wire.STATX, ROOT_ID, wire.STATX_IN.pack(0, 0, 0, 0, 0))
        answers: dict[int, tuple[Reply, list[bytes]]] = {}

        async def wait(number: int) -> None:
            answers[number] = await self.sides[number].answered(uniques[number])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, 0)
            nursery.start_soon(wait, 1)
        (fast, fast_told), (long, long_told) = answers[0], answers[1]
        if fast.error != long.error:
            raise DifferError(f"error {fast.error} with the fast path, else {long.error}")
        self._compare_bodies(opcode, fast.body, long.body)
        self._compare_notices(fast_told, long_told)
        return fast

    def _compare_bodies(self, opcode: int, fast: bytes, long: bytes) -> None:
        told = [self._read(opcode, body) for body in (fast, long)]
        (fast_nodes, fast_rest), (long_nodes, long_rest) = told
        if len(fast_nodes) != len(long_nodes) or fast_rest != long_rest:
            raise DifferError(f"reply {fast_rest} with the fast path, else {long_rest}")
        for one, other in zip(fast_nodes, long_nodes, strict=True):
            if bool(one) != bool(other):
                raise DifferError(f"entry {one} with the fast path, else {other}")
            if one:
                self.match(one, other)

    def _read(self, opcode: int, body: bytes) -> tuple[list[int], Any]:
        """The node ids in a reply, and all else that can be compared."""
        if not body:
            return [], b""
        if opcode in ENTRIES:
            nodes, entry = self._entry(body[: wire.ENTRY_OUT.size])
            return nodes, (entry, self._opened(body[wire.ENTRY_OUT.size :]))
        if opcode in (wire.OPEN, wire.OPENDIR):
            return [], self._opened(body)
        if opcode in (wire.GETATTR, wire.SETATTR):
            valid_s, valid_ns, _, *attributes = wire.ATTR_OUT.unpack(body)
            return [attributes[0]], (valid_s, valid_ns, _attributes(attributes))
        if opcode in (wire.READDIR, wire.READDIRPLUS):
            return self._listing(body, plus=opcode == wire.READDIRPLUS)
        if opcode == wire.STATX:
            return [], len(body)
        return [], body

    def _entry(self, body: bytes) -> tuple[list[int], Any]:
        nodeid, generation, entry_s, attr_s, entry_ns, attr_ns, ino, *rest = wire.ENTRY_OUT.unpack(body)
        assert nodeid == ino
        return [nodeid], (bool(generation), entry_s, attr_s, entry_ns, attr_ns, _attributes([ino, *rest]))

    def _opened(self, body: bytes) -> Any:
        if not body:
            return ()
        opened = wire.OPEN_OUT.unpack(body)
        if opened[0] not in self.handles:
            self.handles.append(opened[0])
        return opened

    def _listing(self, body: bytes, *, plus: bool) -> tuple[list[int], Any]:
        nodes, rest, at = [], [], 0
        while at < len(body):
            if plus:
                entry_nodes, entry = self._entry(body[at : at + wire.ENTRY_OUT.size])
                nodes += entry_nodes
                rest.append(entry if entry_nodes[0] else ())
                at += wire.ENTRY_OUT.size
            _, offset, length, kind = wire.DIRENT.unpack_from(body, at)
            at += wire.DIRENT.size
            rest.append((offset, kind, body[at : at + length]))
            at += length + -length % 8
        return nodes, rest

    def _compare_notices(self, fast: list[bytes], long: list[bytes]) -> None:
        told = [[(m[:16], wire.INVAL_INODE_OUT.unpack_from(m, wire.OUT_SIZE)) for m in side] for side in (fast, long)]
        moved = [(header, (self.twin_of.get(what[0]), *what[1:])) for header, what in told[0]]
        if moved != told[1]:
            raise DifferError(f"notices {moved} with the fast path, else {told[1]}")

    async def let_go(self) -> None:
        """The kernel closes all handles, and forgets all inodes."""
        one = self.sides[0].fs
        for handle in list(one.operations.handles.all()):
            opcode = wire.RELEASEDIR if handle.record_kind is HandleKind.DIRECTORY else wire.RELEASE
            await self.ask(opcode, ROOT_ID, wire.RELEASE_IN.pack(handle.number, 0, 0, 0))
        for nodeid, lookups in [(inode.nodeid, inode.lookups) for inode in one.inodes]:
            if lookups and nodeid != ROOT_ID:
                await self.ask(wire.FORGET, (nodeid, self.twin_of[nodeid]), wire.U64.pack(lookups))

    # Tables

    def compare(self) -> None:
        """Source trees, tables, journals."""
        self.look()
        fast, long = (side.fs for side in self.sides)
        self._compare("tables", _translated(image(fast), self._twin), _translated(image(long), int))
        for what in (_open_files, _uncached, _pins_by_file):
            self._compare(what.__name__[1:], what(fast, self._twin), what(long, int))
        assert [side.intents() for side in self.sides] == [0, 0], "an intent is left"
        if self.sides[0].recorder is not None:
            journals = journal(self.sides[0], self._twin), journal(self.sides[1], int)
            self._compare("journal", *journals)
            stored = [set(side.store.held) for side in self.sides]
            self._compare("stored", {f"n{self._twin(int(name[1:]))}" for name in stored[0]}, stored[1])

    def _compare(self, what: str, fast: Any, long: Any) -> None:
        if fast != long:
            raise DifferError(f"{what}:\n{fast}\nwith the fast path, else\n{long}")

    def _twin(self, nodeid: int) -> int:
        return self.twin_of.get(nodeid, -nodeid)


ENTRIES = frozenset({wire.LOOKUP, wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.CREATE, wire.TMPFILE})


def _translated(of: Image, twin: Callable[[int], int]) -> Image:
    """An image, with the node ids of the long way."""

    def named(place: Any) -> Any:
        return None if place is None else (twin(place[0]), place[1])

    inodes = {}
    for nodeid, (_, kind, lookups, children, first, links) in of["inodes"].items():
        inodes[twin(nodeid)] = kind, lookups, children, named(first), {named(link) for link in links}
    return of | {
        "inodes": inodes,
        "handles": {fh: (name, twin(nodeid), flags) for fh, (name, nodeid, flags) in of["handles"].items()},
        "opens": {twin(nodeid): opens for nodeid, opens in of["opens"].items()},
        "pins": {pin: (twin(nodeid), *rest) for pin, (nodeid, *rest) in of["pins"].items()},
    }


def _attributes(fields: list[int]) -> tuple[Any, ...]:
    """struct fuse_attr without its number; of times only those that a request has set."""
    _, size, blocks, atime, mtime, _, atime_ns, mtime_ns, _, mode, *rest = fields
    times = (moment(atime * 10**9 + atime_ns), moment(mtime * 10**9 + mtime_ns))
    sizes = () if stat.S_ISDIR(mode) else (size, blocks)
    return (*times, mode, *sizes, *rest)


def _open_files(fs: FileSystem, twin: Callable[[int], int]) -> Any:
    files = {
        twin(inode.nodeid): (inode.file.opens, inode.file.reader >= 0, inode.file.writer >= 0, inode.file.backing_id)
        for inode in fs.inodes
        if inode.file is not None
    }
    return files, fs.backing.open_files


def _uncached(fs: FileSystem, twin: Callable[[int], int]) -> Any:
    return {twin(nodeid) for nodeid in fs.operations.uncached}


def _pins_by_file(fs: FileSystem, twin: Callable[[int], int]) -> Any:
    book = fs.guard.book
    return {
        twin(nodeid): len(list(file.overlapping(0, 1 << 63))) for nodeid, file in book.files.states.items()
    }, book.ended


def journal(side: Side, twin: Callable[[int], int]) -> dict[str, Any]:
    """What the journal holds for the next daemon, but for times, numbers of records, and where they lie."""
    with closing(Slots(side.journal)) as slots:
        found = {kind: [slots.body(slot) for _, slot in sorted(ids.items())] for kind, ids in slots.load().items()}
        words = slots.words
        counted = words[records.COUNTED]
        at = range(records.FIRST_COUNTED, records.FIRST_COUNTED + 2 * counted, 2)
        told: dict[str, Any] = {
            "executed": words[records.EXECUTED],
            "released": words[records.RELEASED],
            "last": (words[records.LAST_PIN], words[records.LAST_HANDLE], words[records.BROKEN]),
            "counted": (words[records.COUNTED_BY], [(twin(words[i]), words[i + 1]) for i in at]),
        }
    readers: dict[int, Callable[[bytes], Any]] = {
        Kind.INODE: lambda body: _of_inode(records.unpack_inode(body), twin),
        Kind.LINK: lambda body: _of_link(records.unpack_link(body), twin),
        Kind.RENAMING: lambda body: _of_link(records.unpack_link(body), twin),
        Kind.HANDLE: lambda body: _replaced(records.unpack_handle(body), twin),
        Kind.PIN: lambda body: _replaced(records.unpack_pin(body)._replace(since_s=0), twin),
        Kind.BREAK: lambda body: records.unpack_break(body)._replace(chain=0, since_ns=0, deadline_ns=0),
        Kind.ORPHAN: lambda body: _replaced(records.unpack_orphan(body)._replace(serial=0, deadline_ns=0), twin),
        Kind.SILENT: lambda body: records.unpack_silent(body)._replace(serial=0, until_ns=0),
        Kind.STREAM: lambda body: records.unpack_stream(body)._replace(serial=0),
    }
    return told | {
        Kind(kind).name: sorted(readers[kind](body) for body in bodies)
        for kind, bodies in found.items()
        if bodies and kind in readers
    }


def _of_inode(record: records.InodeRecord, twin: Callable[[int], int]) -> Any:
    parent = twin(record.parent) if record.parent else 0
    name = record.name[: record.name_size]
    return twin(record.nodeid), record.lookups, parent, record.backing_id, record.kind, record.flags, name


def _of_link(record: records.LinkRecord, twin: Callable[[int], int]) -> Any:
    return twin(record.nodeid), twin(record.parent), record.name[: record.name_size]


def _replaced(record: Any, twin: Callable[[int], int]) -> Any:
    return tuple(record._replace(nodeid=twin(record.nodeid), chain=0))


@contextmanager
def two_sources(prepare: Callable[[Path], None]) -> Iterator[Path]:
    """A directory with `fast` and `long`, made alike, on a file system that gives no number twice."""
    base = Path(tempfile.mkdtemp(prefix="pinfs-twins-", dir="/dev/shm"))
    try:
        for name in ("fast", "long"):
            (base / name).mkdir()
            prepare(base / name)
        yield base
    finally:
        shutil.rmtree(base)


@asynccontextmanager
async def twins(base: Path, mount: Mount) -> AsyncIterator[Twins]:
    """Both serve, until the test ends."""
    sides = Side(base, mount, fast=True), Side(base, mount, fast=False)
    try:
        async with trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(side.serve)
            both = Twins(sides)
            both.look()
            yield both
            for side in sides:
                side.kernel.shutdown(socket.SHUT_RDWR)
    finally:
        for side in sides:
            side.close()
