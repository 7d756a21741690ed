"""Fixtures for tests on real mounts, and what holds for every test. See support/mounts.py."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import acts, mounts, seeds, start
from support.actor import Actors
from support.disks import Disks
from support.mounts import Mount

from pinfs import pure
from pinfs.pure import is_compiled

hypothesis.settings.register_profile("default", max_examples=50, deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", max_examples=5000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28

NewMount = Callable[..., Mount]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis takes the run's seed, unless the command line has another one for it."""
    if start.is_misread():
        if capture := config.pluginmanager.getplugin("capturemanager"):
            capture.suspend_global_capture(in_=True)
        start.restart()
    start.settle_process()
    if is_compiled() and (older := _older_than_its_source()):
        pytest.exit(f"{older} is older than its source: make build", pytest.ExitCode.USAGE_ERROR)
    os.environ["PINFS_STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="pinfs-state-")
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(seeds.SEED)


def _older_than_its_source() -> Path | None:
    """An extension that would run in place of what has been written since."""
    for extension in Path(pure.__file__).parent.rglob("*.so"):
        stem = extension.parent / extension.name.partition(".")[0]
        leaf = stem.with_suffix(".pyx")
        sources = [leaf if leaf.exists() else stem.with_suffix(".py"), stem.with_suffix(".pxd")]
        if any(source.stat().st_mtime > extension.stat().st_mtime for source in sources):
            return extension
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """After pytest itself has read what concerns its own output (COLUMNS, NO_COLOR) and paths (`--junitxml`)."""
    start.settle_environment()


def pytest_report_header() -> str:
    kind = "compiled" if is_compiled() else "interpreted"
    return f"seed: {seeds.SEED} ({seeds.REPEAT}); pinfs is {kind}"


@pytest.fixture
def disks() -> Iterator[Disks]:
    """File systems in images, which go with the test."""
    base = mounts.new_base("disk")
    disks = Disks(base)
    yield disks
    disks.close()
    shutil.rmtree(base)


@pytest.fixture(autouse=True)
def _blames_itself(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files and processes that a test forgot warn (ResourceWarning) when they are collected, which fails the test that
    runs: this one, and not one of those after it. It is torn down last; a failed test lives on in its traceback."""
    yield
    if getattr(request.node, "funcargs", None):
        request.node.funcargs.clear()
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()
    if not gc.get_freeze_count():  # a test that counts objects takes them all back
        gc.freeze()


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def _first_example(_: None) -> None: ...


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Everything that is there before the first test stays: collections pass it over, and take a millisecond.

    Hypothesis looks for what refers to its generator of random numbers as it runs its first example. With CPython 3.14
    it would not find what stays, and warn."""
    _first_example()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_process_as_before(_blames_itself: None) -> Iterator[None]:
    """Operations that run in the test process change its umask, and how it becomes another user (prctl(2),
    SECBIT_NO_SETUID_FIXUP). Its children would inherit both, and be root under another name."""
    securebits = acts.libc.prctl(PR_GET_SECUREBITS)
    random.seed(seeds.SEED)
    yield
    acts.libc.prctl(PR_SET_SECUREBITS, securebits)
    os.umask(start.UMASK)
    os.chdir(start.REPO)


@pytest.fixture(scope="session")
def fuse() -> None:
    """Fixtures and tests that mount a file system depend on this one."""


@pytest.fixture(scope="session")
def root() -> None:
    """Tests that act as several users, or change what only root may, depend on this one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test that depends neither on `fuse` nor on `root` is a unit test (`make unit`). Those of the other kind of
    pinfs than runs here, compiled or interpreted, are deselected."""
    for item in items:
        if isinstance(item, pytest.Function) and not {"fuse", "root"} & {*item.fixturenames}:
            item.add_marker("unit")
    other = "interpreted" if is_compiled() else "compiled"
    if left_out := [item for item in items if item.get_closest_marker(other)]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(other)]


@pytest.fixture
def base(fuse: None) -> Iterator[Path]:
    """A fresh world-readable directory on tmpfs, for tests that mount by hand."""
    path = mounts.new_base()
    yield path
    mounts.remove_tree(path)


@pytest.fixture
def actors() -> Iterator[Actors]:
    """Processes that the test directs, for tests without a mount of ours (a mount has its own)."""
    actors = Actors()
    yield actors
    actors.dismiss()


@pytest.fixture
def new_mount(fuse: None) -> Iterator[NewMount]:
    """Mounts as many as the test asks for: `new_mount("break_timeout=2", backing="disk")`."""
    with ExitStack() as stack:
        yield lambda *options, **how: stack.enter_context(mounts.fresh_mount(*options, **how))


@pytest.fixture
def mount(request: pytest.FixtureRequest, new_mount: NewMount) -> Mount:
    """A mount of the test's own; `@pytest.mark.mount("break_timeout=2", backing="disk")` says how."""
    marker = request.node.get_closest_marker("mount")
    return new_mount(*marker.args, **marker.kwargs) if marker else new_mount()


@pytest.fixture(scope="module")
def _module_mount(fuse: None, request: pytest.FixtureRequest) -> Iterator[Mount]:
    with mounts.fresh_mount(*getattr(request.module, "SHARED_MOUNT_OPTIONS", ())) as mount:
        yield mount


@pytest.fixture
def shared_mount(_module_mount: Mount) -> Iterator[Mount]:
    """One mount for all tests of a module (its SHARED_MOUNT_OPTIONS), for tests that leave it as they found it."""
    with _module_mount.lent() as mount:
        yield mount


@pytest.fixture
def shared_dir(shared_mount: Mount) -> Path:
    """A fresh directory on the shared mount, open to every uid."""
    return shared_mount.new_dir()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pinfs` on the PATH, as an installed package has it."""
    program = tmp_path / "pinfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pinfs.cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """A failed test shows its seed, and what the daemons that it had wrote."""
    report = yield
    if report.failed:
        report.sections.append(("seed", seeds.REPEAT))
        for live in (live for live in mounts.live if live.base.exists()):
            report.sections.append((f"log of the daemon on {live.path}", live.log()[-20_000:]))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of ours stays mounted, and no daemon is left unreaped, or the run fails."""
    shutil.rmtree(os.environ["PINFS_STATE_DIRECTORY"], ignore_errors=True)
    for mount in mounts.live:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nnever stopped by its test: {mount.path}, daemon {mount.pid}")
    for path in mounts.leftovers():
        mounts.force_umount(path)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nleft mounted by the tests: {path}")
