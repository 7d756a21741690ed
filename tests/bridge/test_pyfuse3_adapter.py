"""The pyfuse3 adapter without a mount: it carries what pyfuse3 can, and no exception ends the main loop."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pyfuse3
import pytest
from bridge.fake_kernel import Canned

from pinfs.bridge.pyfuse3_adapter import Pyfuse3Adapter

CTX = SimpleNamespace(uid=1000, gid=1000, pid=1, umask=0)
NOT_CARRIED = {
    "flush",  # nothing has to be done at a close: ENOSYS
    "init", "stacktrace",  # calls of pyfuse3 itself
}  # fmt: skip


def test_every_operation_that_pyfuse3_knows_is_carried() -> None:
    known = {name for name, value in vars(pyfuse3.Operations).items() if callable(value) and not name.startswith("_")}
    assert known - vars(Pyfuse3Adapter).keys() == NOT_CARRIED


async def test_a_forget_that_fails_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinfs.runtime.errors._tokens", 1e9)
    ops = Canned()
    ops.forget = lambda forgets: 1 / 0  # type: ignore[assignment]
    await Pyfuse3Adapter(ops).forget([(7, 1)])  # type: ignore[arg-type]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("flags", "uid", "kill"), [(0, 1, False), (os.O_TRUNC, 0, False), (os.O_TRUNC, 1, True)])
async def test_an_open_says_whether_set_ids_go(flags: int, uid: int, kill: bool) -> None:
    """O_TRUNC by a user, which costs the set-id bits. The operation undoes the open where they cannot go."""
    ops = Canned()
    ctx = SimpleNamespace(uid=uid, gid=1000, pid=1, umask=0)
    await Pyfuse3Adapter(ops).open(7, flags, ctx)  # type: ignore[arg-type]
    assert ops.calls == [("open", (7, flags, ctx, kill))]
