"""Draws pictures of README.md: docs/images/overview.svg, what pinfs is, and gpu.svg, from the table of docs/devices.md.

`python docs/overview.py`. Standard library only. Both follow the reader's colour scheme, each on a ground of its own,
so that they are legible on any page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
OVERVIEW, GPU = DOCS / "images/overview.svg", DOCS / "images/gpu.svg"
WIDTH, BOX = 860, 190
"""Pixels: of the picture, and of a box in it."""
LIGHT = {"ground": "#ffffff", "ink": "#1f2937", "soft": "#4b5563", "edge": "#94a3b8", "box": "#eef3fa",
         "bad": "#b42318", "good": "#12703a", "pin": "#f4d98b", "bar": "#9db4d0", "best": "#1f6fd6"}  # fmt: skip
DARK = {"ground": "#0d1117", "ink": "#e6edf3", "soft": "#b4bfcb", "edge": "#6e7f92", "box": "#1c2735",
        "bad": "#ff8d85", "good": "#63d68a", "pin": "#6b5310", "bar": "#48607f", "best": "#5aa2ff"}  # fmt: skip
RULES = """text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}
.t{font-size:15px;font-weight:600}.b{font-weight:600}.c{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px}
.soft{fill:var(--soft)}.bad{fill:var(--bad)}.good{fill:var(--good)}.m{text-anchor:middle}.e{text-anchor:end}
rect{stroke:var(--edge);fill:var(--box)}.ground{fill:var(--ground)}.pin{fill:var(--pin)}
.bar{fill:var(--bar);stroke:none}.best{fill:var(--best);stroke:none}
path{fill:none;stroke:var(--ink);stroke-width:1.5}.head{fill:var(--ink);stroke:none}
path.bad{stroke:var(--bad);fill:none}path.good{stroke:var(--good);fill:none}path.edge{stroke:var(--edge)}"""
ARROW = (
    '<defs><marker id="to" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path class="head" d="M0 0L10 5L0 10z"/></marker></defs>'
)
ROWS = {
    "anonymous, page-locked (cudaMallocHost)": "page-locked memory, no file",
    "file on tmpfs, mapped": "a file, mapped",
    "file on the mount, registered": "a file of pinfs, pinned and registered",
}
"""Of the table of docs/devices.md: what the figure shows, in its words."""


def main() -> None:
    OVERVIEW.write_text(overview())
    GPU.write_text(gpu((DOCS / "devices.md").read_text()))


def overview() -> str:
    return _picture(412, "What a truncate does to a reader, without pinfs and with it", [*_without(), *_with()])


def _without() -> Iterator[str]:
    yield _text(20, 30, "Without pinfs", "t")
    yield from _box(20, 46, "your reader, your GPU", "model.bin is mapped")
    yield from _box(335, 46, "model.bin", "/srv/models")
    yield from _box(650, 46, "another program", "> model.bin", "code")
    yield _arrow("M210 69H331")
    yield _arrow("M650 69H529", "bad")
    yield _text(270, 62, "maps", "soft m")
    yield _text(590, 62, "truncates: done", "bad m")
    loss = "What a device writes from then on goes into pages of no file: lost, without any error."
    yield _text(20, 118, f"The reader dies of SIGBUS.| {loss}", "bad")
    yield '<path class="edge" d="M20 140H840"/>'


def _with() -> Iterator[str]:
    yield _text(20, 170, "With pinfs", "t")
    yield from _box(20, 190, "your reader, your GPU", "holds a pin on its bytes", "pin")
    yield from _box(335, 190, "pinfs", "/mnt/models")
    yield from _box(335, 300, "model.bin", "/srv/models, as it was")
    yield from _box(650, 190, "another program", "> model.bin", "code")
    yield from _box(650, 300, "a program behind it", "> /srv/models/model.bin", "code")
    yield _arrow("M210 204H331")
    yield _text(270, 197, "pins", "soft m")
    yield _arrow("M335 222H214", "good")
    yield _text(272, 240, "lease: “let go”", "good m")
    yield _arrow("M650 204H529")
    yield _text(590, 197, "truncates", "soft m")
    yield _arrow("M525 222H646", "bad")
    yield _text(587, 240, "“busy”, or waits", "bad m")
    yield _arrow("M430 236V296")
    yield _text(440, 270, "is a mount of", "soft")
    yield _arrow("M115 236V323H331", "both")
    yield _text(125, 272, "reads, writes, mappings:", "soft")
    yield _text(125, 289, "at the file’s own speed", "soft")
    yield _arrow("M650 323H529", "bad")
    yield _text(588, 316, "kernel: EPERM", "bad m")
    yield _text(20, 376, "Deny pin:| a truncate fails at once with EBUSY.")
    answer = "the holder is notified and lets go, then the truncate goes on; without an answer it fails at a deadline."
    yield _text(20, 396, f"Lease:| {answer}")


def gpu(devices: str) -> str:
    """The figures of the first card. KeyError: docs/devices.md has no such row."""
    card, speeds = _measured(devices)
    most = max(speeds[row] for row in ROWS)
    lines = [_text(20, 28, f"From host memory to the GPU, GB/s ({card})", "t")]
    for number, (row, name) in enumerate(ROWS.items()):
        y, length = 44 + 28 * number, 470 * speeds[row] / most
        lines.append(_text(290, y + 15, name, "e b" if "pinned" in name else "e"))
        kind = "best" if "pinned" in name else "bar"
        lines.append(f'<rect class="{kind}" x="300" y="{y}" width="{length:.0f}" height="20" rx="3"/>')
        lines.append(_text(round(308 + length), y + 15, f"{speeds[row]:g}", "b"))
    return _picture(44 + 28 * len(ROWS) + 8, "Speeds of copies to a GPU", lines)


def _measured(devices: str) -> tuple[str, dict[str, float]]:
    """The first card of the table, and GB/s to the device by kind of memory."""
    head = re.search(r"^\| host memory \| (.*?): to the device \|", devices, re.MULTILINE)
    if head is None:
        raise KeyError("docs/devices.md has no table of speeds")
    table = devices[head.end() :].partition("\n\n")[0]
    rows = re.findall(r"^\| \**([^|*]+?)\** \| \**([\d.]+)\** \|", table, re.MULTILINE)
    return head[1], {name: float(speed) for name, speed in rows}


# --- parts


def _picture(height: int, title: str, lines: list[str]) -> str:
    colours = [";".join(f"--{name}:{value}" for name, value in scheme.items()) for scheme in (LIGHT, DARK)]
    style = f"svg{{{colours[0]}}}\n@media(prefers-color-scheme:dark){{svg{{{colours[1]}}}}}\n{RULES}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    ground = f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{style}</style>", ARROW, ground, *lines, "</svg>\n"]
    )


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    """What stands before a bar is bold."""
    lead, bar, rest = text.rpartition("|")
    bold = f'<tspan class="b">{escape(lead)}</tspan>' if bar else ""
    return f'<text x="{x}" y="{y}"{_class(kind)}>{bold}{escape(rest)}</text>'


def _box(x: int, y: int, name: str, below: str, kind: str = "") -> Iterator[str]:
    pinned = kind == "pin"
    yield f'<rect{_class("pin" if pinned else "")} x="{x}" y="{y}" width="{BOX}" height="46" rx="6"/>'
    yield _text(x + BOX // 2, y + 19, name, "b m")
    yield _text(x + BOX // 2, y + 37, below, "c m" if kind == "code" else "m" if pinned else "soft m")


def _arrow(path: str, kind: str = "") -> str:
    start = ' marker-start="url(#to)"' if kind == "both" else ""
    return f'<path{_class("" if kind == "both" else kind)} d="{path}"{start} marker-end="url(#to)"/>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


if __name__ == "__main__":
    main()
