"""Everything that is not about pins behaves as the backing directory does (SPEC 11): the same calls on both, compared.

PINFS_PARITY_SECONDS says how long each backing is driven (default 7 s), and other kinds of mounts a third of it.
A failure prints a program that repeats it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from mounted.world import USER, as_user
from support import mounts
from support.seeds import SEED

from parity import grammar
from parity.calls import KNOWN
from parity.grammar import Existing, Mapped, Opened
from parity.modes import (
    BY_A_USER,
    EXPORTED,
    ON_TMPFS,
    PYFUSE3_ALONE,
    SEALED,
    STRAIGHT,
    THROUGH_THE_DAEMON,
    Mode,
    SealedMount,
    ServedMount,
    UsersMount,
)
from parity.pair import DifferenceError, Pair

NewMount = Callable[..., mounts.Mount]
SECONDS = float(os.environ.get("PINFS_PARITY_SECONDS", "7"))
LIMIT_S = 600.0
"""What a minute's drive may take: a failure is made as short as it can be, which takes its time."""

EXAMPLES_PER_ROUND = 25
STEPS = 60

OPENING, MAPPING = {"open", "openat", "reopen", "dup"}, {"mmap"}


class ParityMachine(RuleBasedStateMachine):
    """One sequence of steps. The rules, one for each call of the grammar, are added below."""

    pair: Pair
    """Set by the test: the same for all sequences."""
    left_out: frozenset[str] = frozenset()
    """Calls that are not made, and flags that are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self.opened: list[tuple[str, int]] = []
        self.mapped: list[tuple[str, int]] = []
        self.pair.begin()

    @initialize(who=grammar.actors, mode=grammar.modes)
    def furnish(self, who: str, mode: int) -> None:
        """Something to work on: most sequences would otherwise end in ENOENT."""
        self.step("root", "mkdir", b"d", 0o777)
        self.step(who, "mkdir", b"e", 0o755)
        self.step(who, "open", 0, b"a", "RDWR|CREAT", mode)
        self.step(who, "write", 0, (b"A", 10000))

    @rule(reach=st.sampled_from(["", "above"]))
    def look_at_everything(self, reach: str) -> None:
        self.step("root", "tree", reach)

    def step(self, who: str, call: str, *arguments: Any) -> None:
        with self.watched():
            kind, _ = self.pair.step(who, call, *arguments)
        if kind == "ok" and call in OPENING | MAPPING:
            table = self.opened if call in OPENING else self.mapped
            table[:] = [*(one for one in table if one != (who, arguments[0])), (who, arguments[0])]
        if kind == "ok" and call in ("close", "munmap"):
            (self.opened if call == "close" else self.mapped).remove((who, arguments[0]))

    def resolve(self, who: str, arguments: Sequence[Any]) -> tuple[str, list[Any]] | None:
        """Puts what exists now for what the grammar left open; None where there is nothing yet."""
        settled, owner = list(arguments), None
        for at, one in enumerate(arguments):
            if isinstance(one, Opened | Mapped):
                table = self.opened if isinstance(one, Opened) else self.mapped
                mine = [entry for entry in table if owner in (None, entry[0])]
                if not mine:
                    return None
                owner, settled[at] = mine[one % len(mine)]
            elif isinstance(one, Existing):
                settled[at] = self.pair.existing(one)
        return owner or who, settled

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.failed = True
        yield
        self.failed = False

    def teardown(self) -> None:
        if not self.failed:  # what is compared after a failure would hide it
            with self.watched():
                self.pair.end()


def _drops_set_ids_for_anybody(who: str, call: str, values: Sequence[Any]) -> bool:
    """chown(-1, -1), which the mount takes for a write, where the kernel refuses it (docs/promises.md)."""
    return call in ("chown", "fchown") and values[1:3] == [-1, -1] and not who.startswith("root")


def _rule_for(call: str, arguments: st.SearchStrategy[tuple[Any, ...]]) -> Callable[..., None]:
    def run(self: ParityMachine, who: str, arguments: tuple[Any, ...]) -> None:
        flags = {flag for one in arguments if isinstance(one, str) for flag in one.split("|")}
        if not self.left_out & {call, *flags} and (settled := self.resolve(who, arguments)):
            actor, values = settled
            if not _drops_set_ids_for_anybody(actor, call, values):
                self.step(actor, call, *values)

    run.__name__ = call
    return rule(who=grammar.actors, arguments=arguments)(run)


for _call, _arguments in grammar.CALLS.items():
    setattr(ParityMachine, _call, _rule_for(_call, st.tuples(*_arguments)))

PROFILE = settings(
    max_examples=EXAMPLES_PER_ROUND,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,  # the printed program repeats a failure; an old sequence says little about new code
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def drive(
    native: Path,
    mounted: Path,
    source: Path | None = None,
    seconds: float = SECONDS,
    mode: Mode = STRAIGHT,
    rounds: Iterator[int] | None = None,
) -> None:
    """Sequences until the time is up, at least one round; `rounds` number the seeds that are used.

    A failure prints the replay script of the shortest sequence that fails.
    """
    pair = Pair(native, mounted, source, mode.unseen, mode.known)
    machine = type("Parity", (ParityMachine,), {"pair": pair, "left_out": frozenset(mode.left_out)})
    end = time.monotonic() + seconds
    try:
        for number in rounds or count():
            run_state_machine_as_test(seed(f"{SEED} {number}")(machine), settings=PROFILE)
            if time.monotonic() >= end:
                break
    except DifferenceError:
        print(pair.script())
        raise
    finally:
        pair.close()


def drive_new_mounts(new: Callable[[], mounts.Mount], seconds: float, mode: Mode) -> None:
    """A fresh mount every minute: tests may not keep one for hours."""
    end = time.monotonic() + seconds
    rounds = count()
    while time.monotonic() < end:
        mount = new()
        mount.watch(LIMIT_S)
        native = mount.base / "native"
        native.mkdir()
        drive(native, mount.path, mount.source, min(60.0, end - time.monotonic()), mode, rounds)
        mount.stop()


@pytest.mark.parametrize(("backing", "mode"), [("tmpfs", ON_TMPFS), ("disk", STRAIGHT)], ids=["tmpfs", "disk"])
def test_the_mount_behaves_as_its_backing_does(new_mount: NewMount, backing: str, mode: Mode) -> None:
    drive_new_mounts(lambda: new_mount(*mode.options, backing=backing), SECONDS, mode)


@pytest.mark.parametrize("backing", ["tmpfs", "disk"])
def test_a_mount_whose_files_are_all_sealed_does(fuse: None, backing: str) -> None:
    with ExitStack() as stack:

        def new() -> mounts.Mount:
            base = mounts.new_base(backing)
            stack.callback(mounts.remove_tree, base)
            mount = stack.enter_context(SealedMount(base, SEALED.options))
            (mount.path / "file").touch()
            assert mount.status()["sealed_files"] == 1
            (mount.path / "file").unlink()
            return mount

        drive_new_mounts(new, SECONDS, SEALED)


@pytest.mark.parametrize("mode", [ON_TMPFS, THROUGH_THE_DAEMON, PYFUSE3_ALONE], ids=lambda mode: mode.options[-1])
def test_a_mount_of_a_source_that_may_never_answer_does(fuse: None, mode: Mode) -> None:
    with ExitStack() as stack:

        def new() -> mounts.Mount:
            base = mounts.new_base()
            stack.callback(mounts.remove_tree, base)
            mount = stack.enter_context(ServedMount(base, mode.options))
            assert mount.status()["source_calls"] is not None
            return mount

        drive_new_mounts(new, SECONDS / 3, mode)


@pytest.mark.parametrize("mode", [THROUGH_THE_DAEMON, PYFUSE3_ALONE, EXPORTED], ids=lambda mode: mode.options[-1])
def test_a_mount_in_another_mode_does(new_mount: NewMount, mode: Mode) -> None:
    drive_new_mounts(lambda: new_mount(*mode.options), SECONDS / 3, mode)


def test_a_users_mount_does(fuse: None) -> None:
    """Driven by the user, who alone may enter: with one uid and no capability."""
    base = mounts.new_base()
    program = "from parity.test_parity import drive_as_user; drive_as_user()"
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        with UsersMount(base) as mount:
            mount.watch(SECONDS + LIMIT_S)
            command = [*as_user(USER), sys.executable, "-c", program, str(base)]
            done = subprocess.run(command, cwd=base, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        shutil.rmtree(base)


def drive_as_user() -> None:
    """What that user's process does."""
    base = Path(sys.argv[1])
    drive(base / "native", base / "mnt", base / "source", SECONDS / 3, BY_A_USER)


@pytest.fixture
def two_directories(root: None) -> Iterator[tuple[Path, Path]]:
    base = mounts.new_base("tmpfs")
    pair = base / "one", base / "two"
    for path in pair:
        path.mkdir()
    yield pair
    shutil.rmtree(base)


def test_the_comparison_itself_is_quiet(two_directories: tuple[Path, Path]) -> None:
    drive(two_directories[0], two_directories[1], seconds=0, mode=Mode(known=()))


Spoil = Callable[[Path], object]


def _zeros_as_hole(file: Path) -> None:
    with file.open("wb") as whole:
        whole.truncate(10000)


CAPABILITY = ("security.capability", bytes.fromhex("0100000200040000") + bytes(12))
STRANGERS_ACL = ("system.posix_acl_access", grammar.acl(4, 6, 4, 4, 0))
OCCURS: dict[str, tuple[Mode, list[Any]]] = {
    "root writes": (STRAIGHT, [("root", "chmod", b"a", 0o6777), ("root", "write", 0, (b"A", 1))]),
    "a member of the group writes": (STRAIGHT, [("alice", "chmod", b"a", 0o2644), ("alice", "write", 0, (b"A", 1))]),
    "root allocates": (
        STRAIGHT,
        [
            ("root", "chmod", b"a", 0o6777),
            ("root", "fsetxattr", 0, CAPABILITY),
            ("root", "fallocate", 0, "", 0, 10),
        ],
    ),
    "a stranger to the group cuts": (
        STRAIGHT,
        [("alice", "chmod", b"a", 0o2666), ("bob", "open", 0, b"a", "RDWR", 0), ("bob", "ftruncate", 0, 50)],
    ),
    "an owner sets an ACL": (
        PYFUSE3_ALONE,
        [
            ("root", "chown", b"a", 41001, 41002, False),
            ("root", "chmod", b"a", 0o2640),
            ("alice", "setxattr", b"a", STRANGERS_ACL, "", False),
        ],
    ),
}
"""Steps that lead to each known difference, in a mode that has it. "a" is a file of alice, open for alice and root."""


def test_every_known_difference_is_one(new_mount: NewMount) -> None:
    """What is excused occurs, in these words of docs/promises.md, and nothing differs after it."""
    assert set(OCCURS) == set(KNOWN)
    for name, (mode, steps) in OCCURS.items():
        mount = new_mount(*mode.options)
        (native := mount.base / "native").mkdir()
        _make(Pair(native, mount.path, mount.source, mode.unseen, mode.known), steps)
        with pytest.raises(DifferenceError, match="mode"):
            _make(Pair(native, mount.path, mount.source, mode.unseen, set(mode.known) - {name}), steps)
        mount.stop()


def _make(pair: Pair, steps: list[Any]) -> None:
    try:
        pair.begin()
        for who in ("alice", "root"):
            pair.step(who, "open", 0, b"a", "RDWR|CREAT", 0o644)
        for step in steps:
            pair.step(*step)
        pair.end()
    finally:
        pair.close()


SPOILS: dict[str, Spoil] = {
    "mode": lambda file: file.chmod(0o641),
    "owner": lambda file: os.chown(file, os.getuid(), 41002),
    "byte": lambda file: file.write_bytes(bytes(9999) + b"B"),
    "size": lambda file: os.truncate(file, 9999),
    "hole": _zeros_as_hole,
    "time": lambda file: os.utime(file, (1, 1)),
    "link": lambda file: os.link(file, file.with_name("b")),
    "name": lambda file: file.rename(file.with_name("b")),
    "xattr": lambda file: os.setxattr(file, "user.a", b"v"),
    "entry": lambda file: file.with_name("fifo").mkdir(),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_the_comparison_finds(spoil: Spoil, two_directories: tuple[Path, Path]) -> None:
    pair = Pair(*two_directories)
    try:
        pair.step("root", "open", 0, b"a", "RDWR|CREAT", 0o644)
        pair.step("root", "write", 0, (b"\0", 10000))
        pair.step("root", "tree")
        spoil(two_directories[1] / "parity/root/a")
        with pytest.raises(DifferenceError):
            pair.step("root", "tree")
    finally:
        pair.close()


def test_a_failure_can_be_replayed(two_directories: tuple[Path, Path], tmp_path: Path) -> None:
    pair = Pair(*two_directories)
    pair.step("root", "mkdir", b"d", 0o755)
    script = tmp_path / "replay.py"
    script.write_text(pair.script())
    pair.close()
    done = subprocess.run([sys.executable, "-I", script, *two_directories], capture_output=True, text=True, check=True)
    assert "no difference" in done.stdout
