"""The page in a real browser: what people see of pins, breaks and hostile names on a real mount."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from support.mounts import Mount
from web.conftest import Web

pytestmark = pytest.mark.browser

LIMIT_S = 30.0
# No screen, no sandbox for root, and nothing of its own to ask the network for.
SWITCHES = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "window-size=1280,1000",
)  # fmt: skip
MARKUP = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
FILE_NAME = "<svg onload=alert(1)>\u202e&amp;"


class Page:
    """What a viewer of the page sees."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def text(self, selector: str) -> str:
        return " | ".join(element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def until(self, see: Callable[[], Any], what: str) -> None:
        WebDriverWait(self.driver, LIMIT_S, poll_frequency=0.1).until(lambda _driver: see(), what)

    def shows(self, selector: str, words: str) -> None:
        """Fails unless these words come up there."""
        self.until(lambda: words in self.text(selector), f"{words!r} in {selector}: {self.text(selector)!r}")

    def bar(self) -> list[tuple[str, float, float]]:
        """(kind, left, width) of each stretch of the first file's bar, as parts of the whole as it is painted."""
        script = """
            const whole = document.querySelector(".bar").getBoundingClientRect();
            return [...document.querySelectorAll(".bar:first-of-type rect")].map((rect) => {
                const at = rect.getBoundingClientRect();
                return [getComputedStyle(rect).fill, (at.left - whole.left) / whole.width, at.width / whole.width];
            });"""
        return [(fill, left, width) for fill, left, width in self.driver.execute_script(script)]

    def complaints(self) -> list[str]:
        """What the browser has refused or could not run."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def prefer(self, scheme: str) -> None:
        """Light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser, its_driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and its_driver, "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in (*SWITCHES, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(its_driver))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, web: Web) -> Iterator[Page]:
    driver.get(web.url)
    page = Page(driver)
    page.shows("#state", "up for")
    yield page
    assert page.complaints() == []
    driver.get("about:blank")


@pytest.fixture
def file(mount: Mount) -> Path:
    path = mount.path / "weights.bin"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.mount("passthrough=off", prefix=("setpriv", "--bounding-set=-linux_immutable"))
def test_why_files_have_no_seals(page: Page) -> None:
    page.shows(".tile", "no\nseals")
    page.shows("footer", "No passthrough: ")
    page.shows("footer", "No seal: ")


def test_a_break_as_it_happens(mount: Mount, file: Path, page: Page) -> None:
    page.shows("#files", "Nothing is pinned.")
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "a", f"0:{1 << 18},mode=lease,signal=none,note=layers 0-11")
    holder.pin(file, "b", f"{1 << 19}:0,note=region 7")
    page.shows(".file h3", "weights.bin")
    page.shows(".file h3", "2 pins, 1.0 MiB, sealed")
    page.shows(".tile", "1\nsealed files")
    page.shows(".pins", "524,288 – end")
    page.shows(".pins", f"({holder.pid})")
    (green, *left), (blue, *right) = page.bar()
    assert [left, right] == [pytest.approx([0, 0.25], abs=0.01), pytest.approx([0.5, 0.5], abs=0.01)]
    assert breaker.errno(os.truncate, str(file), 0)
    page.shows("#events li.refused", "truncate")
    holder.release(file, "b")
    cut = breaker.start(os.truncate, str(file), 0)
    page.shows("tr.breaking .left", "s left")
    page.shows(".tile.hot", "breakers waiting")
    page.shows("#events li.break", "weights.bin")
    ((orange, *_where),) = page.bar()
    assert len({green, blue, orange}) == 3
    holder.release(file, "a")
    cut.result()
    page.shows("#files", "Nothing is pinned.")
    page.shows("#events li.released", "weights.bin")
    page.shows("#policy", "on_timeout")


def test_hostile_names_and_notes_are_only_text(mount: Mount, page: Page) -> None:
    holder = mount.actor()
    path = mount.path / FILE_NAME
    holder(Path.write_bytes, path, bytes(4096))
    holder.pin(path, MARKUP[:40].replace("/", ""), f"0:0,note={MARKUP.replace(',', '')}")
    page.shows(".file .path", "<svg onload=alert(1)>\\u202e&amp;")
    page.shows(".note", MARKUP)
    assert page.driver.title == f"pinfs {mount.path}"
    tags = page.driver.execute_script("return [...document.querySelectorAll('main *')].map((e) => e.localName)")
    assert not {"img", "script"} & set(tags)


def test_even_if_the_page_tried_texts_would_not_run(page: Page) -> None:
    page.driver.execute_script("""
        const script = document.createElement("script");
        script.append("document.title = 'taken'");
        document.body.append(script);
        try { document.body.innerHTML = "<b id=taken>x</b>"; } catch {}""")
    assert page.driver.find_elements(By.ID, "taken") == []
    assert "taken" not in page.driver.title
    assert len(page.complaints()) >= 2  # the browser has told why


def test_a_mount_that_ends_is_told(mount: Mount, page: Page) -> None:
    mount.stop()
    page.shows("#notice", "The mount does not answer")
    page.shows("#state", "not mounted")


def test_light_and_dark(page: Page) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        colours[scheme] = page.driver.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
    (paper, ink), (night, chalk) = colours["light"], colours["dark"]
    assert brightness(paper) > 200 > 100 > brightness(ink)
    assert brightness(night) < 100 < 200 < brightness(chalk)


def brightness(colour: str) -> float:
    numbers = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(numbers) / 3


def test_nothing_comes_from_elsewhere(web: Web, page: Page) -> None:
    names = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name.rsplit("/", 1)[0] + "/" for name in names} == {web.url}


def test_a_narrow_screen_needs_no_scrolling_sideways(mount: Mount, file: Path, page: Page) -> None:
    mount.actor().pin(file, "p", "0:0,note=" + "long " * 20)
    page.shows(".pins", "long")
    size = page.driver.get_window_size()
    page.driver.set_window_size(500, 900)
    assert page.driver.execute_script("return document.body.scrollWidth <= innerWidth")
    page.driver.set_window_size(size["width"], size["height"])
