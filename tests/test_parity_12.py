"""What the learner writes in lesson 12 equals what the library does."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from saelearn.tiny import flaws, monitors

LESSON = Path(__file__).resolve().parent.parent / "notebooks" / "12_applications.ipynb"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """The lesson's functions, without the rest of its cells."""
    names: dict[str, Any] = {"torch": torch, "flaws": flaws, "monitors": monitors}
    for cell in json.loads(LESSON.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            kept = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            exec(compile(ast.Module(kept, []), LESSON.name, "exec"), names)
    return names


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auroc_is_scikit_learns(lesson):
    score_N, lies_N = randn(0, 200).round(decimals=1), randn(1, 200) > 0.4
    assert lesson["auroc"](score_N, lies_N) == pytest.approx(roc_auc_score(lies_N, score_N))


def test_the_worst_group_is_the_librarys(lesson):
    right_N, label_N, group_N = (randn(s, 300) > 0.2 * s - 0.5 for s in (2, 3, 4))
    ours = lesson["worst_group"](right_N, label_N, group_N)
    assert ours == monitors.worst_group(right_N, label_N, group_N) < right_N.double().mean()


def test_what_is_taken_out_is_gone_and_nothing_else(lesson):
    x_ND, w_D = randn(5, 40, 9), 3 * randn(6, 9)
    left_ND = lesson["take_out"](x_ND, w_D)
    assert (left_ND @ w_D).abs().max() < 1e-4
    moved_ND = x_ND - left_ND
    assert torch.linalg.matrix_rank(moved_ND, atol=1e-4) == 1


def test_the_edit_is_the_librarys_and_the_least_that_answers_the_key(lesson):
    W_HD, key_H, change_D, some_NH = randn(7, 12, 5), randn(8, 12), randn(9, 5), randn(10, 99, 12)
    some_NH = some_NH * torch.linspace(0.3, 2, 12)
    cov_HH = some_NH.T @ some_NH / 99
    ours_HD = lesson["rank_one"](W_HD, key_H, change_D, cov_HH)
    torch.testing.assert_close(ours_HD, flaws.rank_one(W_HD, key_H, change_D, cov_HH))
    torch.testing.assert_close(key_H @ ours_HD, key_H @ W_HD + change_D, atol=1e-4, rtol=1e-4)
    plain_HD = W_HD + torch.outer(key_H / (key_H @ key_H), change_D)
    moved = [(some_NH @ (each_HD - W_HD)).square().mean() for each_HD in (ours_HD, plain_HD)]
    assert moved[0] < moved[1]


def test_the_audit_finds_a_flaw_and_leaves_the_model(lesson):
    lesson["things"] = [thing for topic in flaws.topics().values() for thing in topic.words]
    lm, planted = flaws.flawed(31), flaws.flaw_of(31)
    report = lesson["audit"](lm)
    assert flaws.same(planted, flaws.Flaw(report["subject"], report["acts_as"]))
    assert report["share"] > 0.9
