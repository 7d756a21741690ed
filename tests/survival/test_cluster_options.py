"""A mount stays in its cluster when its daemon dies, whatever has become of the policy file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.actor import eventually

from pinfs.fs.seal import SEALED_BY_NO_HOST

from .surviving import surviving


@pytest.mark.parametrize("text", [None, "[cluster\n", 'on_timeout = "revoke"\n'])
def test_the_next_daemon_is_in_the_cluster_of_the_one_before(
    root: None, fuse: None, tmp_path: Path, text: str | None
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[cluster]\nendpoints = "127.0.0.1:1"\nhost = "a"\n')
    with surviving("tmpfs", (f"policy={policy}",)) as mount:
        before = mount.status()
        assert before["seal_unavailable_because"] == SEALED_BY_NO_HOST
        policy.unlink()
        if text is not None:
            policy.write_text(text)
        mount.kill()
        eventually(lambda: mount.status()["pid"] != before["pid"])
        after = mount.status()
        assert (after["takeovers"], after["seal_unavailable_because"]) == (1, SEALED_BY_NO_HOST)
        assert "the options of the cluster have changed" in mount.log()
