"""The page in a real browser: what people see of pins, breaks and hostile names on a real mount."""

from __future__ import annotations

import importlib.resources
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
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
        script = """  // in one step: the page may draw it anew between two
            const all = [...document.querySelectorAll(arguments[0])];
            return all.map((one) => one.checkVisibility() ? one.innerText.trim() : "").join(" | ");"""
        return str(self.driver.execute_script(script, selector))

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

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focus(self) -> str:
        """The id of what has the focus, or its first words."""
        script = "const at = document.activeElement; return at.id || at.textContent.trim().slice(0, 40)"
        return str(self.driver.execute_script(script))

    @contextmanager
    def as_wide_as(self, width: int) -> Iterator[None]:
        """On a screen of so many pixels across."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def violations(self) -> list[str]:
        """What axe-core objects to: rule, element, why."""
        source = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text()
        if not self.driver.execute_script("return 'axe' in window"):
            self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})  # no script of the page's
        found = self.driver.execute_async_script("""
            const done = arguments[arguments.length - 1];
            axe.run(document, {resultTypes: ["violations"]}).then((found) => done(found.violations), (e) => done([{
                id: "failed", nodes: [{html: String(e), failureSummary: ""}]}]));""")
        return [f"{one['id']}: {node['html']}: {node['failureSummary']}" for one in found for node in one["nodes"]]

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


FOUR_ROWS = "return document.querySelectorAll('.pins tbody tr').length >= 4"
patient = pytest.mark.mount("break_timeout=600")  # a browser on a busy machine takes its time
WIDTHS = (360, 768, 1440)
"""A telephone, a tablet, a desk."""


@pytest.fixture
def busy(mount: Mount, file: Path) -> Iterator[None]:
    """Two holders, three files, a break under way."""
    first, second, breaker = mount.actor(), mount.actor(), mount.actor()
    for name in ("index.faiss", "a-rather-long-name-of-a-file-" + "x" * 80):
        first(Path.write_bytes, mount.path / name, bytes(1 << 20))
        second.pin(mount.path / name, "p", "0:0,note=" + "long " * 20)
    first.pin(file, "a", "0:4096,mode=lease,signal=none,note=layers 0-11")
    second.pin(file, "b", "8192:4096,mode=lease,signal=none")
    cut = breaker.start(os.truncate, str(file), 0)
    yield
    for holder, name in ((first, "a"), (second, "b")):
        holder.release(file, name)
    cut.result()


@patient
@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_needs_scrolling_sideways(busy: None, page: Page, width: int) -> None:
    page.shows("#breaks", "truncate")
    with page.as_wide_as(width):
        for key in "fha":
            page.press(key)
            page.until(lambda: page.driver.execute_script(FOUR_ROWS), key)
            assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), key


@patient
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(busy: None, page: Page, width: int, scheme: str) -> None:
    page.shows("#breaks", "truncate")
    page.prefer(scheme)
    with page.as_wide_as(width):
        assert page.violations() == []
        page.press("?")
        page.press("h")
        page.shows("#files h3", "uid 0")
        assert page.violations() == []
        page.press(Keys.ESCAPE, "a")
        page.shows("#files th", "Holder")
        assert page.violations() == []
    page.prefer("light")


@patient
def test_what_a_removal_waits_for(busy: None, page: Page) -> None:
    page.shows("#breaks", "weights.bin")
    page.shows("#breaks", "s left")
    page.shows("#breaks", "pin 3, 4")
    page.shows("#breaks .mono", "python")


@patient
def test_searching_and_grouping_by_keys_alone(busy: None, page: Page) -> None:
    page.shows("#files h3", "index.faiss")
    page.press("/")
    assert page.focus() == "find"
    page.press("layers ")
    page.shows("#selected", "1 of 4")
    page.press("WEIGHTS")  # what was typed stays as it was
    page.until(lambda: page.driver.current_url.endswith("#find=layers+WEIGHTS"), page.driver.current_url)
    page.shows("#selected", "1 of 4")
    assert "index.faiss" not in page.text("#files")
    assert page.driver.current_url.endswith("#find=layers+WEIGHTS")
    page.driver.refresh()
    page.shows("#selected", "1 of 4")
    page.press("/", Keys.ESCAPE)
    page.until(lambda: page.text("#selected") == "", "all pins again")
    page.press("b")
    page.shows("#selected", "2 of 4")
    page.press("a")
    page.shows("#files th", "File")
    page.press("b")
    page.shows("#files td:nth-child(4)", "index.faiss")
    page.press("f")
    page.shows("#files h3", "index.faiss")
    page.press("/", "nothing like it")
    page.shows("#files", "No pin is as you search.")


@patient
def test_the_order_of_the_focus(busy: None, page: Page) -> None:
    page.shows("#breaks", "truncate")
    reached = []
    for _ in range(7):
        page.press(Keys.TAB)
        reached.append(page.focus())
    assert reached[:6] == ["To the pins", "find", "show", "by", "theme", "Keys"]
    assert reached[6].startswith("Left")  # the breaks, to be scrolled
    page.driver.execute_script("document.querySelector('.skip').focus()")
    page.press(Keys.ENTER)
    assert page.focus() == "pins"


def test_colours_that_were_chosen_stay(page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    page.press("t", "t")
    assert brightness(page.driver.execute_script(background)) < 100
    page.driver.refresh()
    page.shows("#state", "up for")
    assert brightness(page.driver.execute_script(background)) < 100
    page.press("t")
    assert brightness(page.driver.execute_script(background)) > 200
