"""Each opcode, with the daemon killed around its system call: the effect comes once, the reply is right, and the table
of inodes is what the source has (SPEC 13)."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bridge.deaths import (
    NEGOTIATED,
    Lineage,
    Plan,
    Reply,
    after,
    at_line,
    before,
    before_the_reply,
    lineage,
    setxattr_body,
)
from support import seeds

from pinfs.bridge import wire
from pinfs.bridge.connection import RESENT
from pinfs.bridge.handlers import Handlers
from pinfs.bridge.intents import IntentWriter
from pinfs.bridge.once import REPEATABLE, How
from pinfs.core.files import Files
from pinfs.fs.inodes import InodeTable
from pinfs.fs.recorder import Recorder
from pinfs.interface import ioctls as ioc
from pinfs.journal.records import Kind
from pinfs.journal.slots import HEAD_SLOTS, Slots, new_journal_file
from pinfs.linux import syscalls
from pinfs.linux.calls import stat_of

from .fake_kernel import Canned

Request = tuple[int, int, bytes]  # opcode, node id, body

EXISTING = b"12345678" * 1024


@dataclass
class World:
    """What a case has prepared, and what it finds after the take-over."""

    line: Lineage
    nodeids: dict[str, int] = field(default_factory=dict)
    fh: int = 0
    was_written: bool = False

    @property
    def source(self) -> Path:
        return self.line.source

    @property
    def inodes(self) -> InodeTable:
        return self.line.fs.inodes

    def file(self, name: str, data: bytes = EXISTING, mode: int = 0o644) -> int:
        """A file that the kernel knows."""
        path = self.source / name
        path.write_bytes(data)
        path.chmod(mode)
        return self.known(name)

    def directory(self, name: str) -> int:
        (self.source / name).mkdir()
        return self.known(name)

    def known(self, name: str) -> int:
        self.nodeids[name] = self.line.lookup(name.encode())
        return self.nodeids[name]

    def names_of(self, name: str) -> set[bytes]:
        """The names that the table has for an inode that was known as `name`."""
        inode = self.inodes.known(self.nodeids[name])
        return set() if inode is None else {name for _, name in self.inodes.names_of(inode)}


@dataclass(frozen=True)
class Case:
    """A request, its system call, and how to see that it was executed once."""

    name: str
    call: str
    prepare: Callable[[World], Request]
    check: Callable[[World, Reply], None]
    when: Callable[..., bool] = lambda *args: True
    in_the_gap: Callable[[World], None] = lambda world: None
    """After the death."""

    def __str__(self) -> str:
        return self.name


def succeeded(reply: Reply) -> None:
    assert reply.error == 0, os.strerror(-reply.error)


def created_nodeid(reply: Reply) -> int:
    return int(wire.U64.unpack_from(reply.body)[0])


def ino_of(path: Path) -> int:
    return path.lstat().st_ino


# Names


def _unlink(world: World) -> Request:
    world.file("f")
    return wire.UNLINK, 1, b"f\0"


def _unlinked(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert not (world.source / "f").exists()
    assert world.names_of("f") == set()


def _unlink_one_of_two(world: World) -> Request:
    world.file("f")
    (world.source / "g").hardlink_to(world.source / "f")
    world.known("g")
    return wire.UNLINK, 1, b"f\0"


def _unlinked_one_of_two(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert (world.source / "g").exists()
    assert world.names_of("f") == {b"g"}


def _unlink_open(world: World) -> Request:
    world.fh = world.line.open(world.file("f"))
    return wire.UNLINK, 1, b"f\0"


def _unlinked_open(world: World, reply: Reply) -> None:
    """Without passthrough only the daemon has it open."""
    _unlinked(world, reply)
    handle = world.line.fs.operations.handles.find(world.fh)
    assert handle is not None
    assert handle.inode.file is not None
    assert os.pread(handle.inode.file.reader, 8, 0) == EXISTING[:8]


def _rmdir(world: World) -> Request:
    world.directory("d")
    return wire.RMDIR, 1, b"d\0"


def _rmdired(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert not (world.source / "d").exists()
    assert world.names_of("d") == set()


def _mkdir(world: World) -> Request:
    return wire.MKDIR, 1, wire.MKDIR_IN.pack(0o750, 0o022) + b"new\0"


def _mknod(world: World) -> Request:
    return wire.MKNOD, 1, wire.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0, 0) + b"new\0"


def _symlink(world: World) -> Request:
    return wire.SYMLINK, 1, b"new\0target\0"


def _made(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert created_nodeid(reply) == ino_of(world.source / "new")
    inode = world.inodes.get(created_nodeid(reply))
    assert inode.name == b"new"
    assert inode.lookups >= 1


def _link(world: World) -> Request:
    return wire.LINK, 1, wire.U64.pack(world.file("f")) + b"new\0"


def _linked(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert (world.source / "new").stat().st_nlink == 2
    assert world.names_of("f") == {b"f", b"new"}


def _rename(world: World) -> Request:
    world.file("f")
    return wire.RENAME, 1, wire.U64.pack(world.directory("d")) + b"f\0g\0"


def _renamed(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert not (world.source / "f").exists()
    assert ino_of(world.source / "d/g") == world.nodeids["f"]
    assert world.names_of("f") == {b"g"}
    assert world.inodes.get(world.nodeids["d"]).children == 1


def _rename_over(world: World) -> Request:
    world.file("f")
    world.fh = world.line.open(world.file("g"))
    return wire.RENAME2, 1, wire.RENAME2_IN.pack(1, 0, 0) + b"f\0g\0"


def _renamed_over(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert ino_of(world.source / "g") == world.nodeids["f"]
    assert (world.names_of("f"), world.names_of("g")) == ({b"g"}, set())
    assert world.line.fs.operations.handles.find(world.fh) is not None


def _exchange(world: World) -> Request:
    world.file("f")
    world.directory("g")
    return wire.RENAME2, 1, wire.RENAME2_IN.pack(1, syscalls.RENAME_EXCHANGE, 0) + b"f\0g\0"


def _exchanged(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert ino_of(world.source / "g") == world.nodeids["f"]
    assert ino_of(world.source / "f") == world.nodeids["g"]
    assert (world.names_of("f"), world.names_of("g")) == ({b"g"}, {b"f"})


# Handles


def _create(flags: int, mode: int = 0o644) -> Callable[[World], Request]:
    return lambda world: (wire.CREATE, 1, wire.CREATE_IN.pack(flags | os.O_CREAT, mode, 0, 0) + b"new\0")


def _created(world: World, reply: Reply) -> None:
    _made(world, reply)
    fh, _, _ = wire.OPEN_OUT.unpack_from(reply.body, len(reply.body) - wire.OPEN_OUT.size)
    handles = world.line.fs.operations.handles
    assert [handle.number for handle in handles.all()] == [fh]
    assert world.inodes.get(created_nodeid(reply)).file is not None


def _create_over(world: World) -> Request:
    world.file("new")
    return _create(os.O_RDWR | os.O_TRUNC)(world)


def _write_in_the_gap(name: str) -> Callable[[World], None]:
    """As a writer by passthrough does, which needs no daemon."""

    def write(world: World) -> None:
        if not (world.source / name).stat().st_size:
            (world.source / name).write_bytes(b"written since")
            world.was_written = True

    return write


def _created_over(world: World, reply: Reply) -> None:
    _created(world, reply)
    assert (world.source / "new").read_bytes() == (b"written since" if world.was_written else b"")


def _create_excl_over(world: World) -> Request:
    world.file("new")
    return _create(os.O_RDWR | os.O_EXCL)(world)


def _was_refused(number: int) -> Callable[[World, Reply], None]:
    def check(world: World, reply: Reply) -> None:
        assert reply.error == -number

    return check


def _tmpfile(world: World) -> Request:
    return wire.TMPFILE, 1, wire.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"\0"


def _made_nameless(world: World, reply: Reply) -> None:
    succeeded(reply)
    fh, _, _ = wire.OPEN_OUT.unpack_from(reply.body, len(reply.body) - wire.OPEN_OUT.size)
    assert [handle.number for handle in world.line.fs.operations.handles.all()] == [fh]


def _open(flags: int) -> Callable[[World], Request]:
    return lambda world: (wire.OPEN, world.file("f"), wire.OPEN_IN.pack(flags, 0))


def _opened(world: World, reply: Reply) -> None:
    succeeded(reply)
    fh, _, _ = wire.OPEN_OUT.unpack(reply.body)
    assert [handle.number for handle in world.line.fs.operations.handles.all()] == [fh]


def _truncated(world: World, reply: Reply) -> None:
    _opened(world, reply)
    assert (world.source / "f").read_bytes() == (b"written since" if world.was_written else b"")


def _opendir(world: World) -> Request:
    return wire.OPENDIR, world.directory("d"), bytes(8)


# Bytes


def _fallocate(mode: int) -> Callable[[World], Request]:
    def prepare(world: World) -> Request:
        nodeid = world.file("f", EXISTING)
        return wire.FALLOCATE, nodeid, wire.FALLOCATE_IN.pack(world.line.open(nodeid), 4096, 4096, mode, 0)

    return prepare


def _has(data: bytes) -> Callable[[World, Reply], None]:
    def check(world: World, reply: Reply) -> None:
        succeeded(reply)
        assert (world.source / "f").read_bytes() == data

    return check


def _setattr(world: World) -> Request:
    fields = [0] * 16
    fields[0], fields[3] = wire.FATTR_SIZE, 100
    return wire.SETATTR, world.file("f"), wire.SETATTR_IN.pack(*fields)


def _write(world: World) -> Request:
    nodeid = world.file("f", b"")
    return wire.WRITE, nodeid, wire.WRITE_IN.pack(world.line.open(nodeid), 0, 4, 0, 0, 0, 0) + b"data"


# Attributes and pins

ATTRIBUTE = b"user.attribute"
PIN = b"user.pinfs.pin.p"
RELEASE = b"user.pinfs.release.p"


def _create_attribute(world: World) -> Request:
    return wire.SETXATTR, world.file("f"), setxattr_body(ATTRIBUTE, b"value", 1)


def _has_attribute(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert os.getxattr(world.source / "f", ATTRIBUTE) == b"value"


def _create_attribute_again(world: World) -> Request:
    nodeid = world.file("f")
    world.line.set_attribute(nodeid, ATTRIBUTE, b"value")
    return wire.SETXATTR, nodeid, setxattr_body(ATTRIBUTE, b"value", 1)


def _remove_attribute(world: World) -> Request:
    nodeid = world.file("f")
    world.line.set_attribute(nodeid, ATTRIBUTE, b"value")
    return wire.REMOVEXATTR, nodeid, ATTRIBUTE + b"\0"


def _has_no_attribute(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert os.listxattr(world.source / "f") == []


def _pin(flags: int) -> Callable[[World], Request]:
    return lambda world: (wire.SETXATTR, world.file("f"), setxattr_body(PIN, b"0:10,mode=lease", flags))


def _replace_pin(world: World) -> Request:
    nodeid = world.file("f")
    world.line.set_attribute(nodeid, PIN, b"5:5")
    return wire.SETXATTR, nodeid, setxattr_body(PIN, b"0:10", 2)


def pins_of(world: World) -> list[tuple[int, int]]:
    return [(pin.start, pin.length) for pin in world.line.fs.guard.book.table.by_id.values()]


def _is_pinned(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert pins_of(world) == [(0, 10)]


def _release(opcode: int) -> Callable[[World], Request]:
    def prepare(world: World) -> Request:
        nodeid = world.file("f")
        world.line.set_attribute(nodeid, PIN, b"0:10")
        body = PIN + b"\0" if opcode == wire.REMOVEXATTR else wire.GETXATTR_IN.pack(100, 0) + RELEASE + b"\0"
        return opcode, nodeid, body

    return prepare


def _is_not_pinned(world: World, reply: Reply) -> None:
    succeeded(reply)
    assert pins_of(world) == []


def _ioctl(world: World, cmd: int, data: bytes) -> Request:
    return wire.IOCTL, world.nodeids["f"], wire.IOCTL_IN.pack(world.fh, 0, cmd, 0, len(data), len(data)) + data


def _pin_by_ioctl(world: World) -> Request:
    world.fh = world.line.open(world.file("f"))
    return _ioctl(world, ioc.PIN, ioc.PinRequest(0, 10, ioc.LEASE).pack())


def _is_pinned_by_ioctl(world: World, reply: Reply) -> None:
    _is_pinned(world, reply)
    answered = ioc.PinRequest.unpack(reply.body[wire.IOCTL_OUT.size :])
    assert [*world.line.fs.guard.book.table.by_id] == [answered.id]


def _unpin_by_ioctl(world: World) -> Request:
    opcode, nodeid, body = _pin_by_ioctl(world)
    answer = world.line.ask(opcode, body, nodeid)
    pin = ioc.PinRequest.unpack(answer.body[wire.IOCTL_OUT.size :])
    return _ioctl(world, ioc.UNPIN, ioc.UNPIN_LAYOUT.pack(pin.id))


def _creates(*args: Any) -> bool:
    return len(args) > 1 and bool(args[1] & os.O_CREAT)


def _is_nameless(*args: Any) -> bool:
    return len(args) > 1 and args[1] & os.O_TMPFILE == os.O_TMPFILE


CUT = EXISTING[:4096]
CASES = [
    Case("unlink", "os.unlink", _unlink, _unlinked),
    Case("unlink of one of two names", "os.unlink", _unlink_one_of_two, _unlinked_one_of_two),
    Case("unlink of an open file", "os.unlink", _unlink_open, _unlinked_open),
    Case("rmdir", "os.rmdir", _rmdir, _rmdired),
    Case("mkdir", "os.mkdir", _mkdir, _made),
    Case("mknod", "os.mknod", _mknod, _made),
    Case("symlink", "os.symlink", _symlink, _made),
    Case("link", "os.link", _link, _linked),
    Case("rename", "syscalls.renameat2", _rename, _renamed),
    Case("rename over", "syscalls.renameat2", _rename_over, _renamed_over),
    Case("exchange", "syscalls.renameat2", _exchange, _exchanged),
    Case("create", "os.open", _create(os.O_RDWR), _created, _creates),
    Case("create excl", "os.open", _create(os.O_RDWR | os.O_EXCL), _created, _creates),
    Case("create without rights", "os.open", _create(os.O_RDWR | os.O_EXCL, 0o400), _created, _creates),
    Case("create over", "os.ftruncate", _create_over, _created_over, in_the_gap=_write_in_the_gap("new")),
    Case("create excl over", "os.open", _create_excl_over, _was_refused(errno.EEXIST), _creates),
    Case("tmpfile", "os.open", _tmpfile, _made_nameless, _is_nameless),
    Case("open", "os.open", _open(os.O_RDWR), _opened),
    Case("open trunc", "os.ftruncate", _open(os.O_RDWR | os.O_TRUNC), _truncated, in_the_gap=_write_in_the_gap("f")),
    Case("opendir", "os.open", _opendir, _opened),
    Case("punch", "syscalls.fallocate", _fallocate(3), _has(CUT + bytes(4096))),
    Case("collapse", "syscalls.fallocate", _fallocate(8), _has(CUT)),
    Case("insert", "syscalls.fallocate", _fallocate(32), _has(CUT + bytes(4096) + CUT)),
    Case("allocate", "syscalls.fallocate", _fallocate(0), _has(EXISTING)),
    Case("truncate", "os.ftruncate", _setattr, _has(EXISTING[:100])),
    Case("write", "os.pwrite", _write, _has(b"data")),
    Case("create attribute", "os.setxattr", _create_attribute, _has_attribute),
    Case("create attribute again", "os.setxattr", _create_attribute_again, _was_refused(errno.EEXIST)),
    Case("remove attribute", "os.removexattr", _remove_attribute, _has_no_attribute),
    Case("pin", "", _pin(0), _is_pinned),
    Case("create pin", "", _pin(1), _is_pinned),
    Case("replace pin", "", _replace_pin, _is_pinned),
    Case("release by removexattr", "", _release(wire.REMOVEXATTR), _is_not_pinned),
    Case("release by getxattr", "", _release(wire.GETXATTR), _is_not_pinned),
    Case("pin by ioctl", "", _pin_by_ioctl, _is_pinned_by_ioctl),
    Case("unpin by ioctl", "", _unpin_by_ioctl, _is_not_pinned),
]


# How a case is run


def fallocate_anywhere(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), as ext4 has it, on any file system."""
    data = os.pread(fd, 1 << 20, 0)
    if mode & syscalls.FALLOC_FL_PUNCH_HOLE:
        os.pwrite(fd, bytes(min(length, len(data) - offset)), offset)
    elif mode & syscalls.FALLOC_FL_COLLAPSE_RANGE:
        os.ftruncate(fd, os.pwrite(fd, data[:offset] + data[offset + length :], 0))
    elif mode & syscalls.FALLOC_FL_INSERT_RANGE:
        os.pwrite(fd, data[:offset] + bytes(length) + data[offset:], 0)


@pytest.fixture(autouse=True)
def _any_backing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "fallocate", fallocate_anywhere)


def take_over(world: World, request: Request, check: Callable[[World, Reply], None]) -> None:
    """This process is the next daemon: the kernel sends the request once more."""
    line = world.line
    opcode, nodeid, body = request
    line.kernel.send(line.request(opcode, nodeid, body, RESENT))

    async def serve_and_check() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: line.serve(resumed=True))
            reply = None
            with trio.fail_after(20):
                while reply is None or not reply.unique:
                    await trio.lowlevel.wait_readable(line.kernel)
                    message = line.kernel.recv(2 << 20)
                    _, error, unique = wire.OUT_HEADER.unpack_from(message)
                    reply = Reply(unique=unique, error=error, body=message[wire.OUT_SIZE :])
            try:
                assert reply.unique == line.last_unique | RESENT
                check(world, reply)
                check_table(world.inodes)
                assert not Slots(os.dup(line.journal)).load().get(Kind.INTENT)
            finally:
                line.kernel.shutdown(2)

    trio.run(serve_and_check)


def check_table(inodes: InodeTable) -> None:
    """Each name leads to its inode, and each directory counts its names."""
    children = dict.fromkeys(inodes, 0)
    for inode in inodes:
        for parent, name in inodes.names_of(inode):
            children[parent] += 1
            st = os.stat(name, dir_fd=inodes.fd(parent), follow_symlinks=False)
            assert inodes.key_of(stat_of(st)) == inode.key
    assert {inode: inode.children for inode in inodes} == children


def run_case(source: Path, case: Case, *plans: Plan) -> bool:
    """One daemon for each plan, and then one that answers. False: none has died, since the plan came too late."""
    with lineage(source) as line:
        world = World(line)
        line.spawn(plans[0])
        request = opcode, nodeid, body = case.prepare(world)
        line.kernel.send(line.request(opcode, nodeid, body, fatal=True))
        if line.reply() is not None:
            return False
        case.in_the_gap(world)
        for plan in plans[1:]:
            line.spawn(plan, resumed=True)
            line.kernel.send(line.request(opcode, nodeid, body, RESENT, fatal=True))
            if line.reply() is not None:
                return False
        take_over(world, request, case.check)
        return True


BY_SYSTEM_CALL = [case for case in CASES if case.call]


@pytest.mark.interpreted  # the system call is watched as Python makes it
@pytest.mark.parametrize("case", BY_SYSTEM_CALL, ids=str)
def test_death_before_the_system_call(tmp_path: Path, case: Case) -> None:
    assert run_case(tmp_path, case, before(case.call, case.when))


@pytest.mark.interpreted  # the system call is watched as Python makes it
@pytest.mark.parametrize("case", BY_SYSTEM_CALL, ids=str)
def test_death_after_the_system_call(tmp_path: Path, case: Case) -> None:
    assert run_case(tmp_path, case, after(case.call, case.when))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_death_before_the_reply(tmp_path: Path, case: Case) -> None:
    assert run_case(tmp_path, case, before_the_reply)


MOST_LINES = 280
"""Of pinfs, that a request takes here; the rest of a take-over takes more."""
IN_EACH_CASE = MOST_LINES if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 4


def some_lines(case: Case, up_to: int) -> list[int]:
    return random.Random(f"{seeds.SEED} {case}").sample(range(1, up_to), IN_EACH_CASE - 1)


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_death_at_any_line(tmp_path: Path, case: Case) -> None:
    for line in some_lines(case, MOST_LINES):
        source = tmp_path / str(line)
        source.mkdir()
        with dying_at(line):
            run_case(source, case, at_line(line))


@pytest.mark.interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_death_at_any_line_and_in_the_take_over_as_well(tmp_path: Path, case: Case) -> None:
    second = some_lines(case, MOST_LINES)
    random.Random(seeds.SEED).shuffle(second)
    for first, then in zip(some_lines(case, MOST_LINES), second, strict=True):
        source = tmp_path / f"{first}-{then}"
        source.mkdir()
        with dying_at(first, then):
            run_case(source, case, at_line(first), at_line(then))


@contextmanager
def dying_at(*lines: int) -> Iterator[None]:
    try:
        yield
    except BaseException as e:
        e.add_note(f"died at line {lines}")
        raise


# The table


def opcodes() -> dict[str, int]:
    """Those of the wire format: its only small numbers that are alone on their line."""
    text = Path(wire.__file__).read_text()
    listed = text[text.index("# Opcodes") : text.index("# Headers")]
    return {line.split(":")[0]: int(line.split("=")[1]) for line in listed.splitlines() if "=" in line}


def test_each_opcode_says_why_it_may_be_repeated() -> None:
    assert REPEATABLE.keys() == set(opcodes().values())
    assert Handlers(Canned(), lambda message: None).routes().keys() <= REPEATABLE.keys()  # type: ignore[arg-type]


def test_the_documents_have_the_table() -> None:
    named = {number: name for name, number in opcodes().items()}
    rows = [f"| {named[opcode]} | {how.value} | {because} |" for opcode, (how, because) in REPEATABLE.items()]
    text = (Path(__file__).parents[2] / "docs" / "survival.md").read_text()
    assert not [row for row in rows if row not in text]


def test_intents_are_around_what_has_one_by_the_table(tmp_path: Path) -> None:
    async def wrapped() -> set[int]:
        with lineage(tmp_path) as line:
            line.assemble()
            once = line.begin(NEGOTIATED)
            routes = once.routes(Handlers(line.fs.operations, lambda message: None).routes())
            line.fs.close()
            return set(routes)

    by_intent = {opcode for opcode, (how, because) in REPEATABLE.items() if "intent" in because or how is How.BY_INTENT}
    assert trio.run(wrapped) == by_intent


async def test_a_cut_without_room_for_its_intent_leaves_nothing() -> None:
    """A full journal gives no slot, which nothing would take back."""
    journal = new_journal_file()
    recorder = Recorder(Slots(journal, max_slots=HEAD_SLOTS), SimpleNamespace(), 0, lambda nodeid: False)
    intents = IntentWriter(recorder, None, Files())  # type: ignore[arg-type]
    assert intents.begin_cut(SimpleNamespace(unique=2, opcode=wire.OPEN), 10) == 0
    assert intents.cuts == {}
    assert "in use" in recorder.broken_because
    recorder.close()
    os.close(journal)
