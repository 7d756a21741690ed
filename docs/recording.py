"""Records `make demo` (docs/images/demo.cast, asciicast 2) and draws the recording (docs/images/demo.svg).

As root, with /dev/fuse and fio: `.venv/bin/python docs/recording.py`. With `--draw` only the drawing is made anew. The
drawing is a terminal of one scene at a time, moved by CSS alone, as GitHub shows pictures without their scripts.
`asciinema play docs/images/demo.cast` plays the recording. Standard library only.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[1]
CAST, DRAWING = REPO / "docs/images/demo.cast", REPO / "docs/images/demo.svg"
COLUMNS, ROWS = 112, 19
PAUSE_S = 4.0
"""How long each scene stands at its end."""
STILL = 2
"""The scene that is shown where nothing moves (by a reader's wish, in print, in simple viewers): the deny pin."""
CELL, LINE, MARGIN, BAR = 7.83, 19, 14, 30
"""Pixels: width of a character, height of a line, and what is around the text and above it."""
CONTROL = re.compile(r"\x1b\[(?:(\d*)m|H\x1b\[2J)|\r?\n|[^\x1b\r\n]+|.")
STYLE = """
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#d6dde6;white-space:pre}
.s1{font-weight:bold;fill:#fff}.s31{fill:#ff7b72}.s32{fill:#56d364}.s36{fill:#8cc4ff}
.l{visibility:hidden;animation-duration:%(s).2fs;animation-timing-function:step-end;animation-iteration-count:infinite}
.still{visibility:visible}
%(keys)s
@media(prefers-reduced-motion:reduce){.l{animation:none!important}}
@media print{.l{animation:none!important}}
"""


class Line(NamedTuple):
    """A row of the terminal: its runs (rendition, text), when it is complete, and when the screen is cleared."""

    screen: int
    row: int
    runs: tuple[tuple[int, str], ...]
    begin_s: float
    end_s: float

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.runs)


# --- recording


def record() -> None:
    """Runs the demo on a terminal of its own. RuntimeError: something was not as it should be."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "demo", "--pause", str(PAUSE_S)]
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "make demo", "env": {"TERM": "xterm-256color"}}
    lines, started = [json.dumps(header)], time.monotonic()
    process = subprocess.Popen(command, cwd=REPO, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    for data in _output(ours):
        lines.append(json.dumps([round(time.monotonic() - started, 3), "o", data]))
    if process.wait() != 0:
        raise RuntimeError("the demo has failed; the recording is as it was")
    CAST.write_text("\n".join(lines) + "\n")


def _output(terminal: int) -> Iterator[str]:
    """What is written to it, as it comes, until its last writer has closed it."""
    decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: closed
            return
        yield decoder.decode(data)


# --- reading


def lines_of(cast: str) -> tuple[list[Line], float]:
    """The rows that a terminal shows, in order, and the length of the recording in seconds.

    The demo prints lines, clears the screen and changes renditions. ValueError: there is something else, or a scene
    has more lines than the screen.
    """
    _, *events = (json.loads(line) for line in cast.splitlines())
    shown: list[Line] = []
    runs: list[tuple[int, str]] = []
    screen = row = style = 0
    for at, kind, data in events:
        if kind != "o":
            raise ValueError(f"an event of kind {kind}")
        for match in CONTROL.finditer(data):
            word = match[0]
            if word.endswith("m") and word.startswith("\x1b"):
                style = int(match[1] or 0)
            elif word.startswith("\x1b[H"):
                shown = [line if line.screen < screen else line._replace(end_s=at) for line in shown]
                screen, row = screen + 1, 0
            elif word.endswith("\n"):
                for folded in _folded(runs):
                    shown.append(Line(screen, row, folded, at, float("inf")))
                    row += 1
                runs = []
            elif word[0] in "\x1b\r":
                raise ValueError(f"a control sequence of {data!r}")
            else:
                runs.append((style, word))
        if row > ROWS:
            raise ValueError(f"screen {screen} has {row} lines")
    end = events[-1][0] + PAUSE_S if events else 0.0
    return [line if line.end_s < end else line._replace(end_s=end) for line in shown], end


def _folded(runs: Sequence[tuple[int, str]]) -> list[tuple[tuple[int, str], ...]]:
    """Rows of COLUMNS characters."""
    rows: list[list[tuple[int, str]]] = [[]]
    used = 0
    for style, text in runs:
        begin = 0
        while begin < len(text):
            if used == COLUMNS:
                rows.append([])
                used = 0
            part = text[begin : begin + COLUMNS - used]
            rows[-1].append((style, part))
            begin, used = begin + len(part), used + len(part)
    return [tuple(row) for row in rows]


# --- drawing


def draw(cast: str) -> str:
    lines, length = lines_of(cast)
    width, height = COLUMNS * CELL + 2 * MARGIN, ROWS * LINE + 2 * MARGIN + BAR
    keys = "\n".join(f"@keyframes k{number}{{{_keyframes(line, length)}}}" for number, line in enumerate(lines))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            "<title>make demo: a recording of its run</title>",
            f"<style>{STYLE % {'s': length, 'keys': keys}}</style>",
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#161b22" stroke="#57606a"/>',
            f'<text x="{MARGIN}" y="20" class="s36">$ make demo</text>',
            *(_row(number, line) for number, line in enumerate(lines) if line.text.strip()),
            "</svg>\n",
        ]
    )


def _keyframes(line: Line, length: float) -> str:
    begin, end = 100 * line.begin_s / length, 100 * line.end_s / length
    hidden_before = "0%{visibility:hidden}" if begin > 0 else ""
    return f"{hidden_before}{begin:.3f}%{{visibility:visible}}{end:.3f}%{{visibility:hidden}}"


def _row(number: int, line: Line) -> str:
    classes = "l still" if line.screen == STILL + 1 else "l"
    spans = "".join(
        f'<tspan class="s{style}">{escape(text)}</tspan>' if style else escape(text) for style, text in line.runs
    )
    y = BAR + MARGIN + LINE * line.row + 8
    return f'<text class="{classes}" style="animation-name:k{number}" x="{MARGIN}" y="{y}">{spans}</text>'


def main() -> None:
    if sys.argv[1:] != ["--draw"]:
        record()
    DRAWING.write_text(draw(CAST.read_text()))


if __name__ == "__main__":
    main()
