"""A module of pinfs as Python, whatever `import` gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pinfs

PACKAGE = Path(pinfs.__file__).parent


def source_of(path: str) -> ModuleType:
    """The module in this file of the package (`linux/calls.py`), loaded beside the one of that name."""
    spec = importlib.util.spec_from_file_location(f"source of {path}", PACKAGE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
