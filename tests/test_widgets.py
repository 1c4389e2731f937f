"""The widgets' logic, without a browser: what the parts show when the reader turns and presses."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
import torch

from saelearn import tiny, toy
from saelearn.errors import Refusal
from saelearn.tiny import dial
from saelearn.tiny.console import Written
from saelearn.widgets import L1Dial, SteeringConsole, ToyDial
from saelearn.widgets.l1_dial import table


@pytest.fixture(scope="module")
def points() -> list[dial.DialPoint]:
    return dial.load_sweep()


@pytest.fixture
def the_dial(points) -> L1Dial:
    return L1Dial(points, train_point=lambda *_, **__: points[0])


def trace(the_dial: L1Dial | ToyDial, name: str):
    return next(t for t in the_dial.figure.data if t.name == name)


def shown(the_dial: L1Dial) -> list[dict[str, str]]:
    """The rows of numbers in the table, by name."""
    lines = re.findall(r"<tr>.*?</tr>", the_dial.table.value)
    return [dict(re.findall(r'data-number="(\w+)"[^>]*>([^<]+)<', line)) for line in lines]


@pytest.mark.parametrize("index", [0, 6, 15])
def test_everything_follows_the_slider(the_dial, points, index):
    the_dial.slider.index = index
    point = points[index]
    numbers = point.numbers
    (row,) = shown(the_dial)
    assert row["l0"] == f"{numbers.l0:.2f}"
    assert row["unexplained"] == f"{numbers.unexplained:.3f}"
    assert row["gamma"] == f"{numbers.gamma:.3f}"
    assert row["dead"] == f"{numbers.dead:.1%}"
    assert row["n_recovered"] == str(numbers.n_recovered)
    assert f"λ = {numbers.l1_coefficient:g}" in the_dial.table.value
    np.testing.assert_allclose(trace(the_dial, "cosines").z, point.cosine_GF, atol=0.006)
    np.testing.assert_allclose(trace(the_dial, "says").y, point.active_A, atol=0.001)
    for name in ("unexplained", "dead", "gamma"):
        marker = trace(the_dial, f"{name} now")
        assert (marker.x[0], marker.y[0]) == (numbers.l1_coefficient, getattr(numbers, name))
    assert trace(the_dial, "recovered now").y[0] == numbers.n_recovered / 64
    assert trace(the_dial, "frontier now").x[0] == numbers.l0


def test_the_slider_shows_the_coefficient_itself(the_dial):
    assert the_dial.slider.readout
    assert the_dial.slider.label == "0.3"
    labels = [label for label, _ in the_dial.slider.options]
    assert labels == [f"{value:g}" for value in dial.L1_COEFFICIENTS]
    assert "λ" in the_dial.slider.description


def test_it_starts_where_it_is_told(points):
    assert L1Dial(points, start=0.98).slider.label == "1"


@pytest.mark.parametrize("start", ["x", None, 0, -1.0, float("nan"), float("inf"), True])
def test_a_start_that_is_no_coefficient_is_refused(points, start):
    with pytest.raises(Refusal, match="coefficient above 0") as refused:
        L1Dial(points, start=start)
    assert repr(start) in str(refused.value)
    assert "from 0.01 to 3" in refused.value.remedy


def test_it_moves_within_a_tenth_of_a_second(the_dial):
    start = time.process_time()
    for index in range(len(the_dial.points)):
        the_dial.slider.index = index
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
    the_dial.seed.value = 7
    the_dial.button.click()
    assert started.wait(30)
    assert the_dial.button.disabled
    assert the_dial.progress.value == 0.5
    assert the_dial.progress.layout.visibility == "visible"
    assert "training at λ = 0.1 with seed 7" in the_dial.message.value
    the_dial.train_anew()  # a second one meanwhile is refused
    the_dial.slider.index = 0  # the dial still moves
    assert shown(the_dial)[0]["l0"] == f"{points[0].numbers.l0:.2f}"
    go_on.set()
    the_dial.wait(30)
    assert calls == [(0.1, 7)]
    assert not the_dial.button.disabled
    assert the_dial.progress.layout.visibility == "hidden"
    assert len(shown(the_dial)) == 1, "the reader has moved on: nothing was trained there"
    the_dial.slider.index = 6
    stored, anew = shown(the_dial)
    assert stored["l0"] == f"{points[6].numbers.l0:.2f}"
    assert anew["l0"] == f"{points[-1].numbers.l0:.2f}"
    assert trace(the_dial, "frontier anew").y[0] == points[-1].numbers.unexplained
    np.testing.assert_allclose(trace(the_dial, "cosines").z, points[-1].cosine_GF, atol=0.006)
    the_dial.slider.index = 5
    assert not trace(the_dial, "frontier anew").x


def test_what_goes_wrong_is_shown(points):
    def failing(*_, **__):
        raise Refusal("a finite loss", "nan at <step> 3", "lower lr")

    the_dial = L1Dial(points, train_point=failing)
    the_dial.button.click()
    the_dial.wait(30)
    assert "training failed: Refusal" in the_dial.message.value
    assert "nan at &lt;step&gt; 3" in the_dial.message.value
    assert not the_dial.button.disabled
    assert len(shown(the_dial)) == 1


def test_training_anew_with_seed_0_gives_the_stored_numbers(points, monkeypatch):
    """The real thing, short: the widget's call is `dial.train_point`'s."""
    monkeypatch.setattr(
        dial.train_sae, "__kwdefaults__", {**dial.train_sae.__kwdefaults__, "steps": 30}
    )
    the_dial = L1Dial(points)
    the_dial.button.click()
    the_dial.wait(60)
    here = dial.train_point(0.3).numbers
    assert the_dial.anew[0.3].numbers.l0 == pytest.approx(here.l0, rel=1e-4)


def toy_row(the_dial: ToyDial) -> dict[str, str]:
    (name,) = re.findall(r'<th scope="row"[^>]*>([^<]+)<', the_dial.table.value)
    return dict(re.findall(r'data-number="(\w+)"[^>]*>([^<]+)<', the_dial.table.value)) | {
        "name": name
    }


def length(the_dial: ToyDial) -> np.ndarray:
    tips = trace(the_dial, "tips")
    return np.hypot(tips.x, tips.y)


def test_the_sparsity_dial_retrains_where_it_stands():
    the_dial = ToyDial()
    dense = toy_row(the_dial)
    assert (dense["name"], dense["kept"], dense["sum"]) == ("p = 1, × 0.8", "2 of 5", "2.00")
    assert dense["crowd"] == "100.0%"
    assert [text.strip() for text in trace(the_dial, "tips").text] == ["0", "1", "", "", ""]
    the_dial.slider.value = 0.02
    the_dial.wait(60)
    sparse = toy_row(the_dial)
    assert (sparse["name"], sparse["kept"]) == ("p = 0.02, × 0.8", "5 of 5")
    assert sparse["crowd"] == f"{1 - 0.98**5 - 5 * 0.02 * 0.98**4:.1%}"
    np.testing.assert_allclose(length(the_dial), 1.15, atol=0.05)
    np.testing.assert_allclose(trace(the_dial, "shares").y, 0.4, atol=0.04)
    tips = trace(the_dial, "tips")
    turns = np.sort(np.degrees(np.arctan2(tips.y, tips.x)) % 360)
    np.testing.assert_allclose(np.diff(turns), 72, atol=6)
    assert turns[0] == pytest.approx(0, abs=0.5), "feature 0 points right"
    copies, best = trace(the_dial, "copies").y, trace(the_dial, "best").y
    assert len(copies) == 11
    assert best[0] <= min(copies)
    assert float(sparse["loss"]) == pytest.approx(best[0], abs=0.001)
    assert 0.01 < best[0] < float(dense["loss"])
    the_dial.ratio.value = 0.5
    the_dial.wait(60)
    assert toy_row(the_dial)["name"] == "p = 0.02, × 0.5"
    assert not the_dial.message.value


def test_the_sparsity_dial_shows_numbers_and_is_announced():
    the_dial = ToyDial(start=0.11)
    for slider, text in ((the_dial.slider, "0.1"), (the_dial.ratio, "0.8")):
        assert slider.readout
        assert slider.label == text
        assert slider.description
    assert 'aria-live="polite"' in the_dial.table.value


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
    the_dial.slider.value = 0.5
    assert started.wait(30)
    for p in (0.4, 0.3, 0.1):  # the slider is free meanwhile
        the_dial.slider.value = p
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
    the_dial.slider.value = 0.5
    the_dial.wait(30)
    assert "training failed: Refusal" in the_dial.message.value
    assert "&lt;step&gt;" in the_dial.message.value
    the_dial.slider.value = 0.2
    the_dial.wait(30)
    assert not the_dial.message.value
    assert toy_row(the_dial)["name"].startswith("p = 0.2")


def test_the_sparsity_dial_retrains_in_well_under_a_second():
    the_dial = ToyDial()
    seconds = []
    for p in (0.5, 0.1, 0.02):
        start = time.process_time()
        the_dial.slider.value = p
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
    lines = re.findall(r"<tr>.*?</tr>", the_console.table.value)
    named = {re.search(r'scope="row"[^>]*>([^<]+)<', line)[1]: line for line in lines}
    found = r'data-number="(\w+)"[^>]*>([^<]+)<'
    return {name: dict(re.findall(found, line)) for name, line in named.items()}


def test_the_steering_console_follows_its_slider():
    the_console = SteeringConsole(Writer())
    assert the_console.slider.options[the_console.slider.index][0] == "0"
    the_console.slider.value = 1.0
    the_console.wait(30)
    rows = console_rows(the_console)
    assert rows == {
        "golden retriever, strength 1": {"mentions": "6 of 8", "validity": "75%"},
        "random direction, strength 1": {"mentions": "6 of 8", "validity": "75%"},
    }
    shown = the_console.texts.value
    assert shown.count("at 1, seed 1") == 8, "four texts in each of two columns"
    assert "text 4" not in shown, "always the first ones"
    assert "&lt;golden retriever&gt;" not in shown, "the phrase is marked"
    assert "&lt;random direction&gt;" in shown
    assert re.search(r"<b [^>]*>golden retriever</b> barked", shown)
    assert "control: random direction" in shown


def test_the_steering_console_shows_numbers_and_is_announced():
    the_console = SteeringConsole(Writer(), start=0.72)
    assert the_console.slider.readout
    assert the_console.slider.label == "0.7"
    assert the_console.slider.description
    assert the_console.button.description
    assert 'aria-live="polite"' in the_console.table.value


def test_the_button_draws_other_texts_and_what_was_written_is_remembered():
    writer = Writer()
    the_console = SteeringConsole(writer)
    the_console.button.click()
    the_console.wait(30)
    assert "at 0, seed 2" in the_console.texts.value
    the_console.slider.value = 0.5
    the_console.wait(30)
    before = len(writer.calls)
    the_console.slider.value = 0.0
    the_console.wait(30)
    assert "at 0, seed 2" in the_console.texts.value
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
    the_console.slider.value = 0.5
    assert started.wait(30)
    for strength in (0.6, 0.7, 1.2):  # the slider is free meanwhile
        the_console.slider.value = strength
    go_on.set()
    the_console.wait(30)
    assert sorted({strength for _, strength, _ in writer.calls}) == [0, 0.5, 1.2]
    assert "golden retriever, strength 1.2" in console_rows(the_console)


def test_what_goes_wrong_in_the_console_is_shown_and_it_goes_on():
    the_console = SteeringConsole(Writer())
    the_console.slider.value = 1.6
    the_console.wait(30)
    assert "writing failed: Refusal" in the_console.message.value
    assert "&lt;step&gt;" in the_console.message.value
    the_console.slider.value = 0.2
    the_console.wait(30)
    assert not the_console.message.value
    assert "golden retriever, strength 0.2" in console_rows(the_console)


def test_the_console_answers_within_a_second_and_steers():
    """The real thing: its model, its feature."""
    the_console = SteeringConsole()
    start = time.process_time()
    the_console.slider.value = 1.3
    the_console.wait(60)
    assert time.process_time() - start < 2, "0.3 s of an idle core"
    toward, control = console_rows(the_console).values()
    said, by_chance = (int(row["mentions"].split(" of ")[0]) for row in (toward, control))
    assert said > 0.6 * 32 > by_chance + 6
