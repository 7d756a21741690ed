"""The pictures of README.md are of today: those that are drawn, and the recording of the demo."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from support.mounts import REPO

from demo.__main__ import SCENES

DOCS = REPO / "docs"
LIMIT_S = 120.0
MOST_BYTES = 300_000
"""Of a picture: more than that a page should not have a reader wait for."""


def loaded(name: str) -> ModuleType:
    """A program of docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for its value classes
    spec.loader.exec_module(module)
    return module


recording, overview = loaded("recording"), loaded("overview")
CAST: str = recording.CAST.read_text()


def written(cast: str) -> str:
    """All that the recorded program has written."""
    return "".join(data for _, _, data in map(json.loads, cast.splitlines()[1:]))


def told(text: str) -> dict[str, list[str]]:
    """Lines by scene, without what is another thing in each run: numbers, and the width of columns."""
    titles, found, scene = {title for title, _ in SCENES}, dict[str, list[str]](), ""
    for line in re.sub(r"\x1b\[[\d]*[A-Za-z]|\r", "", text).splitlines():
        if line in titles:
            scene = line
        elif line.strip():
            words = re.sub(r"\d+(\.\d+)?", "N", re.sub(r"\bpython[\d.]*", "python", line))
            found.setdefault(scene, []).append(re.sub(r"\s+", " ", words).strip())
    return {scene: lines for scene, lines in found.items() if scene}


def test_the_recording_is_an_asciicast() -> None:
    header, *events = map(json.loads, CAST.splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, recording.COLUMNS, recording.ROWS)
    times = [at for at, kind, _ in events if kind == "o"]
    assert len(times) == len(events)
    assert times == sorted(times)


def test_the_recording_has_the_scenes_of_the_demo() -> None:
    """A terminal clears its screen for each; all went well, and no scene was left out."""
    lines, _ = recording.lines_of(CAST)
    titles = [line.text for line in lines if line.row == 0 and line.screen > 0]
    assert titles == [title for title, _ in SCENES]
    assert "All as it should be." in written(CAST)
    assert "Not shown" not in written(CAST)


def test_the_drawing_is_of_the_recording() -> None:
    drawing = recording.DRAWING.read_text()
    assert drawing == recording.draw(CAST), "python docs/recording.py --draw draws it anew"
    lines, length = recording.lines_of(CAST)
    assert 20 < length < 90
    shown = [*ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert ["".join(text.itertext()) for text in shown[1:]] == [line.text for line in lines if line.text.strip()]


def test_a_line_is_seen_from_its_time_until_the_screen_is_cleared() -> None:
    events = [
        [0.5, "o", "one\r\n"],
        [1.0, "o", "\x1b[1mt"],
        [1.5, "o", "wo\x1b[0m\r\n"],
        [4.0, "o", "\x1b[H\x1b[2Jthree\r\n"],
    ]
    lines, length = recording.lines_of("\n".join(map(json.dumps, [{"version": 2}, *events])))
    assert length == 4.0 + recording.PAUSE_S
    assert [(line.text, line.screen, line.row, line.begin_s, line.end_s) for line in lines] == [
        ("one", 0, 0, 0.5, 4.0), ("two", 0, 1, 1.5, 4.0), ("three", 1, 0, 4.0, length)
    ]  # fmt: skip
    assert lines[1].runs == ((1, "t"), (1, "wo"))


def test_a_long_line_goes_on_in_the_next_row() -> None:
    events = [[0.0, "o", "x" * (recording.COLUMNS + 3) + "\r\n"], [1.0, "o", "y\r\n"]]
    lines, _ = recording.lines_of("\n".join(map(json.dumps, [{"version": 2}, *events])))
    assert [(line.text, line.row) for line in lines] == [("x" * recording.COLUMNS, 0), ("xxx", 1), ("y", 2)]


@pytest.mark.parametrize("data", ["\x1b[5A", "a\rb", "x\r\n" * (recording.ROWS + 1)])
def test_what_the_drawing_would_show_wrongly_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"a control sequence|screen 0 has"):
        recording.lines_of(json.dumps({"version": 2}) + "\n" + json.dumps([0.0, "o", data]))


def test_the_pictures_are_as_they_are_drawn() -> None:
    again = "python docs/overview.py draws it anew"
    assert overview.OVERVIEW.read_text() == overview.overview(), again
    assert overview.GPU.read_text() == overview.gpu((DOCS / "devices.md").read_text()), again


def test_the_pictures_of_the_readme_are_small_and_closed() -> None:
    """No scripts, and nothing from elsewhere: else GitHub shows none of it."""
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (REPO / "README.md").read_text())
    assert len(named) >= 3
    for path in [*(REPO / name for name in named), recording.CAST]:
        assert path.stat().st_size < MOST_BYTES
    for name in named:
        text = (REPO / name).read_text()
        ElementTree.fromstring(text)
        assert not re.search(r"<script|href=|url\((?!#)|@import|@font-face", text)


def luminance(colour: str) -> float:
    """Relative, of sRGB (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [overview.LIGHT, overview.DARK], ids=["light", "dark"])
def test_the_pictures_can_be_read_in_both_schemes(scheme: dict[str, str]) -> None:
    """Text on its ground has the contrast of WCAG's level AA, 4.5."""
    pairs = [(ink, "ground") for ink in ("ink", "soft", "bad", "good")]
    for ink, ground in [*pairs, ("ink", "box"), ("soft", "box"), ("ink", "pin")]:
        light, dark = sorted((luminance(scheme[ink]), luminance(scheme[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_the_demo_tells_what_the_recording_does(fuse: None, root: None, tmp_path: Path) -> None:
    """Scene by scene, but for scenes that this machine cannot show (the demo says why). A minute at most."""
    done = subprocess.run(
        [sys.executable, "-m", "demo"], cwd=REPO, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    now, recorded = told(done.stdout), told(written(CAST))
    assert [*now] == [*recorded]
    shown = [scene for scene, lines in now.items() if not lines[0].startswith("Not shown")]
    assert len(shown) >= len(SCENES) - 3
    for scene in shown:
        assert now[scene] == recorded[scene], "python docs/recording.py records it anew"
