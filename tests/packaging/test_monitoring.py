"""packaging/monitoring: every metric that is named there exists, and promtool takes the rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mounts import REPO, Mount
from support.packages import in_debian

MONITORING = REPO / "packaging/monitoring"
METRIC = re.compile(r"\bpinfs_[a-z_]+\b")
PROMETHEUS_OWN = {"up"}


def dashboard() -> Any:
    return json.loads((MONITORING / "grafana.json").read_text())


def expressions() -> Iterator[str]:
    """All queries of the dashboard, as Prometheus gets them."""
    board = dashboard()
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [annotation["expr"] for annotation in board["annotations"]["list"]]
    for expression in found:
        yield expression.replace("$__rate_interval", "5m").replace("$instance", ".*")


def existing(text: str) -> set[str]:
    """The names of a scrape. Counters without a value yet have no sample, but a TYPE."""
    families = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    return families | set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))


def test_every_metric_exists(shared_mount: Mount) -> None:
    names = existing((shared_mount.path / ".pinfs/metrics").read_text())
    assert len(names) > 30
    rules = (MONITORING / "alerts.yml").read_text()
    exprs = re.findall(r"^ +expr: (.*?)(?: #.*)?$", rules, re.MULTILINE)
    assert len(exprs) == rules.count("- alert:")
    named = set(METRIC.findall(" ".join([*exprs, *expressions(), json.dumps(dashboard()["templating"])])))
    assert named - names == set()
    unwatched = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in names if name.startswith("pinfs_")} - {
        re.sub(r"_bucket$", "", name) for name in named
    }
    assert unwatched == set(), "no panel and no alert looks at these"


def test_labels_are_those_of_the_metrics() -> None:
    """What an expression groups by, and what a legend or an annotation shows."""
    text = (REPO / "pinfs/serve/metrics.py").read_text()
    known = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"\((\"\w+\",(?: \"\w+\",?)?)\)", text))))
    assert {"by", "on_timeout", "op", "why", "limit", "path"} <= known
    board = json.dumps(dashboard()) + (MONITORING / "alerts.yml").read_text()
    shown = set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", board)) - {"value"}
    assert shown <= known | {"instance"}


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_page_tells_of_each_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    page = (REPO / "docs/monitoring.md").read_text()
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []
    tested = (MONITORING / "alerts_test.yml").read_text()
    assert [alert for alert in alerts if not re.search(rf"\b{alert}\b", tested)] == []


@pytest.mark.packages
@pytest.mark.usefixtures("root")
def test_promtool(tmp_path: Path) -> None:
    """The rules, their own tests, and the queries of the dashboard as rules."""
    for path in MONITORING.glob("*.yml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions())]
    (tmp_path / "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    (tmp_path / "scrape.yml").write_text(scrape_config())
    commands = "cd /rules && promtool check rules alerts.yml dashboard.yml && promtool test rules alerts_test.yml"
    commands += " && promtool check config --syntax-only scrape.yml"
    said = in_debian("sh", "-c", commands, binds={tmp_path: "/rules"}, packages="prometheus")
    assert f"SUCCESS: {len(rules)} rules found" in said


def scrape_config() -> str:
    """The one of docs/monitoring.md."""
    block = re.search(r"```yaml\n(.*?)```", (REPO / "docs/monitoring.md").read_text(), re.DOTALL)
    assert block
    return block[1]
