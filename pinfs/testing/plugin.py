"""pytest fixtures for the tests of programs that use pinfs; loaded by pytest where pinfs is installed.

@pytest.mark.pinfs(options=["break_timeout=2"])
def test_it(pinfs_mount, pinfs_pin):
    file = pinfs_mount.path / "data.bin"
    ...
    pinfs_pin(file, 0, 4096, mode="lease")
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pinfs.testing.held import HeldPin
from pinfs.testing.scratch import ScratchError, ScratchMount

MARKER = "pinfs(options=[], backing=None): how the fixture `pinfs_mount` mounts (mount options; where the source lies)"
_MOUNT = pytest.StashKey[ScratchMount]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def pinfs_mount(request: pytest.FixtureRequest) -> Iterator[ScratchMount]:
    """An empty pinfs for one test, on tmpfs: `path`, `source`, `options`, `pins()`, `log()`."""
    marker = request.node.get_closest_marker("pinfs")
    mount = ScratchMount(*marker.args, **marker.kwargs) if marker else ScratchMount()
    with ExitStack() as stack:
        try:
            stack.enter_context(mount)
        except ScratchError as error:
            pytest.fail(str(error), pytrace=False)
        request.node.stash[_MOUNT] = mount
        yield mount


@pytest.fixture
def pinfs_pin(pinfs_mount: ScratchMount) -> Iterator[Callable[..., HeldPin]]:
    """`pinfs_pin(file, start=0, length=0, mode="deny", lets_go=True, note="")`: another process pins that range.

    Released at the end of the test. See `pinfs.testing.HeldPin`.
    """
    with ExitStack() as stack:

        def pin(file: str | os.PathLike[str], start: int = 0, length: int = 0, **how: Any) -> HeldPin:
            return stack.enter_context(HeldPin(os.fspath(file), start, length, **how))

        yield pin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the daemon's log to the report of a failed test."""
    report = yield
    mount = item.stash.get(_MOUNT, None)
    if (
        report.failed and call.when != "teardown" and mount is not None
    ):  # after the teardown the log is gone with the mount
        report.sections.append((f"log of the pinfs on {mount.path}", mount.log()))
    return report
