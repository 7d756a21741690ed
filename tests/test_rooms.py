"""Arrows between rooms run down only (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pinfs"
ROOMS = (
    "core linux",
    "client runtime",
    "config observe",
    "enforce",
    "fs",
    "bridge",
    "serve",
    "bench web",
    "cli",
    "testing",
)
"""From the bottom to the top. `import pinfs` means the client."""
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}


def _room_of(module: str) -> str:
    _, room, *_ = [*module.split("."), "client"]
    return room


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pinfs":
            yield from (f"pinfs.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_arrows_run_down_only() -> None:
    upwards = []
    for path in PACKAGE.rglob("*.py"):
        here = _room_of(".".join(path.with_suffix("").relative_to(PACKAGE.parent).parts).removesuffix(".__init__"))
        theirs = [module for module in _imported(path.read_text()) if module.startswith("pinfs")]
        upwards += [f"{path} imports {module}" for module in theirs if FLOORS[_room_of(module)] > FLOORS[here]]
    assert not upwards
