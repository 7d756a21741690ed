"""Makes the pictures of real life in docs/images: the page of `pinfs web` (light, dark by holder, and on a telephone),
and the tables of `pinfs ls`, `top` and `status`.

As root, with /dev/fuse, chromium and chromium-driver: `.venv/bin/python docs/pictures.py`. It mounts in a name space of
its own, so that nothing of this is seen outside.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).parent / "images"
REPO = Path(__file__).parents[1]
SOURCE, POINT = Path("/srv/models"), Path("/mnt/models")
PINFS = [sys.executable, "-c", "from pinfs.cli.main import main; main()"]
MIB, GIB = 1 << 20, 1 << 30
FILES = {"llm/weights-00001.safetensors": 4 * GIB, "index/vectors.faiss": 900 * MIB, "feed/ring-buffer": 64 * MIB}
PINS = [  # command, file, range and mode, note
    ("inference", "llm/weights-00001.safetensors", f"0:{GIB},mode=lease", "layers 0-11 are mapped"),
    ("inference", "llm/weights-00001.safetensors", f"{3 * GIB // 2}:{3 * GIB // 4},mode=lease", "layers 18-26"),
    ("rdma-send", "llm/weights-00001.safetensors", f"{5 * GIB // 2}:{GIB},dirty=yes", "memory region of node 7"),
    ("searchd", "index/vectors.faiss", f"0:{300 * MIB},mode=lease", "io_uring fixed buffers"),
    ("searchd", "index/vectors.faiss", f"{520 * MIB}:0,mode=lease", "mapped for queries"),
    *(("capture", "feed/ring-buffer", f"{n * 8 * MIB}:{6 * MIB}", f"slot {n}") for n in range(5)),
]
HOLDER = """
import ctypes, os, signal, sys
command, *pins = sys.argv[1:]
ctypes.CDLL(None).prctl(15, command.encode())  # PR_SET_NAME
signal.signal(signal.SIGIO, lambda *_: None)  # it needs some time to let go
for number in range(0, len(pins), 2):
    os.setxattr(pins[number], f"user.pinfs.pin.{number}", pins[number + 1].encode())
print("holding", flush=True)
while True:
    signal.pause()
"""


def main() -> None:
    if os.environ.get("PINFS_PICTURES") is None:
        os.environ["PINFS_PICTURES"] = "in a name space of its own"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    for directory in (SOURCE.parent, POINT.parent):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    SOURCE.mkdir()
    POINT.mkdir()
    IMAGES.mkdir(exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(mounted())
        stack.callback(let_go, hold())
        page = stack.enter_context(browser())
        page.get(stack.enter_context(served()))
        WebDriverWait(page, 30).until(lambda page: len(page.find_elements(By.CLASS_NAME, "file")) == len(FILES))
        tables()
        breaking(page)


@contextmanager
def mounted() -> Iterator[None]:
    command = [sys.executable, REPO / "mount.py", SOURCE, POINT, "-o", "break_timeout=60"]
    subprocess.run([*command, "--daemon", "--log-file", "/dev/null"], check=True)
    try:
        yield
    finally:
        subprocess.run([*PINFS, "umount", POINT], check=True)


def hold() -> list[subprocess.Popen[bytes]]:
    """Each command holds all of its pins."""
    holders = []
    for name, size in FILES.items():
        (POINT / name).parent.mkdir(exist_ok=True)
        (POINT / name).touch()
        os.truncate(POINT / name, size)
    for command in dict.fromkeys(command for command, *_ in PINS):
        mine = [(str(POINT / file), f"{pin},note={note}") for program, file, pin, note in PINS if program == command]
        words = [sys.executable, "-c", HOLDER, command, *(word for pin in mine for word in pin)]
        holder = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert holder.stdout and holder.stdout.readline()
        holders.append(holder)
    return holders


def let_go(holders: list[subprocess.Popen[bytes]]) -> None:
    for holder in holders:
        holder.kill()
        holder.wait()


@contextmanager
def served() -> Iterator[str]:
    page = subprocess.Popen([*PINFS, "web", POINT, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert page.stdout
    try:
        yield page.stdout.readline().strip()
    finally:
        page.terminate()
        page.wait()


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    home = tempfile.mkdtemp()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                   "disable-background-networking", "disable-component-update", "hide-scrollbars",
                   "force-device-scale-factor=1.5", "window-size=1360,1200", f"user-data-dir={home}"):  # fmt: skip
        options.add_argument(f"--{switch}")
    page = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield page
    finally:
        page.quit()
        shutil.rmtree(home, ignore_errors=True)


def breaking(page: webdriver.Chrome) -> None:
    """A truncate that is refused, one that waits for two leases; then the picture."""
    subprocess.run(["truncate", "-s", "0", POINT / "feed/ring-buffer"], check=False, stderr=subprocess.DEVNULL)
    waiting = subprocess.Popen(["truncate", "-s", str(200 * MIB), POINT / "index/vectors.faiss"])
    WebDriverWait(page, 30).until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".events .break")) == 2)
    WebDriverWait(page, 30).until(
        lambda page: len(page.find_elements(By.CSS_SELECTOR, "#files tr.breaking .left")) == 2
    )
    screenshot(page, "web", "light", (1360, 1200))
    screenshot(page, "web-holders", "dark", (1360, 1200), "h")
    screenshot(page, "web-narrow", "light", (400, 900), "f")
    picture("ls", ["ls", "-o", "ID,MODE,STATE,START,LENGTH,PID,COMM,PATH,DEADLINE", POINT])
    picture("top", ["top", "--once", POINT])
    waiting.kill()
    waiting.wait()


def screenshot(page: webdriver.Chrome, name: str, scheme: str, size: tuple[int, int], key: str = "") -> None:
    """Of a screen of this size, after a key."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if key:
        page.find_element(By.TAG_NAME, "body").send_keys(key)
        heading = {"h": "searchd", "f": "vectors"}[key]
        script = "return document.querySelector('#files h3').innerText"
        WebDriverWait(page, 30).until(lambda page: heading in page.execute_script(script))
    page.save_screenshot(str(IMAGES / f"{name}.png"))


def tables() -> None:
    picture("status", ["status", POINT])


THEME = TerminalTheme((27, 33, 42), (228, 232, 238), [(59, 66, 82)] * 3 + [(255, 178, 84)] + [(108, 155, 255)] * 4)


def picture(name: str, words: Sequence[str | Path]) -> None:
    """What a verb prints on a terminal (of `script`, so that it has colours), as an SVG."""
    shell = " ".join(["pinfs", *map(str, words)])
    command = " ".join(f"'{word}'" for word in [*PINFS, *map(str, words)])
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "118"}
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=environment, capture_output=True, text=True, check=True
    )
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("# ", "dim"), (shell, "bold")))
    console.print(Text.from_ansi(shown.stdout.replace("\r\n", "\n").rstrip()))
    without_web_fonts = re.sub(r"@font-face \{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(IMAGES / f"{name}.svg"), title="pinfs", theme=THEME, code_format=without_web_fonts)


if __name__ == "__main__":
    main()
