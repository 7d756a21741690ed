"""The fixtures themselves: what a daemon may not do fails the test, and cannot wedge the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import mounts
from support.mounts import DaemonError, Mount, is_mounted


@pytest.fixture
def doomed(base: Path) -> Iterator[Mount]:
    """A mount whose test must fail at its end."""
    mount = Mount(base)
    yield mount
    with suppress(DaemonError):
        mount.__exit__(None, None, None)


def say(mount: Mount, line: str) -> None:
    with (mount.base / "log").open("a") as log:
        log.write(line + "\n")


@pytest.mark.parametrize("line", ["x WARNING: odd", "ERROR odd", "Traceback (most recent call last):"])
def test_an_unannounced_warning_fails(doomed: Mount, line: str) -> None:
    say(doomed, line)
    with pytest.raises(DaemonError, match=r"not announced: .*odd|not announced: .*Traceback"):
        doomed.stop()


def test_an_announced_warning_must_come(doomed: Mount) -> None:
    doomed.expect_log("odd")
    with pytest.raises(DaemonError, match=r"missing: .'odd'"):
        doomed.stop()


def test_an_announced_warning_that_comes_is_fine(doomed: Mount) -> None:
    doomed.expect_log("odd")
    say(doomed, "x WARNING: odd")
    doomed.stop()


def test_a_daemon_that_hangs_is_shown_and_buried(doomed: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "STOP_LIMIT_S", 1)
    doomed.process.send_signal(signal.SIGSTOP)
    with pytest.raises(DaemonError, match=r"does not end(.|\n)*thread"):
        doomed.stop()
    assert not is_mounted(doomed.path)


def test_a_test_that_takes_too_long_is_set_free(doomed: Mount) -> None:
    doomed.process.send_signal(signal.SIGSTOP)
    stuck = doomed.actor().start(os.listdir, doomed.path)
    doomed.watch(0.1)
    assert stuck.error() is not None
    with pytest.raises(DaemonError, match=r"more than"):
        doomed.stop()
