"""Arrows between rooms run down only, the lower rooms need nothing but Python, and the picture shows what is so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[1] / "docs"
PLAIN = {"core", "keeper", "linux", "interface", "client"}
"""Rooms that import the standard library and pinfs only. Programs load them with `import pinfs`, all but core, which
knows neither clock nor event loop."""
EXCEPTIONS = {("client/trio.py", "trio")}
ALONE = {"keeper"}
"""Rooms that are programs of their own and load nothing of pinfs."""


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", DOCS / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms = _loaded()
FLOORS = {room: floor for floor, there in enumerate(rooms.FLOORS) for room in there}


def _is_allowed(here: str, there: str) -> bool:
    """Rooms of one floor do not know each other."""
    return here == there or FLOORS[there] < FLOORS[here]


def test_arrows_run_down_only() -> None:
    forbidden = [
        f"{path} imports {module}"
        for path, here, module in rooms.imports()
        if module.split(".")[0] == "pinfs" and not _is_allowed(here, rooms.room_of(module))
    ]
    assert not forbidden


def test_the_lower_rooms_need_the_standard_library_only() -> None:
    allowed = {"pinfs", *sys.stdlib_module_names}
    forbidden = [
        f"{path} imports {module}"
        for path, here, module in rooms.imports()
        if here in PLAIN and module.split(".")[0] not in allowed
        if (str(path.relative_to(rooms.PACKAGE)), module) not in EXCEPTIONS
    ]
    assert not forbidden


def test_a_program_of_its_own_loads_nothing_of_pinfs() -> None:
    assert not [
        f"{path} imports {module}"
        for path, here, module in rooms.imports()
        if here in ALONE and module.split(".")[0] == "pinfs"
    ]


def test_every_room_is_on_a_floor() -> None:
    assert {path.parent.name for path in rooms.PACKAGE.glob("*/__init__.py")} == set(FLOORS)


def test_the_picture_shows_what_is_imported() -> None:
    assert rooms.PICTURE.read_text() == rooms.draw(), "python docs/rooms.py draws it anew"
