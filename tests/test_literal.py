"""Text is text: on figures, in HTML, in a terminal; and what is no list of texts is refused."""

from __future__ import annotations

import ast
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from tiny_models import make

from saelearn import steer
from saelearn.errors import Refusal
from saelearn.exercises import Verdict
from saelearn.plots import autoencoders, features, inside, recovery, steering, training
from saelearn.plots.literal import literal
from saelearn.style import as_html, as_text

PACKAGE = Path(__file__).resolve().parent.parent / "saelearn"
NASTY = [
    "a $5 and $6",
    r"$\frac{",
    "$x$",
    "100 % _^{}",
    "<b>&amp;",
    "tab\tand\x1b[31m",
    "\u202eback",
]


# --- one way for each


def test_text_reaches_html_by_one_way():
    """Whoever escapes by himself forgets something: nobody but `style` imports the module."""
    found = [
        p
        for p in PACKAGE.rglob("*.py")
        if re.search(r"^import html|from html", p.read_text("utf-8"), re.M)
    ]
    assert [p.name for p in found] == ["style.py"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "plots").glob("*.py")), ids=lambda p: p.stem)
def test_every_figure_takes_its_text_literally(path):
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        if node.returns is not None and ast.unparse(node.returns) == "Figure":
            assert "literal" in [ast.unparse(d) for d in node.decorator_list], node.name


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize(
    "draw",
    [
        lambda t: steering.bars({t: 1.0, "b": 2.0}, xlabel=t),
        lambda t: steering.lines([1, 2], {t: [1, 2]}, xlabel=t, ylabel=t),
        lambda t: steering.dose_response([0], {t: {q: [0] for q in "ab"}}, base={"a": 0, "b": 0}),
        lambda t: autoencoders.maps({t: np.eye(3)}),
        lambda t: recovery.dictionaries({t: (0.5, 3), "b": (0.2, 1)}, ours=[t]),
        lambda t: training.histories({t: ([1, 2], [1.0, 2.0], "#333333")}, ylabel=t),
        lambda t: inside.detectors({t: [0.5, 0.2], "b": [0.1]}),
    ],
)  # fmt: skip
def test_text_on_a_figure_stands_as_it_is(draw, text):
    figure = draw(text)
    figure.canvas.draw()
    shown = [t for t in figure.findobj(Text) if as_text(text).expandtabs(4) == t.get_text()]
    assert shown, "the text is there"
    assert not any(t.get_parse_math() for t in shown)
    plt.close(figure)


def test_powers_of_ten_are_still_drawn_as_such():
    @literal
    def draw():
        figure, axis = plt.subplots()
        axis.loglog([1, 1000], [1, 1000])
        axis.set_title("$5")
        return figure

    figure = draw()
    figure.canvas.draw()
    labels = [t for t in figure.axes[0].get_xticklabels() if "10" in t.get_text()]
    assert labels
    assert all(t.get_parse_math() for t in labels)
    plt.close(figure)


# --- HTML


class Reader(HTMLParser):
    """What a browser makes of HTML: tags, and the text between them."""

    def __init__(self):
        super().__init__()
        self.tags, self.said = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.said += "\n" if tag == "br" else ""

    def handle_data(self, data):
        self.said += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_html_says_the_text_and_nothing_else(text):
    seen = read(as_html(text))
    assert set(seen.tags) <= {"br"}
    assert seen.said == as_text(text)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=4))
def test_marked_phrases_change_no_word(text, phrases):
    page = steering.SideBySide({"a": [text]}, phrases)._repr_html_()
    seen = read(page)
    assert set(seen.tags) <= {"table", "tr", "th", "td", "b", "br"}
    assert seen.said == "a" + as_text(text)
    marked = [
        html.unescape(m).replace("<br>", "\n") for m in re.findall(r"<b [^>]*>(.*?)</b>", page)
    ]
    assert set(marked) <= {as_text(p) for p in phrases}


def test_phrases_that_look_like_markup_are_marked_as_text():
    page = steering.SideBySide({"a": ["b & style=b amp"]}, ["b", "amp", "style"])._repr_html_()
    assert re.findall(r"<b [^>]*>(.*?)</b>", page) == ["b", "style", "b", "amp"]
    assert page.count("&amp;") == 1


HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J"


def context(**change):
    usual = {"words": ["a", "b"], "activations": [0.0, 1.0], "center": 1, "separator": " "}
    return SimpleNamespace(**usual | change)


@pytest.mark.parametrize(
    "shown",
    [
        steering.SideBySide({HOSTILE: [HOSTILE]}, [HOSTILE]),
        features.Contexts([context(words=[HOSTILE] * 2, separator=HOSTILE)]),
        inside.Texts([(0, 1.0, HOSTILE, HOSTILE, HOSTILE)], [HOSTILE]),
        Verdict("passed", HOSTILE, HOSTILE),
    ],
    ids=lambda shown: type(shown).__name__,
)  # fmt: skip
def test_nothing_hostile_gets_into_a_page_or_a_terminal(shown):
    page = shown._repr_html_()
    assert "img" not in read(page).tags
    assert "\x1b" not in page
    assert "\x1b" not in repr(shown)


# --- single things, NaN, nothing


@pytest.mark.parametrize(
    "make",
    [
        lambda: steering.SideBySide("text"),
        lambda: steering.SideBySide({}),
        lambda: steering.SideBySide(["a"]),
        lambda: steering.SideBySide({"a": "one text"}),
        lambda: steering.SideBySide({"a": None}),
        lambda: steering.SideBySide({"a": ["x"], "b": ["x", "y"]}),
        lambda: steering.SideBySide({"a": ["x"]}, "dog"),
        lambda: steering.SideBySide({"a": ["x"]}, [""]),
        lambda: steering.SideBySide({"a": ["x"]}, [3]),
        lambda: features.Contexts(context()),
        lambda: features.Contexts([None]),
        lambda: features.Contexts([context(activations=[float("nan"), 1.0])]),
        lambda: features.Contexts([context(activations=[1.0])]),
        lambda: features.Contexts([context(center=2)]),
        lambda: features.Contexts([context(words=[1, 2])]),
        lambda: inside.Texts([(3, 1.0, "", "a", "")], ["web"]),
        lambda: inside.Texts([(0, float("nan"), "", "a", "")], ["web"]),
        lambda: inside.Texts([(0, 1.0)], ["web"]),
        lambda: inside.Texts([], []),
    ],
)
def test_what_cannot_be_shown_is_refused(make):
    with pytest.raises(Refusal):
        make()


def test_nothing_to_show_is_shown_as_nothing():
    assert "peak" in features.Contexts([])._repr_html_()
    assert repr(features.Contexts([])) == ""
    assert "<td" not in steering.SideBySide({"a": []})._repr_html_()
    silent = features.Contexts([context(activations=[0.0, -1.0])])
    assert "rgba(0,130,95,0.00)" in silent._repr_html_()


@pytest.mark.parametrize(
    "wrong",
    [
        {"directions": torch.ones(4)},
        {"directions": {}},
        {"strengths": 1.0},
        {"strengths": []},
        {"strengths": [float("nan")]},
        {"strengths": "1"},
        {"strengths": [None]},
        {"unit": float("nan")},
        {"unit": 0.0},
        {"unit": "long"},
        {"measure": 3},
        {"measure": lambda tokens_NT: 0.5},
        {"measure": lambda tokens_NT: {"rate": "high"}},
    ],
    ids=lambda wrong: str(*wrong),
)
def test_doses_that_cannot_be_measured_are_refused(wrong):
    right = {
        "lm": make("gpt2"),
        "site": "transformer.h.1:out",
        "directions": {"a": torch.ones(16)},
        "strengths": [0.0, 1.0],
        "measure": lambda tokens_NT: {"texts": len(tokens_NT)},
        "unit": 1.0,
        "prompt": "w2",
        "n": 3,
        "max_new_tokens": 1,
    }
    assert steer.dose_response(**right).measured == {"a": {"texts": [3.0, 3.0]}}
    with pytest.raises(Refusal):
        steer.dose_response(**right | wrong)


@pytest.mark.parametrize("wrong", [3, None, "abc", {"a": "b"}, {"a": object()}, {"a": [[1], 2]}])
@pytest.mark.parametrize(
    "draw", [autoencoders.maps, inside.detectors, training.histories, steering.bars]
)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_half_figure(draw, wrong):
    before = plt.get_fignums()
    keywords = {"ylabel": "y"} if draw is training.histories else {}
    keywords |= {"xlabel": "x"} if draw is steering.bars else {}
    with pytest.raises(Refusal):
        draw(wrong, **keywords)
    assert plt.get_fignums() == before
