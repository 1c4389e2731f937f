"""What the learner writes in lesson 03 equals what the library does."""

from __future__ import annotations

from itertools import islice
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from taught import taught

from saelearn import toy
from saelearn.exercises import lesson03 as check
from saelearn.plots import patches
from saelearn.toy import sparse_coding

PLANTED = toy.PlantedFeatures.make(seed=4)
W_FD = PLANTED.directions_GD
X_BD, F_BF = PLANTED.sample(50, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("03", toy=toy, sc=sparse_coding, check=check)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.7])
def test_soft_threshold(lesson, threshold):
    a_N = torch.linspace(-2, 2, 41)
    ours = sparse_coding.soft_threshold(a_N, threshold)
    torch.testing.assert_close(lesson["soft"](a_N, threshold), ours)


def test_ista_step(lesson):
    c = sparse_coding.curvature(W_FD)
    for f_BF in (torch.zeros(50, 64), F_BF, F_BF - 0.3):
        mine_BF = lesson["ista_step"](X_BD, f_BF, W_FD, 0.1, c)
        torch.testing.assert_close(mine_BF, sparse_coding.ista_step(X_BD, f_BF, W_FD, 0.1, c))


@pytest.mark.parametrize("fast", [False, True])
def test_iterate_is_ista_and_fista(lesson, fast):
    codes = lesson["iterate"](X_BD, W_FD, 0.1, 30, fast=fast)
    steps = sparse_coding.ista_steps(X_BD, W_FD, 0.1, accelerate=fast)
    for mine_BF, ours_BF in zip(codes[1:], islice(steps, 30), strict=True):
        torch.testing.assert_close(mine_BF, ours_BF)
    solve = sparse_coding.fista if fast else sparse_coding.ista
    torch.testing.assert_close(codes[-1], solve(X_BD, W_FD, 0.1, steps=30))


def test_dictionary_step(lesson):
    f_BF = F_BF.clone()
    f_BF[:, 7] = 0
    start_FD = lesson["random_atoms"](64, 32)
    ours_FD = sparse_coding.dictionary_step(start_FD, X_BD, f_BF, rate=0.4)
    torch.testing.assert_close(lesson["dictionary_step"](start_FD, X_BD, f_BF, 0.4), ours_FD)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_learning_a_dictionary(lesson, nonnegative):
    start_FD = lesson["random_atoms"](64, 32)
    steps = {"steps": 12, "nonnegative": nonnegative}
    mine = lesson["learn"](PLANTED.batches(100), start_FD, 0.3, **steps)
    ours = sparse_coding.learn_dictionary(PLANTED.batches(100), 64, 0.3, **steps)
    assert len(mine) == 13
    torch.testing.assert_close(mine[-1], ours.W_dec)


def test_first_step_encoder(lesson):
    c = sparse_coding.curvature(W_FD)
    W_enc_DF, b_enc = lesson["first_step_encoder"](W_FD, 0.1, c)
    ours_DF, ours_F = sparse_coding.one_step_encoder(W_FD, 0.1)
    torch.testing.assert_close(W_enc_DF, ours_DF)
    torch.testing.assert_close(b_enc.expand(64), ours_F)


def test_training_an_encoder(lesson):
    mine = lesson["train_encoder"](PLANTED, W_FD, 0.1, steps=20, seed=3)
    ours = sparse_coding.fit_encoder(PLANTED.batches(500, seed=3), W_FD, 0.1, steps=20)
    for a, b in zip(mine, ours, strict=True):
        torch.testing.assert_close(a, b)


def test_support_f1_is_the_harmonic_mean_of_precision_and_recall(lesson):
    f_BF = sparse_coding.fista(X_BD, W_FD, 0.1, steps=50, nonnegative=True)
    on_BF, true_BF = f_BF > 0.02, F_BF > 0
    hits = (on_BF & true_BF).sum().double()
    precision, recall = hits / on_BF.sum(), hits / true_BF.sum()
    right = float(2 * precision * recall / (precision + recall))
    assert lesson["support_f1"](f_BF, F_BF, 0.02) == pytest.approx(right)


def test_the_best_threshold_is_found(lesson):
    f_BF = F_BF + 0.1 * torch.rand(F_BF.shape, generator=torch.Generator().manual_seed(1))
    assert lesson["support_f1"](f_BF, F_BF) < 0.2  # everything is above 0
    f_BF[F_BF > 0] += 0.2
    assert lesson["best_f1"](f_BF, F_BF) == 1.0


def test_a_patch_is_drawn_as_its_strongest_atoms_their_sum_and_what_is_left():
    W_FD = torch.eye(9) * torch.tensor([1.0, 1.0, -2.0, *[1.0] * 6])[:, None]
    f_F = torch.tensor([0.0, -0.5, 0.9, 0.2, *[0.0] * 5])
    x_D = torch.zeros(9).index_fill(0, torch.tensor(2), -2.0)
    figure = patches.sums(x_D[None], f_F[None], W_FD, shown=2)
    axes = figure.axes
    titles = [axis.get_title() for axis in axes]
    assert titles == ["patch", "+0.90 ×", "\N{MINUS SIGN}0.50 ×", "all 3 added up", "left over"]
    shown = [torch.tensor(axis.images[0].get_array().filled()).reshape(-1) for axis in axes]
    close = {"atol": 1e-6, "rtol": 0, "check_dtype": False}
    torch.testing.assert_close(shown[0], x_D / 2, **close)
    torch.testing.assert_close(shown[1], -torch.eye(9)[2], **close)  # scaled to its own peak
    torch.testing.assert_close(shown[3], f_F @ W_FD / 2, **close)
    torch.testing.assert_close(shown[3] + shown[4], shown[0], **close)
    plt.close(figure)


@pytest.mark.parametrize("seed", range(20))
def test_the_bottom_of_the_landscape_is_where_iterating_ends(lesson, seed):
    draw = torch.Generator().manual_seed(seed)
    two_FD = torch.nn.functional.normalize(torch.randn(2, 3, generator=draw), dim=1)
    x_D, l1 = torch.randn(3, generator=draw), 0.1 + 0.4 * float(torch.rand((), generator=draw))
    end_BF = sparse_coding.fista(x_D[None], two_FD, l1, steps=3_000, nonnegative=True)
    for best in (check.lowest, lesson["best_code"]):
        torch.testing.assert_close(best(x_D, two_FD, l1), end_BF[0], atol=1e-4, rtol=0)
