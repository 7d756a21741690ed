"""Documents agree with the sources that cite them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

from support.mounts import REPO

from pinfs.cli.main import VERBS
from pinfs.core.policy import Limits, Policy

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


def section(number: int) -> str:
    """Of the contract."""
    text = (REPO / "docs/spec.md").read_text()
    return text.partition(f"\n## {number}. ")[2].partition("\n## ")[0]


def test_the_contract_names_what_there_is() -> None:
    """Keys of the policy, with their defaults first where these are words; verbs; files of `.pinfs`."""
    policy, verbs = section(8), section(9)
    for key in fields(Policy):
        row = re.search(rf"^\| `{key.name}` \| (.*)", policy, re.MULTILINE)
        if row is None:
            assert f"`{key.name}`" in policy, key.name
        elif isinstance(key.default, str):
            assert row[1].startswith(f"`{key.default}`"), key.name
    assert [limit.name for limit in fields(Limits) if f"`{limit.name}`" not in policy] == []
    assert [verb for verb in VERBS if not re.search(rf"`pinfs {verb}[ `]", verbs)] == []
    files = re.findall(r"^\| `\.pinfs/(\w+)`", section(7), re.MULTILINE)
    described = re.findall(r"^\| `(\w+)` \| 0\d+ \|", (REPO / "docs/interfaces.md").read_text(), re.MULTILINE)
    assert sorted(files) == sorted(described)


LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """All pages of the repository."""
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=True
    )
    return [REPO / name for name in tracked.stdout.splitlines()]


def prose(page: Path) -> str:
    """Without code, in which brackets and parentheses are something else."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "``", text)


def anchors(page: Path) -> set[str]:
    """Those of its headings, as mkdocs and GitHub make them."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE
    ):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()))
    return found


def test_links_lead_somewhere() -> None:
    """Files that exist, and headings in them. Addresses elsewhere are https and are not asked for."""
    broken, seen = [], 0
    for page in pages():
        for match in LINK.finditer(prose(page)):
            link = match[1] or match[2]
            seen += 1
            if re.match(r"https?:", link):
                if link.startswith("http:"):
                    broken.append(f"{page}: {link}")
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(REPO)}: {link}")
    assert seen > 100
    assert broken == []


def test_every_page_is_in_the_site() -> None:
    site = (REPO / "mkdocs.yml").read_text()
    assert [page.name for page in REPO.glob("docs/*.md") if f": {page.name}\n" not in site] == []
