"""The doctor's section about a cluster, with a real etcd."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from cluster.nodes import Node
from pinfs.cli.main import cli


def findings(*words: str) -> list[tuple[str, str]]:
    result = CliRunner().invoke(cli, ["doctor", "--json", *words])
    found = json.loads(result.stdout)["findings"]
    return [(one["level"], one["text"]) for one in found if one["check"] in ("etcd", "cluster", "clocks")]


def test_the_doctor_asks_an_etcd(node: Node, tmp_path: Path) -> None:
    found = findings(str(tmp_path), "-o", f"cluster={node.endpoint}+127.0.0.1:1,cluster_host=a")
    texts = [text for level, text in found if level == "ok"]
    assert any(f"{node.endpoint} answers: etcd 3." in text for text in texts)
    assert any("compare no clocks" in text for text in texts)
    assert [text for level, text in found if level == "warn" and "127.0.0.1:1 does not answer" in text]
    assert not [text for level, text in found if level == "fail"]


def test_the_doctor_reads_the_policy_file(node: Node, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[cluster]\nendpoints = "{node.endpoint}"\nhost = "a"\n')
    found = findings("--policy", str(policy))
    assert ("warn", "one endpoint: when its node is down, nothing can be pinned or cut") in found
