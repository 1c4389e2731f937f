"""A reader's eyes and hands: Chromium opens the lessons in JupyterLab and uses their widgets."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saelearn.tiny import dial

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
RUN_ALL = """async () => {
    const app = window.jupyterapp, widget = app.shell.currentWidget;
    await widget.context.ready;
    await widget.sessionContext.ready;
    await widget.sessionContext.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells');
}"""
SHOW_CELL = """async (start) => {
    const cells = window.jupyterapp.shell.currentWidget.content;
    const i = cells.widgets.findIndex(cell => cell.model.sharedModel.source.startsWith(start));
    cells.activeCellIndex = i;
    await cells.scrollToItem(i, 'center');
}"""
DARK = """() => window.jupyterapp.commands.execute(
    'apputils:change-theme', {theme: 'JupyterLab Dark'}
)"""
PATIENCE = 240_000  # milliseconds, for a whole lesson on a busy machine


@contextlib.contextmanager
def browser_page(chromium_path: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.set_default_timeout(PATIENCE)
        try:
            yield page
        finally:
            browser.close()


def eventually(read: Callable[[], Any], right: Callable[[Any], bool], seconds: float = 60) -> Any:
    """Read until it is right; what was read last is told if it never is."""
    deadline = time.monotonic() + seconds
    while not right(value := read()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.1)
    return value


class Eyes:
    """What a reader sees of the L1 dial."""

    def __init__(self, page: Any):
        self.page = page

    def rows(self) -> list[dict[str, str]]:
        """The table's rows of numbers."""
        lines = self.page.locator("table.l1-dial tr:has(td)").all()
        return [
            {td.get_attribute("data-number"): td.inner_text() for td in line.locator("td").all()}
            | {"name": line.locator("th").inner_text()}
            for line in lines
        ]

    def marker(self) -> tuple[float, float]:
        """Where the large marker stands on the curve of error against L0, in pixels."""
        markers = self.page.locator(".js-plotly-plot .subplot.x4y4 .points path.point").all()
        match = re.search(
            r"translate\(([-\d.]+),\s*([-\d.]+)\)", markers[0].get_attribute("transform")
        )
        return float(match[1]), float(match[2])

    def curve(self) -> str:
        """The path of the curve that the marker moves along."""
        lines = self.page.locator(".js-plotly-plot .subplot.x4y4 path.js-line").all()
        return lines[0].get_attribute("d")

    def readout(self) -> str:
        return self.page.locator(".widget-slider .widget-readout").first.inner_text()


def drag(page: Any, pixels: float) -> None:
    """Take the first slider's handle and pull it sideways."""
    pull(page, page.locator(".widget-slider .noUi-handle").first, pixels)


def pull(page: Any, handle: Any, pixels: float) -> None:
    """Take a slider's handle and pull it sideways."""
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=8)
    page.mouse.up()


def written(numbers: dial.Numbers) -> dict[str, str]:
    """How the table writes the numbers of a setting."""
    return {
        "l0": f"{numbers.l0:.2f}",
        "unexplained": f"{numbers.unexplained:.3f}",
        "gamma": f"{numbers.gamma:.3f}",
        "dead": f"{numbers.dead:.1%}",
        "n_recovered": str(numbers.n_recovered),
        "mean_max_cosine": f"{numbers.mean_max_cosine:.3f}",
        "name": f"λ = {numbers.l1_coefficient:g}",
    }


def expected_marker(page: Any, numbers: dial.Numbers) -> tuple[float, float]:
    """Where plotly's own axes put a setting, in pixels."""
    return tuple(
        page.evaluate(
            """([x, y]) => {
                const full = document.querySelector('.js-plotly-plot')._fullLayout;
                return [full.xaxis4.d2p(x), full.yaxis4.d2p(y)];
            }""",
            [numbers.l0, numbers.unexplained],
        )
    )


@contextlib.contextmanager
def opened(name: str, table: str, folder: Path, jupyterlab: Any, chromium: str) -> Iterator[Any]:
    """A lesson in JupyterLab, all its cells run, the widget with that table in view."""
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / name, folder)
    lab = jupyterlab(folder)
    with browser_page(chromium) as page:
        page.goto(lab.address(name))
        page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget")
        page.evaluate(RUN_ALL)
        page.wait_for_selector(table, state="attached")
        page.locator(table).scroll_into_view_if_needed()
        yield page


@pytest.fixture
def lesson_05(tmp_path, jupyterlab, chromium_path) -> Iterator[Any]:
    """Lesson 05 with the L1 dial in view."""
    lesson = ("05_l1_dial.ipynb", "table.l1-dial")
    with opened(*lesson, tmp_path / "lessons", jupyterlab, chromium_path) as page:
        page.wait_for_selector(".js-plotly-plot .subplot.x4y4 path.point", state="attached")
        page.locator(".js-plotly-plot").scroll_into_view_if_needed()
        yield page


def test_the_dial_in_a_browser(lesson_05, tmp_path):
    page, eyes = lesson_05, Eyes(lesson_05)
    sweep = {f"{p.numbers.l1_coefficient:g}": p.numbers for p in dial.load_sweep()}
    assert eyes.readout() == "0.3"
    assert eyes.rows() == [written(sweep["0.3"])]
    assert eyes.marker() == pytest.approx(expected_marker(page, sweep["0.3"]), abs=1)
    curve = eyes.curve()
    page.screenshot(path=tmp_path / "start.png")

    drag(page, -120)
    readout = eventually(eyes.readout, lambda text: text != "0.3")
    assert float(readout) < 0.3
    eventually(eyes.rows, lambda rows: rows == [written(sweep[readout])])
    target = pytest.approx(expected_marker(page, sweep[readout]), abs=1)
    eventually(eyes.marker, lambda place: place == target)
    assert eyes.curve() == curve, "the curve stays, the marker moves along it"
    page.screenshot(path=tmp_path / "dragged.png")

    page.locator(".widget-slider .noUi-handle").first.press("ArrowRight")
    after = eventually(eyes.readout, lambda text: text != readout)
    assert float(after) > float(readout)
    eventually(eyes.rows, lambda rows: rows == [written(sweep[after])])

    train_anew(page, eyes, sweep[after])
    page.screenshot(path=tmp_path / "anew.png")


def train_anew(page: Any, eyes: Eyes, stored: dial.Numbers) -> None:
    """Press the button: it is disabled meanwhile, and in the end both rows of numbers agree."""
    button = page.get_by_role("button", name="train anew")
    button.click()
    eventually(button.is_disabled, bool)
    first, anew = eventually(eyes.rows, lambda rows: len(rows) == 2, seconds=PATIENCE / 1000)
    assert first == written(stored)
    assert anew["name"] == "trained anew"
    assert float(anew["l0"]) == pytest.approx(stored.l0, rel=0.05)
    assert float(anew["unexplained"]) == pytest.approx(stored.unexplained, abs=0.01)
    assert float(anew["gamma"]) == pytest.approx(stored.gamma, abs=0.01)
    assert int(anew["n_recovered"]) == pytest.approx(stored.n_recovered, abs=2)
    eventually(button.is_disabled, lambda disabled: not disabled)
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr']").count() == 0


class ToyEyes:
    """What a reader sees of the sparsity dial."""

    def __init__(self, page: Any):
        self.page = page
        self.cell = page.locator(".jp-Cell", has=page.locator("table.toy-dial"))

    def slider(self, i: int = 0) -> Any:
        return self.cell.locator(".widget-slider").nth(i).locator(".noUi-handle")

    def readout(self, i: int = 0) -> str:
        return self.cell.locator(".widget-slider .widget-readout").nth(i).inner_text()

    def row(self) -> dict[str, str]:
        """The numbers by name, and the setting that they belong to."""
        # in one go: the table may be exchanged between two looks
        return self.cell.locator("table.toy-dial").evaluate(
            """table => {
                const fields = [...table.querySelectorAll('td')];
                const row = fields.map(td => [td.dataset.number, td.innerText]);
                const name = table.querySelector('th[scope=row]').innerText;
                return { ...Object.fromEntries(row), name };
            }"""
        )

    def features(self) -> list[str]:
        """The numbers on the arrows that are long enough to have one."""
        texts = self.cell.locator(".js-plotly-plot .subplot.xy .textpoint text").all_text_contents()
        return sorted(text for text in texts if text.strip())

    def angles(self) -> list[float]:
        """Degrees between neighbouring arrows, from where their tips are drawn."""
        return self.cell.locator(".js-plotly-plot").evaluate(
            """plot => {
                const { xaxis, yaxis } = plot._fullLayout;
                const tips = [...plot.querySelectorAll('.subplot.xy .points path.point')];
                const turns = tips.map(tip => {
                    const [x, y] = tip.getAttribute('transform').match(/[-\\d.]+/g).map(Number);
                    return Math.atan2(yaxis.d2p(0) - y, x - xaxis.d2p(0)) * 180 / Math.PI;
                }).sort((a, b) => a - b);
                return turns.map((t, i) => (turns[(i + 1) % turns.length] - t + 360) % 360);
            }"""
        )


@pytest.fixture
def lesson_02(tmp_path, jupyterlab, chromium_path) -> Iterator[Any]:
    """Lesson 02 with the sparsity dial in view."""
    lesson = ("02_superposition.ipynb", "table.toy-dial")
    with opened(*lesson, tmp_path / "lessons", jupyterlab, chromium_path) as page:
        points = ToyEyes(page).cell.locator(".js-plotly-plot .subplot.xy path.point")

        def drawn() -> int:
            # cells out of sight are taken out of the page, and late outputs above push this one out
            page.evaluate(SHOW_CELL, "ToyDial(")
            return points.count()

        eventually(drawn, lambda count: count == 5, seconds=120)
        yield page


def test_the_sparsity_dial_retrains_live_in_a_browser(lesson_02, tmp_path):
    page, eyes = lesson_02, ToyEyes(lesson_02)
    assert eyes.readout() == "1"
    dense = eyes.row()
    assert (dense["name"], dense["kept"]) == ("p = 1, × 0.8", "2 of 5")
    assert eyes.features() == ["0", "1"]
    page.screenshot(path=tmp_path / "dense.png")

    pull(page, eyes.slider(), 600)
    eventually(eyes.readout, lambda text: text == "0.01")
    sparse = eventually(eyes.row, lambda row: row["name"] == "p = 0.01, × 0.8")
    assert sparse["kept"] == "5 of 5"
    assert float(sparse["loss"]) < float(dense["loss"])
    assert float(sparse["seconds"].removesuffix(" s")) < 5, "0.1 s where nothing else runs"
    eventually(eyes.features, lambda numbers: numbers == list("01234"))
    assert eyes.angles() == pytest.approx([72] * 5, abs=6), "a pentagon"
    page.screenshot(path=tmp_path / "sparse.png")

    for _ in range(6):
        eyes.slider().press("ArrowLeft")
    p = eventually(eyes.readout, lambda text: text == "0.15")
    row = eventually(eyes.row, lambda row: row["name"] == f"p = {p}, × 0.8")
    assert row["kept"] == "4 of 5"
    eventually(eyes.features, lambda numbers: numbers == list("0123"))
    eyes.slider(1).press("ArrowLeft")
    equal = eyes.readout(1)
    row = eventually(eyes.row, lambda row: row["name"] == f"p = {p}, × {equal}")
    assert row["kept"] == "5 of 5"
    eventually(eyes.features, lambda numbers: numbers == list("01234"))
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr']").count() == 0

    page.evaluate(DARK)
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.screenshot(path=tmp_path / "dark.png")


class ConsoleEyes:
    """What a reader sees of the steering console."""

    def __init__(self, page: Any):
        self.page = page
        self.cell = page.locator(".jp-Cell", has=page.locator("table.steering-console"))

    def handle(self) -> Any:
        return self.cell.locator(".widget-slider .noUi-handle")

    def readout(self) -> str:
        return self.cell.locator(".widget-slider .widget-readout").inner_text()

    def rows(self) -> dict[str, int]:
        """Title of a row -> how many texts speak of the thing."""
        # in one go: the table may be exchanged between two looks
        found = self.cell.locator("table.steering-console").evaluate(
            """table => [...table.querySelectorAll('tr')].slice(1).map(row => [
                row.querySelector('th').innerText,
                row.querySelector('[data-number=mentions]').innerText,
            ])"""
        )
        return {title: int(text.split(" of ")[0]) for title, text in found}

    def marked(self) -> int:
        """How often the thing is marked in the left column of texts."""
        left = self.cell.locator("table:not(.steering-console) td:nth-child(1) b")
        return left.count()


def test_the_steering_console_in_a_browser(tmp_path, jupyterlab, chromium_path):
    lesson = ("00_start_here.ipynb", "table.steering-console")
    with opened(*lesson, tmp_path / "lessons", jupyterlab, chromium_path) as page:
        eyes = ConsoleEyes(page)

        def seen() -> int:
            # late outputs above push the cell out of sight, and such cells are taken away
            page.evaluate(SHOW_CELL, "the_console =")
            return eyes.cell.locator("table.steering-console").count()

        eventually(seen, lambda count: count == 1, seconds=120)
        assert eyes.readout() == "0"
        assert eyes.rows().keys() == {
            "golden retriever, strength 0",
            "random direction, strength 0",
        }
        page.screenshot(path=tmp_path / "plain.png")
        pull(page, eyes.handle(), 600)
        eventually(eyes.readout, lambda text: text == "1.6")
        for _ in range(3):
            eyes.handle().press("ArrowLeft")
        rows = eventually(eyes.rows, lambda rows: "golden retriever, strength 1.3" in rows)
        toward, control = rows.values()
        assert toward > 0.6 * 32 > control + 6
        assert eventually(eyes.marked, lambda count: count >= 2) >= 2
        page.screenshot(path=tmp_path / "pushed.png")
        page.get_by_role("button", name="other texts").click()
        page.evaluate(DARK)
        page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
        eventually(seen, lambda count: count == 1)
        page.screenshot(path=tmp_path / "dark.png")
        assert page.locator(".jp-RenderedText[data-mime-type*='stderr']").count() == 0
