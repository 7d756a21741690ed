"""Arrows between rooms run down only, and the lower rooms need nothing but Python (docs/architecture.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pinfs"
ROOMS = (
    "core linux",
    "interface",
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
"""From the bottom to the top; rooms of one floor do not know each other. `import pinfs` means the client."""
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}
PLAIN = {"core", "linux", "interface", "client"}
"""Rooms that import the standard library and pinfs only. Programs load them with `import pinfs`, all but core, which
knows neither clock nor event loop."""
EXCEPTIONS = {("pinfs.client.trio", "trio")}


def _room_of(module: str) -> str:
    _, room, *_ = [*module.split("."), "client"]
    return room


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pinfs":
            yield from (f"pinfs.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports say nothing about rooms"
            yield str(node.module)


def _modules() -> Iterator[tuple[str, Path]]:
    for path in PACKAGE.rglob("*.py"):
        yield ".".join(path.with_suffix("").relative_to(PACKAGE.parent).parts).removesuffix(".__init__"), path


def _is_allowed(here: str, there: str) -> bool:
    return here == there or FLOORS[there] < FLOORS[here]


def test_arrows_run_down_only() -> None:
    forbidden = [
        f"{name} imports {module}"
        for name, path in _modules()
        for module in _imported(path)
        if module.split(".")[0] == "pinfs" and not _is_allowed(_room_of(name), _room_of(module))
    ]
    assert not forbidden


def test_the_lower_rooms_need_the_standard_library_only() -> None:
    forbidden = [
        f"{name} imports {module}"
        for name, path in _modules()
        if _room_of(name) in PLAIN
        for module in _imported(path)
        if module.split(".")[0] not in {"pinfs", *sys.stdlib_module_names} and (name, module) not in EXCEPTIONS
    ]
    assert not forbidden


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(FLOORS)
