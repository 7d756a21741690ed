"""The protocol knows neither clock, nor event loop, nor chance: else the checker would check something else than what
runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pinfs.cluster

PURE = ("keys", "membership", "messages", "outputs", "pinning", "protocol", "tasks", "view")
STANDARD = {"collections.abc", "dataclasses", "enum", "errno", "math", "re", "typing"}
CORE = {"pinfs.core.pins", "pinfs.core.ranges"}
ROOM = Path(pinfs.cluster.__file__).parent


@pytest.mark.parametrize("name", PURE)
def test_it_imports_nothing_that_could_tell_the_time(name: str) -> None:
    allowed = STANDARD | CORE | {f"pinfs.cluster.{other}" for other in PURE}
    tree = ast.parse((ROOM / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= allowed
