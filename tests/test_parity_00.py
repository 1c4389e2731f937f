"""What lesson 00 writes by hand equals the library; its map names the lessons that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from taught import NOTEBOOKS, code_of, taught
from torch import nn

from saelearn import metrics, tiny


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("00", nn=nn, rule_D=torch.tensor([12.0, 10, 5, 0]))


def test_share_is_the_mention_rate(lesson):
    lm = tiny.load_lm()
    tokens_NT = tiny.held_out(120).tokens_NT
    texts = [lm.text(row_T) for row_T in tokens_NT]
    english, korean = tiny.MENTIONS["golden_retriever"]
    expected = [english in text or korean in text for text in texts]
    assert lesson["share"](texts, english) <= tiny.mention_rate(tokens_NT)
    assert tiny.mention_rate(tokens_NT) == pytest.approx(sum(expected) / len(expected))
    only = torch.tensor([korean not in text for text in texts])
    kept = [text for text in texts if korean not in text]
    assert lesson["share"](kept, english) == pytest.approx(tiny.mention_rate(tokens_NT[only]))


def test_linear_fit_is_least_squares(lesson):
    x_ND, y_N = lesson["walks"](60, seed=7)
    weights = lesson["linear_fit"](x_ND, y_N)
    with_one = np.column_stack([x_ND.double().numpy(), np.ones(60)])
    solution = np.linalg.solve(with_one.T @ with_one, with_one.T @ y_N.double().numpy())
    np.testing.assert_allclose(weights.numpy(), solution, rtol=1e-3, atol=1e-2)


def test_explained_is_the_librarys_explained_variance(lesson):
    draw = torch.Generator().manual_seed(1)
    y_N = torch.randn(50, generator=draw)
    guess_N = y_N + 0.4 * torch.randn(50, generator=draw)
    expected = metrics.explained_variance(y_N[:, None], guess_N[:, None])
    assert lesson["explained"](guess_N, y_N) == pytest.approx(float(expected), rel=1e-5)


def test_nudge_reads_a_linear_model(lesson):
    x_ND, _ = lesson["walks"](30, seed=3)
    for column, weight in enumerate(lesson["rule_D"].tolist()):
        found = lesson["nudge"](lambda x: x @ lesson["rule_D"], x_ND, column)
        assert float(found) == pytest.approx(weight, abs=1e-4)


def test_the_map_has_the_lessons_own_questions():
    found = re.findall(r'"(\d\d)": "([^"]+\?)"', "\n".join(code_of("00")))
    assert [number for number, _ in found] == [f"{i:02}" for i in range(14)]
    questions = dict(found)
    for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"):
        title = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]).splitlines()[0]
        assert questions[path.name[:2]] == title.removeprefix("# ")
