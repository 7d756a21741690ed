"""Which pinfs runs: its compiled modules, or (PINFS_PURE=1) the same ones as Python, where both lie side by side.

`pinfs/__init__.py` imports this module only where PINFS_PURE is set, before any other one; children inherit the
variable, so a mount and all its daemons are of one kind.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Final

_LEAF: Final = "pinfs.bridge.channel"
"""All modules are compiled, or none: any one tells."""


class SourceFinder:
    """Finds pinfs's modules by their sources alone. `sys.meta_path` has it first."""

    def __init__(self) -> None:
        self._finders: dict[str, FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("pinfs."):
            return None
        for directory in path or ():
            finder = self._finders.get(directory)
            if finder is None:
                finder = self._finders[directory] = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))
            if (spec := finder.find_spec(name, target)) is not None:
                return spec
        return None


def use_sources() -> None:
    """Import no compiled module of pinfs from now on."""
    if not any(isinstance(finder, SourceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, SourceFinder())


def is_compiled() -> bool:
    """Whether pinfs's hot modules are compiled, in this process. Imports none of them."""
    from importlib.util import find_spec

    spec = find_spec(_LEAF)
    return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
