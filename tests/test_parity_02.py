"""What the learner writes in lesson 02 equals what the library does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from taught import taught

from saelearn import toy
from saelearn.exercises import lesson02 as check
from saelearn.toy import toy_step


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    return taught("02", toy=toy)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_sampler(lesson, p):
    ours = toy.sample_features(200, 5, p, generator=generator())
    assert torch.equal(lesson["sample"](200, 5, p, generator=generator()), ours)


def test_model_and_loss(lesson):
    model = toy.ToyModel(5, 2, n_instances=2, seed=3)
    model.b.data += 0.1 * torch.randn(2, 5, generator=generator())
    f_BG = toy.sample_features(64, 5, 0.3, generator=generator())
    importance_G = 0.8 ** torch.arange(5.0)
    f_hat_KBG = model(f_BG)
    loss_K = toy.toy_loss(f_BG, f_hat_KBG, importance_G)
    for k in range(2):
        f_hat_BG = lesson["reconstruct"](f_BG, model.W[k], model.b[k])
        torch.testing.assert_close(f_hat_BG, f_hat_KBG[k])
        loss = lesson["weighted_loss"](f_BG, f_hat_BG, importance_G)
        torch.testing.assert_close(loss, loss_K[k])


def test_dimensionality(lesson):
    W_GD = torch.cat([torch.randn(7, 3, generator=generator()), torch.zeros(1, 3)])
    torch.testing.assert_close(lesson["share"](W_GD), toy.dimensionality(W_GD))


def test_training_loop(lesson, monkeypatch):
    """Autograd and torch's Adam give what the library does by hand, from the same batches."""
    batches = toy_step.busy_batches(1024, 5, 0.1, generator=generator())

    def the_librarys(n, n_features, p, *, generator):
        busy_NG = next(batches)
        return torch.cat([busy_NG, torch.zeros(n - len(busy_NG), n_features)])

    importance_G = 0.8 ** torch.arange(5.0)
    model = toy.ToyModel(5, 2, n_instances=3)
    with monkeypatch.context() as patch:
        patch.setattr(toy, "sample_features", the_librarys)
        history = lesson["fit"](model, 0.1, importance_G, steps=30)
    run = toy.train_toy(5, 2, p=0.1, importance_G=importance_G, n_instances=3, steps=30)
    torch.testing.assert_close(model.W.detach(), run.W)
    torch.testing.assert_close(model.b.detach(), run.b)
    torch.testing.assert_close(history[-1].mean().item(), run.history[-1][1])


def test_what_the_lesson_goes_on_with_is_what_the_learner_writes(lesson):
    W_GD, b_G = torch.randn(6, 2, generator=generator()), torch.linspace(-0.3, 0.3, 6)
    f_BG = toy.sample_features(50, 6, 0.3, generator=generator())
    f_hat_BG = lesson["reconstruct"](f_BG, W_GD, b_G)
    torch.testing.assert_close(f_hat_BG, check.read_back(f_BG, W_GD, b_G))
    weights = f_BG, f_hat_BG, 0.8 ** torch.arange(6.0)
    torch.testing.assert_close(lesson["weighted_loss"](*weights), check.weighted(*weights))
    h_BD = f_BG[(f_BG > 0).any(1)] @ W_GD
    torch.testing.assert_close(lesson["read"](h_BD, W_GD), check.cheapest_pair(h_BD, W_GD))
    for kept in (W_GD, W_GD[:2]):
        assert lesson["is_superposed"](kept) == check.more_than_fit(kept)


def test_reading_the_plane_is_nonnegative_least_squares_with_a_faint_price():
    """An oracle of its own: scipy's."""
    turns = torch.tensor([0.1, 1.2, 2.9, 4.0, 5.5])
    W_GD = torch.stack([turns.cos(), turns.sin()], 1)
    f_BG = toy.sample_features(200, 5, 0.2, generator=generator())
    h_BD = f_BG @ W_GD
    stacked = np.vstack([W_GD.numpy().T, np.full((1, 5), 1e-4)])
    exact = np.stack([nnls(stacked, np.append(h, 0))[0] for h in h_BD.numpy()])
    read = check.cheapest_pair(h_BD, W_GD)
    torch.testing.assert_close(read.double(), torch.tensor(exact), atol=1e-3, rtol=0)


def test_storing_nothing_costs_a_third_of_importance_times_frequency():
    p_G, importance_G = torch.tensor([0.5, 0.1, 0.02]), torch.tensor([1.0, 3.0, 10.0])
    f_BG = toy.sample_features(400_000, 3, p_G, generator=generator())
    measured = (importance_G * f_BG.square()).mean(0)
    torch.testing.assert_close(measured, importance_G * p_G / 3, rtol=0.05, atol=0)
