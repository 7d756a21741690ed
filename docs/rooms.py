"""Draws docs/images/rooms.svg: the rooms of pinfs on their floors, and an arrow for each import from one to another.

`python docs/rooms.py` writes the picture; tests/test_rooms.py fails when it is not what the imports say.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[1] / "pinfs"
PICTURE: Final = Path(__file__).parent / "images" / "rooms.svg"
FLOORS: Final = (
    ("core", "keeper", "linux"),
    ("interface",),
    ("client", "journal", "runtime"),
    ("cluster", "observe"),
    ("config",),
    ("enforce",),
    ("fs",),
    ("bridge",),
    ("serve",),
    ("bench", "web"),
    ("cli",),
    ("testing",),
)
"""From the bottom to the top. A room may import from the floors below it, and from no other room. `import pinfs`
means the client."""
ROOMS: Final = {  # where each stands in the picture (column, and what it is for; the floor is its row)
    "core": (0, "pins, breaks, policy: pure"),
    "linux": (1, "system calls, /proc, mounts"),
    "keeper": (2, "outlives the daemon"),
    "interface": (2, "the structs of pinfs.h"),
    "client": (2, "what programs import"),
    "runtime": (1, "waiting, errors, counters"),
    "journal": (0, "what outlives the daemon"),
    "config": (0, "options and policy files"),
    "cluster": (1, "pins across hosts"),
    "observe": (2, "mounts seen from outside"),
    "enforce": (1, "the guard; holders"),
    "fs": (0.5, "operations, inodes, .pinfs"),
    "bridge": (0.5, "the kernel's side"),
    "serve": (0.5, "the life of a mount"),
    "bench": (0, "pinfs bench"),
    "web": (1.5, "pinfs web"),
    "cli": (0.75, "one verb, one file"),
    "testing": (2, "pytest plugin"),
}
ROW, MARGIN, BOX_W, BOX_H = 56, 16, 210, 38
COLUMN: Final = BOX_W + 40


def room_of(module: str) -> str:
    """The room that a module of pinfs lies in; what lies beside the rooms is the client's."""
    _, room, *_ = [*module.split("."), "client"]
    return room if room in ROOMS else "client"


def imported(source: str) -> Iterator[str]:
    """The modules that a source text imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pinfs":
            yield from (f"pinfs.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # else it is of the same room
            yield str(node.module)


def imports() -> Iterator[tuple[Path, str, str]]:
    """Each import: the file, the room that it lies in, and what it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        here = ".".join(path.with_suffix("").relative_to(PACKAGE.parent).parts).removesuffix(".__init__")
        for module in imported(path.read_text()):
            yield path, room_of(here), module


def arrows() -> set[tuple[str, str]]:
    """From a room to each room that it imports from."""
    pairs = {(room, room_of(module)) for _, room, module in imports() if module.split(".")[0] == "pinfs"}
    return {(room, other) for room, other in pairs if room != other}


def drawn_arrows() -> list[tuple[str, str]]:
    """Those that no way over other arrows makes plain."""
    direct = arrows()
    below: dict[str, set[str]] = {}
    for room in (room for rooms in FLOORS for room in rooms):
        others = {other for one, other in direct if one == room}
        below[room] = others.union(*(below[other] for other in others))
    return sorted(
        (room, other)
        for room, other in direct
        if not any(other in below[between] for one, between in direct if one == room and between != other)
    )


def draw() -> str:
    """The picture, as SVG."""
    width, height = 3 * COLUMN - 40 + 2 * MARGIN, len(FLOORS) * ROW + MARGIN
    at = {
        room: (round(MARGIN + ROOMS[room][0] * COLUMN), height - (floor + 1) * ROW)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#5c7596"/></marker></defs>',
        '<g stroke="#5c7596" stroke-width="1.3" marker-end="url(#a)">',
    ]
    for room, other in drawn_arrows():
        (x1, y1), (x2, y2) = at[room], at[other]
        lean = (x2 > x1) - (x2 < x1)
        start, end = x1 + BOX_W // 2 + lean * 60, x2 + BOX_W // 2 - lean * 60
        parts.append(f'<path d="M{start} {y1 + BOX_H}L{end} {y2 - 1}"/>')
    parts.append('</g><g text-anchor="middle">')
    for room, (x, y) in at.items():
        fill = "#fdf3dc" if room in ("core", "enforce") else "#eef3fa"
        middle = x + BOX_W // 2
        parts.append(
            f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="6" fill="{fill}" stroke="#234"/>'
            f'<text x="{middle}" y="{y + 16}" font-size="14" font-weight="bold">{room}</text>'
            f'<text x="{middle}" y="{y + 31}" font-size="11" fill="#345">{ROOMS[room][1]}</text>'
        )
    return "\n".join([*parts, "</g></svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())
