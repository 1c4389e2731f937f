"""The checks of lesson 02: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403

from saelearn import exercises
from saelearn.exercises import lesson02 as check


def coin(n, G, p, g):
    return torch.rand(n, G, generator=g) < p


def rand(n, G, g):
    return torch.rand(n, G, generator=g)


def rescaled_draw(n, n_features, p, *, generator):
    """One draw, rescaled where it is below p: the same law."""
    u = rand(n, n_features, generator)
    return torch.where(u < p, u / max(p, 1e-9), 0.0)


def numpy_sampler(n, n_features, p, *, generator):
    on = coin(n, n_features, p, generator).numpy()
    return on * rand(n, n_features, generator).numpy()


def divided_by_p(n, n_features, p, *, generator):
    """One draw, rescaled: right, but for p = 0."""
    u = rand(n, n_features, generator)
    return u / p * (u < p)


def simulated(p, importance):
    on = torch.rand(20_000, len(p)) < p
    return importance * (on * torch.rand(20_000, len(p))).square().mean(0)


def frozen_seed(n, n_features, p, *, generator):
    return torch.rand(n, n_features) * coin(n, n_features, p, generator)


def own_seed(n, n_features, p, *, generator):
    own = torch.Generator().manual_seed(0)
    return rand(n, n_features, own) * coin(n, n_features, p, own)


def offdiagonal(W):
    gram = W @ W.T
    return (gram - gram.diag().diag()).abs().max() > 0.1


def unit(W):
    return W / W.norm(dim=1, keepdim=True).clamp(min=1e-9)


def share_by_loops(W):
    out = []
    for w in W.double():
        norm = w.norm()
        out.append(norm**2 / sum((w @ h / norm) ** 2 for h in W.double()) if norm > 0 else 0.0)
    return torch.tensor(out)


def share_by_gram(W):
    gram = W @ W.T
    return torch.nan_to_num(gram.diag() ** 2 / gram.square().sum(1))


def many_kept(W):
    return (W.square().sum(1) > 0.25).sum() > W.shape[1]


def kept(W, bound):
    return (W.norm(dim=1) > bound).sum()


RIGHT = [
    (check.bug, ("2 in 2, trained",)),
    (check.bug, ("2 in 2 trained",)),
    (check.bug, (" 2 in 2, Trained: True",)),
    (
        check.sampler,
        (lambda n, G, p, *, generator: rand(n, G, generator) * coin(n, G, p, generator),),
    ),
    (check.sampler, (rescaled_draw,)),
    (check.sampler, (numpy_sampler,)),
    (check.model, (lambda f, W, b: torch.relu(f @ W @ W.T + b),)),
    (check.model, (lambda f, W, b: np.maximum(0, f.numpy() @ (W @ W.T).numpy() + b.numpy()),)),
    (check.model, (lambda f, W, b: torch.einsum("bg,gd,hd->bh", f, W, W).add(b).clamp(min=0),)),
    (check.loss, (lambda f, f_hat, importance: (importance * (f - f_hat) ** 2).mean(),)),
    (check.loss, (lambda f, h, i: float(((h - f).square() @ i).sum() / f.numel()),)),
    (check.dimensionality, (share_by_loops,)),
    (check.dimensionality, (share_by_gram,)),
    (check.superposed, (many_kept,)),
    (check.superposed, (lambda W: sum(bool(w.norm() > 0.5) for w in W) > len(W[0]),)),
    (check.superposed, (lambda W: np.bool_(int((W.norm(dim=1) >= 0.5).sum()) > W.shape[1]),)),
    (check.cost, (lambda p, importance: importance * p / 3,)),
    (check.cost, (lambda p, importance: (importance * p).numpy() * 0.3333,)),
]

WRONG = [
    (check.bug, ("5 in 2, trained",), "True is right"),
    (check.bug, ("2 in 2, by hand",), "False is right"),
    (check.bug, ("the first",), "one of the three names"),
    (check.bug, ("2",), "one of the three names"),
    (check.bug, (2,), "the model's name as text"),
    (check.sampler, (lambda n, G, p, *, generator: rand(n, G, generator),), "share of 1.00"),
    (
        check.sampler,
        (lambda n, G, p, *, generator: rand(n, G, generator) * ~coin(n, G, p, generator),),
        "off that often",
    ),
    (check.sampler, (lambda n, G, p, *, generator: coin(n, G, p, generator),), "same"),
    (
        check.sampler,
        (lambda n, G, p, *, generator: rand(n, G, generator) * coin(n, 1, p, generator),),
        "own coin",
    ),
    (
        check.sampler,
        (lambda n, G, p, *, generator: (u := rand(n, G, generator)) * (u < p),),
        "second draw",
    ),
    (
        check.sampler,
        (lambda n, G, p, *, generator: (u := rand(n, G, generator)) * (u > 1 - p),),
        "second draw",
    ),
    (
        check.sampler,
        (lambda n, G, p, *, generator: torch.randn(n, G) * coin(n, G, p, generator),),
        "between 0 and 1",
    ),
    (check.sampler, (divided_by_p,), "NaN in the sample for p = 0: is something divided by p"),
    (check.sampler, (frozen_seed,), "same seed"),
    (check.sampler, (own_seed,), "every seed"),
    (
        check.sampler,
        (lambda n, G, p, *, generator: rand(n, 1, generator) * coin(n, G, p, generator),),
        "same amplitude",
    ),
    (check.sampler, (lambda n, G, p, *, generator: rand(G, n, generator),), "shape"),
    (check.model, (lambda f, W, b: f @ W @ W.T + b,), "ReLU is missing"),
    (check.model, (lambda f, W, b: torch.relu(f @ W @ W.T),), "bias is missing"),
    (check.model, (lambda f, W, b: torch.relu(f @ W @ W.T) + b,), "before the ReLU"),
    (check.model, (lambda f, W, b: torch.relu(torch.relu(f @ W) @ W.T + b),), "only at the end"),
    (check.model, (lambda f, W, b: torch.relu(f @ W),), "shape (6, 2)"),
    (check.model, (lambda f, W, b: f @ W.T @ W,), "f @ W goes down"),
    (check.model, (lambda f, W, b: torch.relu((f @ W + b) @ W.T),), "not in the plane"),
    (check.loss, (lambda f, h, i: torch.tensor(float("nan")),), "a NaN in the loss"),
    (check.loss, (lambda f, h, i: (f - h).square().mean(),), "importance is missing"),
    (check.loss, (lambda f, h, i: (i * (f - h)).square().mean(),), "squared too"),
    (check.loss, (lambda f, h, i: (i * (f - h).square()).sum(),), "batch size"),
    (check.loss, (lambda f, h, i: (i * (f - h).square()).sum(1).mean(),), "summed over features"),
    (check.loss, (lambda f, h, i: (i * (f - h).square()).mean(0),), "shape (4,)"),
    (check.loss, (lambda f, h, i: (i * (f - h).abs()).mean(),), "square the error"),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (W @ W.T).square().sum(1),),
        "its length",
    ),
    (
        check.dimensionality,
        (lambda W: 1 / (unit(W) @ unit(W).T).square().sum(1),),
        "lengths are lost",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).sum(1),),
        "squared before",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) / (unit(W) @ W.T).square().sum(1),),
        "not the length",
    ),
    (
        check.dimensionality,
        (lambda W: (W @ W.T).diag() ** 2 / (W @ W.T).square().sum(1),),
        "length 0",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).square().sum(0),),
        "last axis",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).sum(1) ** 2,),
        "one by one",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).abs().sum(1),),
        "absolute value",
    ),
    (check.dimensionality, (lambda W: W.norm(dim=1).mean(),), "shape ()"),
    (check.superposed, (lambda W: ((W.abs() > 0.2).sum(0) > 1).any(),), "nothing is shared"),
    (check.superposed, (lambda W: len(W) > W.shape[1],), "do not count"),
    (check.superposed, (lambda W: (W.norm(dim=1) > 0.5).sum() > 2,), "count the columns"),
    (check.superposed, (lambda W: False,), "five features"),
    (check.superposed, (lambda W: (W.abs().amax(1) > 0.5).sum() > W.shape[1],), "take the length"),
    (
        check.superposed,
        (lambda W: (W.square().sum(1) > 0.5).sum() > W.shape[1],),
        "take the length",
    ),
    (check.superposed, (offdiagonal,), "60 degrees"),
    (check.superposed, (lambda W: (W.norm(dim=1) > 0.5).sum(),), "not a count"),
    (check.superposed, (lambda W: W.norm(dim=1) > 0.5,), "one True or False"),
    (check.superposed, (lambda W: (W.abs().sum(1) > 0.5).sum() > W.shape[1],), "0.42 long"),
    (check.superposed, (lambda W: kept(W, 0.5) > torch.linalg.matrix_rank(W),), "on one line"),
    (check.superposed, (lambda W: kept(W, 0.1) > W.shape[1],), "the bound is 0.5"),
    (check.superposed, (lambda W: kept(W, 0.3) > W.shape[1],), "the bound is 0.5"),
    (check.superposed, (lambda W: "yes",), "True or False is wanted, but this is 'yes'"),
    (check.superposed, (lambda W: float("nan"),), "True or False is wanted, but this is NaN"),
    (check.cost, (lambda p, i: i * p * 0.33,), "two digits are too few"),
    (check.cost, (lambda p, i: i * p * float("nan"),), "a NaN in the cost"),
    (check.cost, (simulated,), "near, but not exact"),
    (check.cost, (lambda p, i: i * p / 2,), "E[f^2] = 1/3, while"),
    (check.cost, (lambda p, i: i * p / 4,), "square of the mean"),
    (check.cost, (lambda p, i: i * p,), "amplitude is missing"),
    (check.cost, (lambda p, i: p / 3,), "importance is missing"),
    (check.cost, (lambda p, i: i / 3,), "p is missing"),
    (check.cost, (lambda p, i: (i * p / 3).sum(),), "no sum over them"),
]

OPEN = [(check.bug, ("",)), (check.bug, ("...",))]


@pytest.mark.parametrize(
    ("guess", "words"),
    [(0.01, "sooner"), (0.2, "about right"), (torch.tensor(0.9), "rarer than that")],
)
def test_a_guess_of_the_rarity_is_answered(guess, words, monkeypatch):
    monkeypatch.setattr(exercises, "GRADING", True)
    verdict = check.predicted_rarity(guess, 0.2)
    assert verdict.state == "noted"
    assert words in verdict.message


@pytest.mark.parametrize(("guess", "state"), [(..., "open"), (5, "wrong"), ("rare", "wrong")])
def test_no_guess_or_an_unreadable_one_is_said(guess, state):
    assert check.predicted_rarity(guess, 0.2).state == state
