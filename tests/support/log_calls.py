"""The log calls of the sources: which logger, which level, which text, and where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.mounts import REPO

PACKAGE = REPO / "pinfs"
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
ELSEWHERE = ("client",)
"""Rooms that log where another program says."""


class LogCall(NamedTuple):
    logger: str
    level: str
    text: str
    """The format; empty where it is put together at run time."""
    place: str


def log_calls() -> Iterator[LogCall]:
    """All but those of level debug."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in ELSEWHERE:
            yield from _of_file(path)


def _of_file(path: Path) -> Iterator[LogCall]:
    tree = ast.parse(path.read_text())
    loggers = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and _is_name(node.targets[0], "log")
    ]
    logger = _constant(loggers[0].args[0]) if loggers and isinstance(loggers[0], ast.Call) else ""
    for node in ast.walk(tree):
        place = f"{path.relative_to(REPO)}:{getattr(node, 'lineno', 0)}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if _is_name(node.func.value, "log") and node.func.attr in LEVELS:
            texts = [node.args[0].body, node.args[0].orelse] if isinstance(node.args[0], ast.IfExp) else [node.args[0]]
            for text in texts:
                yield LogCall(logger, LEVELS[node.func.attr], _constant(text), place)
        elif node.func.attr == "log" and path.parts[-2] == "keeper":
            yield LogCall("pinfs.keeper", _constant(node.args[0]), _literal(node.args[1]), place)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _constant(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _literal(node: ast.expr) -> str:
    """The text of an f-string, with `%s` for what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_constant(part) or "%s" for part in node.values)
    return _constant(node)
