"""The widgets' logic, without a browser: what the parts show when the reader turns and presses."""

from __future__ import annotations

import base64
import io
import re
import threading
import time

import matplotlib.pyplot as plt
import nbconvert
import nbformat
import numpy as np
import pytest
import torch

from saelearn import tiny, toy
from saelearn.errors import Refusal
from saelearn.tiny import dial
from saelearn.tiny.console import Written
from saelearn.toy import toy_step
from saelearn.widgets import L1Dial, SteeringConsole, ToyDial
from saelearn.widgets.l1_dial import table
from saelearn.widgets.steering_console import STRENGTHS
from saelearn.widgets.toy_dial import RATIOS, P


@pytest.fixture(scope="module")
def points() -> list[dial.DialPoint]:
    return dial.load_sweep()


@pytest.fixture
def the_dial(points) -> L1Dial:
    return L1Dial(points, train_point=lambda *_, **__: points[0])


def drawn(the_dial: L1Dial | ToyDial, name: str) -> np.ndarray:
    """Where the marks of a name stand in the frame, `[N, 2]`, in the units of its axes."""
    artist = next(a for a in the_dial.picture._moving if a.get_gid() == name)
    to_data = artist.axes.transData.inverted()
    group = re.search(rf'<g id="{name}">(.*?)\n </g>', the_dial.frame, re.DOTALL)
    places = re.findall(r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)"', group[1] if group else "")
    height = 72 * the_dial.picture.figure.get_figheight()
    points_N2 = np.array(places, dtype=float).reshape(-1, 2) * [1, -1] + [0, height]
    return to_data.transform(points_N2)


def matrix(the_dial: L1Dial) -> np.ndarray:
    """The cosines in the frame's picture, told from its colours."""
    data = re.search(r'data:image/png;base64,([^"]+)"', the_dial.frame)[1]
    rgba = plt.imread(io.BytesIO(base64.b64decode(data)), format="png")
    sign = np.where(rgba[..., 0] > rgba[..., 2], 1, -1)
    return sign * rgba[..., 3]


def values(the_dial: ToyDial, name: str) -> np.ndarray:
    """Heights of what is drawn under a name."""
    return drawn(the_dial, name)[:, 1]


def shown(the_dial: L1Dial) -> list[dict[str, str]]:
    """The rows of numbers in the table, by name."""
    lines = re.findall(r"<tr>.*?</tr>", the_dial.table)
    return [dict(re.findall(r'data-number="(\w+)"[^>]*>([^<]+)<', line)) for line in lines]


@pytest.mark.parametrize("index", [0, 6, 15])
def test_everything_follows_the_slider(the_dial, points, index):
    the_dial.move(l1=index)
    point = points[index]
    numbers = point.numbers
    (row,) = shown(the_dial)
    assert row["l0"] == f"{numbers.l0:.2f}"
    assert row["unexplained"] == f"{numbers.unexplained:.3f}"
    assert row["gamma"] == f"{numbers.gamma:.3f}"
    assert row["dead"] == f"{numbers.dead:.1%}"
    assert row["n_recovered"] == str(numbers.n_recovered)
    assert f"λ = {numbers.l1_coefficient:g}" in the_dial.table
    np.testing.assert_allclose(matrix(the_dial), point.cosine_GF, atol=0.01)
    np.testing.assert_allclose(drawn(the_dial, "says")[:, 1], point.active_A, atol=0.001)
    for name, value in (
        ("unexplained", numbers.unexplained),
        ("dead", numbers.dead),
        ("gamma", numbers.gamma),
        ("recovered", numbers.n_recovered / 64),
    ):
        np.testing.assert_allclose(
            drawn(the_dial, name), [[numbers.l1_coefficient, value]], rtol=1e-3, atol=1e-6
        )
    np.testing.assert_allclose(
        drawn(the_dial, "frontier"), [[numbers.l0, numbers.unexplained]], rtol=1e-3, atol=1e-6
    )
    assert f"{numbers.n_recovered} of 64 planted" in the_dial.alt
    assert the_dial.shown == the_dial.values


def test_a_picture_stands_where_no_widget_can(the_dial):
    """On a page without a kernel: what nbconvert makes of the output."""
    data, metadata = the_dial._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    cell = nbformat.v4.new_code_cell(
        "the_dial", outputs=[output], metadata={"alt": "four pictures"}
    )
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    (picture,) = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)"', page)
    pixels = plt.imread(io.BytesIO(base64.b64decode(picture)), format="png")
    assert (pixels[0, 0, :3] == 1).all(), "opaque and white: it is read on any page"
    assert pixels[..., :3].min() < 0.2
    assert "widget-view+json" not in page
    assert "L1Dial(" not in page
    console, _ = SteeringConsole(Writer())._repr_mimebundle_()
    assert "text 0 &lt;" in console["text/html"]


@pytest.mark.parametrize("value", [-1, 16, 1.5, "0", None, [0]])
def test_a_place_that_the_slider_lacks_is_put_back(the_dial, value):
    before = dict(the_dial.values)
    the_dial.values = {**before, "l1": value}
    assert the_dial.values == before


def test_the_slider_shows_the_coefficient_itself(the_dial):
    assert the_dial.label("l1") == "0.3"
    slider = the_dial.controls[0]
    assert slider["options"] == [f"{value:g}" for value in dial.L1_COEFFICIENTS]
    assert "λ" in slider["label"]


def test_it_starts_where_it_is_told(points):
    assert L1Dial(points, start=0.98).label("l1") == "1"


@pytest.mark.parametrize("start", ["x", None, 0, -1.0, float("nan"), float("inf"), True])
def test_a_start_that_is_no_coefficient_is_refused(points, start):
    with pytest.raises(Refusal, match="coefficient above 0") as refused:
        L1Dial(points, start=start)
    assert repr(start) in str(refused.value)
    assert "from 0.01 to 3" in refused.value.remedy


def test_it_moves_within_a_tenth_of_a_second(the_dial):
    start = time.process_time()
    for index in range(len(the_dial.points)):
        the_dial.move(l1=index)
    assert (time.process_time() - start) / len(the_dial.points) < 0.1


def test_the_table_is_announced_and_its_head_is_marked(points):
    text = table(points[3].numbers, points[4].numbers)
    assert 'aria-live="polite"' in text
    assert text.count('scope="row"') == 2
    assert text.count('scope="col"') == 7


def test_training_anew_does_not_block_and_shows_its_progress(points):
    go_on, started, calls = threading.Event(), threading.Event(), []

    def slow(coefficient, *, seed, callback):
        calls.append((coefficient, seed))
        callback({"step": dial.TRAINING["steps"] // 2}, None)
        started.set()
        assert go_on.wait(30)
        return points[-1]

    the_dial = L1Dial(points, start=0.1, train_point=slow)
    the_dial.move(seed=7)
    the_dial.press("train")
    assert started.wait(30)
    assert the_dial.disabled == ["train"]
    assert the_dial.progress == 0.5
    assert "training at λ = 0.1 with seed 7" in the_dial.message
    the_dial.press("train")  # a second one meanwhile is refused
    the_dial.move(l1=0)  # the dial still moves
    assert shown(the_dial)[0]["l0"] == f"{points[0].numbers.l0:.2f}"
    go_on.set()
    the_dial.wait(30)
    assert calls == [(0.1, 7)]
    assert not the_dial.disabled
    assert the_dial.progress is None
    assert len(shown(the_dial)) == 1, "the reader has moved on: nothing was trained there"
    the_dial.move(l1=6)
    stored, anew = shown(the_dial)
    assert stored["l0"] == f"{points[6].numbers.l0:.2f}"
    assert anew["l0"] == f"{points[-1].numbers.l0:.2f}"
    assert "trained anew, seed 7" in the_dial.table
    there = [[points[-1].numbers.l0, points[-1].numbers.unexplained]]
    np.testing.assert_allclose(drawn(the_dial, "anew"), there, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(matrix(the_dial), points[-1].cosine_GF, atol=0.01)
    the_dial.move(l1=5)
    assert len(drawn(the_dial, "anew")) == 0
    assert len(shown(the_dial)) == 1
    assert "wherever the slider stands at 0.1" in the_dial.message, "true also where no row is"


def test_what_goes_wrong_is_shown(points):
    def failing(*_, **__):
        raise Refusal("a finite loss", "nan at <step> 3", "lower lr")

    the_dial = L1Dial(points, train_point=failing)
    the_dial.press("train")
    the_dial.wait(30)
    assert "training failed: Refusal" in the_dial.message
    assert "nan at &lt;step&gt; 3" in the_dial.message
    assert not the_dial.disabled
    assert len(shown(the_dial)) == 1


def test_training_anew_with_seed_0_gives_the_stored_numbers(points, monkeypatch):
    """The real thing, short: the widget's call is `dial.train_point`'s."""
    monkeypatch.setattr(
        dial.train_sae, "__kwdefaults__", {**dial.train_sae.__kwdefaults__, "steps": 30}
    )
    the_dial = L1Dial(points)
    the_dial.press("train")
    the_dial.wait(60)
    here = dial.train_point(0.3).numbers
    assert the_dial.anew[0.3][1].numbers.l0 == pytest.approx(here.l0, rel=1e-4)


def toy_row(the_dial: ToyDial) -> dict[str, str]:
    (name,) = re.findall(r'<th scope="row"[^>]*>([^<]+)<', the_dial.table)
    return dict(re.findall(r'data-number="(\w+)"[^>]*>([^<]+)<', the_dial.table)) | {"name": name}


def length(the_dial: ToyDial) -> np.ndarray:
    return np.hypot(*drawn(the_dial, "kept").T)


def test_the_sparsity_dial_retrains_where_it_stands():
    toy_step.loops.cache_clear()
    the_dial = ToyDial()
    assert toy_step.loops.cache_info().currsize, "loaded before a reader can move"
    dense = toy_row(the_dial)
    assert (dense["name"], dense["kept"], dense["sum"]) == ("p = 1, × 0.8", "2 of 5", "2.00")
    assert dense["crowd"] == "100.0%"
    assert len(drawn(the_dial, "kept")) == 2
    assert len(drawn(the_dial, "lost")) == 3
    the_dial.move(p=P.index(0.02))
    the_dial.wait(60)
    sparse = toy_row(the_dial)
    assert (sparse["name"], sparse["kept"]) == ("p = 0.02, × 0.8", "5 of 5")
    assert sparse["crowd"] == f"{1 - 0.98**5 - 5 * 0.02 * 0.98**4:.1%}"
    np.testing.assert_allclose(length(the_dial), 1.15, atol=0.05)
    heights = [bar.get_height() for bar in the_dial.picture._shares]
    np.testing.assert_allclose(heights, 0.4, atol=0.04)
    x_G, y_G = drawn(the_dial, "kept").T
    turns = np.sort((np.degrees(np.arctan2(y_G, x_G)) + 1) % 360)
    np.testing.assert_allclose(np.diff(turns), 72, atol=6)
    assert turns[0] == pytest.approx(1, abs=0.5), "feature 0 points right"
    copies, best = values(the_dial, "copies"), values(the_dial, "best")
    assert len(copies) == 11
    assert best[0] <= min(copies)
    assert float(sparse["loss"]) == pytest.approx(best[0], abs=0.002)
    assert 0.01 < best[0] < float(dense["loss"])
    the_dial.move(ratio=RATIOS.index(0.5))
    the_dial.wait(60)
    assert toy_row(the_dial)["name"] == "p = 0.02, × 0.5"
    assert not the_dial.message


def test_the_sparsity_dial_shows_numbers_and_is_announced():
    the_dial = ToyDial(start=0.11)
    assert (the_dial.label("p"), the_dial.label("ratio")) == ("0.1", "0.8")
    assert all(slider["label"] for slider in the_dial.controls)
    assert 'aria-live="polite"' in the_dial.table


def a_run(p: float) -> toy.ToyRun:
    W_KGD = torch.eye(5, 2).expand(12, 5, 2) * (1 + p)
    return toy.ToyRun(W_KGD, torch.zeros(12, 5), torch.arange(1.0, 13) * p, [])


def test_while_it_trains_the_dial_takes_only_the_latest_setting():
    go_on, started, calls = threading.Event(), threading.Event(), []
    go_on.set()

    def slow(n_features, d_hidden, *, p, importance_G, **_):
        calls.append(p)
        started.set()
        assert go_on.wait(30)
        return a_run(p)

    the_dial = ToyDial(train=slow)
    assert calls == [1]
    go_on.clear()
    started.clear()
    the_dial.move(p=P.index(0.5))
    assert started.wait(30)
    for p in (0.4, 0.3, 0.1):  # the slider is free meanwhile
        the_dial.move(p=P.index(p))
    go_on.set()
    the_dial.wait(30)
    assert calls == [1, 0.5, 0.1]
    assert toy_row(the_dial)["name"] == "p = 0.1, × 0.8"


def test_what_goes_wrong_in_the_sparsity_dial_is_shown_and_it_goes_on():
    def failing(*_, p, **__):
        if p == 0.5:
            raise Refusal("a finite loss", "nan at <step> 3", "lower lr")
        return a_run(p)

    the_dial = ToyDial(train=failing)
    the_dial.move(p=P.index(0.5))
    the_dial.wait(30)
    assert "training failed: Refusal" in the_dial.message
    assert "&lt;step&gt;" in the_dial.message
    the_dial.move(p=P.index(0.2))
    the_dial.wait(30)
    assert not the_dial.message
    assert toy_row(the_dial)["name"].startswith("p = 0.2")


def test_the_sparsity_dial_retrains_in_well_under_a_second():
    the_dial = ToyDial()
    seconds = []
    for p in (0.5, 0.1, 0.02):
        start = time.process_time()
        the_dial.move(p=P.index(p))
        the_dial.wait(60)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.6, "0.1 s of an idle core"


class Writer:
    """Stands in for a console: what it writes says with what it was asked."""

    name = "golden_retriever"

    def __init__(self, wait=lambda: None):
        self.directions = dict.fromkeys(["golden retriever", "random direction"])
        self.wait, self.calls = wait, []

    def write(self, title: str, strength: float, *, seed: int) -> Written:
        self.calls.append((title, strength, seed))
        self.wait()
        if strength == 1.6:
            raise Refusal("a finite push", "nan at <step> 3", "push less")
        texts = [f"text {i} <{title}> at {strength:g}, seed {seed}" for i in range(8)]
        texts[0] += f" the {tiny.MENTIONS[self.name][0]} barked"
        return Written(texts, [strength >= 1 and i < 6 for i in range(8)], 1 - strength / 4)


def console_rows(the_console: SteeringConsole) -> dict[str, dict[str, str]]:
    """The rows of numbers, by title."""
    lines = re.findall(r"<tr>.*?</tr>", the_console.table)
    named = {re.search(r'scope="row"[^>]*>([^<]+)<', line)[1]: line for line in lines}
    found = r'data-number="(\w+)"[^>]*>([^<]+)<'
    return {name: dict(re.findall(found, line)) for name, line in named.items()}


def test_the_steering_console_follows_its_slider():
    the_console = SteeringConsole(Writer())
    assert the_console.label("strength") == "0"
    the_console.move(strength=STRENGTHS.index(1.0))
    the_console.wait(30)
    rows = console_rows(the_console)
    assert rows == {
        "golden retriever, strength 1": {"mentions": "6 of 8", "validity": "75%"},
        "random direction, strength 1": {"mentions": "6 of 8", "validity": "75%"},
    }
    shown = the_console.words
    assert shown.count("at 1, seed 1") == 8, "four texts in each of two columns"
    assert "text 4" not in shown, "always the first ones"
    assert "&lt;golden retriever&gt;" not in shown, "the phrase is marked"
    assert "&lt;random direction&gt;" in shown
    assert re.search(r"<b [^>]*>golden retriever</b> barked", shown)
    assert "control: random direction" in shown


def test_the_steering_console_shows_numbers_and_is_announced():
    the_console = SteeringConsole(Writer(), start=0.72)
    assert the_console.label("strength") == "0.7"
    assert all(control["label"] for control in the_console.controls)
    assert 'aria-live="polite"' in the_console.table


def test_the_button_draws_other_texts_and_what_was_written_is_remembered():
    writer = Writer()
    the_console = SteeringConsole(writer)
    the_console.press("other")
    the_console.wait(30)
    assert "at 0, seed 2" in the_console.words
    the_console.move(strength=STRENGTHS.index(0.5))
    the_console.wait(30)
    before = len(writer.calls)
    the_console.move(strength=STRENGTHS.index(0.0))
    the_console.wait(30)
    assert "at 0, seed 2" in the_console.words
    assert len(writer.calls) == before, "not written twice"


def test_while_it_writes_the_console_takes_only_the_latest_setting():
    go_on, started = threading.Event(), threading.Event()
    go_on.set()

    def wait():
        started.set()
        assert go_on.wait(30)

    writer = Writer(wait)
    the_console = SteeringConsole(writer)
    go_on.clear()
    started.clear()
    the_console.move(strength=STRENGTHS.index(0.5))
    assert started.wait(30)
    for strength in (0.6, 0.7, 1.2):  # the slider is free meanwhile
        the_console.move(strength=STRENGTHS.index(strength))
    go_on.set()
    the_console.wait(30)
    assert sorted({strength for _, strength, _ in writer.calls}) == [0, 0.5, 1.2]
    assert "golden retriever, strength 1.2" in console_rows(the_console)


def test_what_goes_wrong_in_the_console_is_shown_and_it_goes_on():
    the_console = SteeringConsole(Writer())
    the_console.move(strength=STRENGTHS.index(1.6))
    the_console.wait(30)
    assert "writing failed: Refusal" in the_console.message
    assert "&lt;step&gt;" in the_console.message
    the_console.move(strength=STRENGTHS.index(0.2))
    the_console.wait(30)
    assert not the_console.message
    assert "golden retriever, strength 0.2" in console_rows(the_console)


def test_the_console_answers_within_a_second_and_steers():
    """The real thing: its model, its feature."""
    the_console = SteeringConsole()
    start = time.process_time()
    the_console.move(strength=STRENGTHS.index(1.3))
    the_console.wait(60)
    assert time.process_time() - start < 2, "0.3 s of an idle core"
    toward, control = console_rows(the_console).values()
    said, by_chance = (int(row["mentions"].split(" of ")[0]) for row in (toward, control))
    assert said > 0.6 * 32 > by_chance + 6
