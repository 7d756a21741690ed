"""Draws what `pinfs bench --json` has measured: docs/images/bench.svg and docs/images/crowd.svg.

`pinfs bench --json /mnt/pinfs /mnt/bindfs >bench.json; python docs/plots.py bench.json`. Standard library only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
COLOURS = ("#1f6fd6", "#d9822b", "#7a4fb5", "#2a8a57")
"""Of the directories: the first is the mount."""
LABELS, PLOT, ROW, TOP = 400, 420, 19, 64
"""Pixels: width of the names and of the plot, height of a row, and of what stands above the first row."""
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    rows = [row for row in result["rows"] if row["ratio"]]
    shown = [place for place in result["directories"] if place["path"] != result["base"]]
    (IMAGES / "bench.svg").write_text(ratios([row for row in rows if row["group"] != "crowd"], shown))
    (IMAGES / "crowd.svg").write_text(crowds([row for row in rows if row["group"] == "crowd"], shown[0]["path"]))


def ratios(rows: Sequence[dict[str, Any]], places: Sequence[dict[str, Any]]) -> str:
    """A dot for each row and directory: its time by that of the backing, on a logarithmic scale."""
    bottom = TOP + ROW * len(rows)
    lines = [*_legend([place["label"] for place in places], "time by that of the backing (1: as fast)")]
    for tick in TICKS:
        lines.append(_line(_x(tick), TOP - 6, _x(tick), bottom, "#345" if tick == 1 else "#dde3ea"))
        lines.append(_text(_x(tick), TOP - 12, f"{tick:g}", "middle", "#567"))
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW // 2
        lines.append(_text(LABELS - 12, y + 4, row["name"]))
        for colour, place in reversed(list(zip(COLOURS, places, strict=False))):
            ratio = row["ratio"].get(place["path"])
            if ratio is not None:
                lines.append(f'<circle cx="{_x(ratio):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    return _picture(bottom + 14, lines)


def crowds(rows: Sequence[dict[str, Any]], path: str) -> str:
    """A line for each operation: microseconds (from zero) with so many pins on other files."""
    of: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        name, _, crowd = row["name"].rpartition(", ")
        of.setdefault(name, []).append((int(crowd.split()[0]), row["median"][path]))
    most = max(us for points in of.values() for _, us in points)
    bottom, steps = TOP + 220, [n for n, _ in next(iter(of.values()))]
    at = {n: 90 + index * (LABELS + PLOT - 150) / max(1, len(steps) - 1) for index, n in enumerate(steps)}
    lines = [*_legend(list(of), "microseconds, by the number of pins on other files")]
    for us in _round_steps(most):
        y = bottom - us / most * 200
        lines += [_line(70, y, LABELS + PLOT, y, "#dde3ea"), _text(62, y + 4, f"{us:g}", "end", "#567")]
    lines += [_text(at[n], bottom + 20, f"{n:,}", "middle", "#567") for n in steps]
    for colour, points in zip(COLOURS, of.values(), strict=False):
        spots = [(at[n], bottom - us / most * 200) for n, us in points]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        lines.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots]
    return _picture(bottom + 34, lines)


def _x(ratio: float) -> float:
    low, high = math.log(TICKS[0]), math.log(TICKS[-1])
    return LABELS + PLOT * (min(max(math.log(ratio), low), high) - low) / (high - low)


def _round_steps(most: float) -> Iterator[float]:
    step = 10 ** math.floor(math.log10(most))
    step = step if most / step >= 4 else step / 4
    return (step * number for number in range(int(most / step) + 1))


def _legend(names: Sequence[str], title: str) -> Iterator[str]:
    yield _text(16, 22, title, "start", "#111", 14)
    for number, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        x = 24 + number * 250
        yield f'<circle cx="{x}" cy="38" r="5" fill="{colour}"/>' + _text(x + 10, 42, name, "start")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "end", colour: str = "#111", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )


def _picture(height: int, lines: Sequence[str]) -> str:
    width = LABELS + PLOT + 24
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *lines, "</svg>", ""])


if __name__ == "__main__":
    main()
