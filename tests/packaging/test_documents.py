"""Documents agree with the sources that cite them."""

from __future__ import annotations

import re
from pathlib import Path

from support.mounts import REPO

CITATION = re.compile(r"SPEC (?:section )?((?:\d+(?:\.\d+)?(?:, | and | to )?)+)")


def rules_of(contract: str) -> set[str]:
    """Numbers of sections, and of the rules in their numbered lists: `3`, `3.7`."""
    found, section = set(), ""
    for line in contract.splitlines():
        if heading := re.match(r"## (\d+)\. ", line):
            section = heading[1]
            found.add(section)
        elif rule := re.match(r"(\d+)\. ", line):
            found.add(f"{section}.{rule[1]}")
    return found


def test_cited_rules_of_the_contract_exist() -> None:
    rules = rules_of((REPO / "docs/spec.md").read_text())
    assert {"3.7", "11"} <= rules
    unknown, citations = [], 0
    for directory in ("pinfs", "tests", "docs"):
        for path in Path(REPO, directory).rglob("*.*"):
            if path.suffix in {".py", ".md", ".h"}:
                cited = re.findall(r"\d+(?:\.\d+)?", " ".join(CITATION.findall(path.read_text())))
                citations += len(cited)
                unknown += [f"{path}: SPEC {number}" for number in cited if number not in rules]
    assert citations > 50
    assert unknown == []
