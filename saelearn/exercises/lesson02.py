"""Checks of lesson 02, superposition.

Every target is computed here, from the definitions and without the library's toy models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import (
    Mistake,
    Verdict,
    call,
    close,
    diagnose,
    exercise,
    guesses,
    need_shape,
)
from saelearn.exercises.counting import bug, superposed

__all__ = [
    "bug",
    "cost",
    "dimensionality",
    "loss",
    "model",
    "predicted_rarity",
    "sampler",
    "superposed",
]


def predicted_rarity(guess: Any, p: float) -> Verdict:
    """A reply to how rare five equally important features must be to fit in two dimensions.

    Args:
        guess: the reader's largest probability to be on.
        p: the one that was found.
    """
    return guesses.reply_to_number(
        "how rare is rare enough",
        guess,
        p,
        within=0.08,
        near="about right: collisions are common there, and sharing already pays.",
        low="they need not be as rare as that: all five get in sooner than you thought.",
        high="rarer than that: as often as you said, too many of them would meet.",
    )


def _no_nan(answer: Tensor, name: str, remedy: str) -> Tensor:
    if answer.isnan().any():
        raise Mistake(f"there is a NaN in {name}: {remedy}")
    return answer


def _draw(sample: Callable, n: int, n_features: int, p: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    f_BG = call(sample, n, n_features, p, generator=generator)
    hint = "One row per sample, one column per feature."
    sample_BG = need_shape(f_BG, (n, n_features), "the sample", hint)
    divided = "is something divided by p? 0 / 0 has no value" if p == 0 else "look for a division"
    return _no_nan(sample_BG, f"the sample for p = {p:g}", divided)


@exercise(
    "Exercise 2.1",
    passed="each feature tosses its own coin, and those that are on draw their own amplitude",
)
def sampler(sample: Callable) -> None:
    """`sample(n, n_features, p, *, generator)` -> `[n, n_features]`."""
    f_BG = _draw(sample, 20_000, 5, 0.1)
    if f_BG.min() < 0 or f_BG.max() > 1:
        raise Mistake(
            "amplitudes should lie between 0 and 1: torch.rand is uniform, torch.randn not"
        )
    on_BG = f_BG > 0
    _judge_coins(on_BG.double())
    _judge_amplitudes(f_BG[on_BG])
    full_BG = _draw(sample, 2_000, 2, 1.0)
    if (full_BG[:, 0] == full_BG[:, 1]).double().mean() > 0.9:
        raise Mistake(
            "features that are on together have the same amplitude: each draws its own, "
            "[n, n_features] of them"
        )
    if _draw(sample, 100, 3, 0.0).any():
        raise Mistake("with p = 0 nothing may ever be on")
    if (_draw(sample, 100, 3, 1.0) == 0).double().mean() > 0.01:
        raise Mistake("with p = 1 everything is on")
    if not torch.equal(_draw(sample, 50, 3, 0.5), _draw(sample, 50, 3, 0.5)):
        raise Mistake("the same seed should give the same sample: pass generator on to torch.rand")
    if torch.equal(_draw(sample, 50, 3, 0.5, seed=0), _draw(sample, 50, 3, 0.5, seed=1)):
        raise Mistake("every seed gives the same sample: use the generator that is passed in")


def _judge_coins(on_BG: Tensor) -> None:
    share = float(on_BG.mean())
    together = float((on_BG[:, 0] * on_BG[:, 1]).mean())
    if abs(share - 0.9) < 0.02:
        raise Mistake("p is the probability that a feature is on; yours are off that often")
    if abs(share - 0.1) > 0.01:
        raise Mistake(f"asked for p = 0.1, but a share of {share:.2f} is on")
    if together > 0.05:
        raise Mistake(
            "features come on and go off together: each needs its own coin, [n, n_features] of them"
        )
    if abs(together - 0.01) > 0.005 or on_BG.sum(1).std() < 0.5:
        raise Mistake("features should be independent: some rows have none on, some several")


def _judge_amplitudes(on: Tensor) -> None:
    if on.std() < 0.01:
        raise Mistake("all amplitudes are the same: a feature that is on is uniform in [0, 1]")
    if abs(on.mean() - 0.5) < 0.02 and abs(on.std() - math.sqrt(1 / 12)) < 0.02:
        return
    if on.max() < 0.11 or on.min() > 0.89:
        raise Mistake("one draw decides on and off and is the amplitude too: use a second draw")
    raise Mistake(
        f"amplitudes of features that are on have mean {on.mean():.2f}, not the uniform law's 0.50"
    )


@exercise(
    "Exercise 2.2", passed="down into the plane, back up, bias, ReLU: that is the whole model"
)
def model(reconstruct: Callable) -> None:
    """`reconstruct(f_BG, W_GD, b_G)` -> `[B, G]`."""
    generator = torch.Generator().manual_seed(1)
    f_BG = torch.rand(6, 5, generator=generator)
    W_GD = torch.randn(5, 2, generator=generator)
    b_G = torch.randn(5, generator=generator) / 2
    before_BG = f_BG @ W_GD @ W_GD.T
    right = (before_BG + b_G).relu()
    rows = "Rows of W are features: f @ W goes down, @ W.T comes back."
    try:
        answer = call(reconstruct, f_BG, W_GD, b_G)
    except RuntimeError as error:  # the equation typed as it stands, with W where W.T belongs
        if "size of tensor" in str(error):  # what broadcasting says, the bias added in the plane
            rows = "b holds a number for each feature: add it after @ W.T, not in the plane."
        elif "shapes" not in str(error):
            raise
        raise Mistake(f"torch says: {error}. {rows}") from error
    got = need_shape(answer, (6, 5), "the reconstruction", rows)
    wrong = {
        "the ReLU is missing": before_BG + b_G,
        "the bias is missing": before_BG.relu(),
        "the bias comes before the ReLU, not after it": before_BG.relu() + b_G,
        "the bias is added, not subtracted": (before_BG - b_G).relu(),
        "ReLU only at the end: the hidden plane has negative numbers too": (
            (f_BG @ W_GD).relu() @ W_GD.T + b_G
        ).relu(),
    }
    otherwise = "compare with ReLU(W^T W f + b): two products with the same W, the bias, then ReLU"
    diagnose(got, right, wrong, otherwise, rtol=1e-4, atol=1e-5)


@exercise("Exercise 2.3", passed="errors are squared first, weighted by importance, then averaged")
def loss(weighted_loss: Callable) -> None:
    """`weighted_loss(f_BG, f_hat_BG, importance_G)` -> one number."""
    generator = torch.Generator().manual_seed(2)
    f_BG, f_hat_BG = torch.rand(2, 7, 4, generator=generator)
    importance_G = torch.tensor([1.0, 0.5, 0.25, 2.0])
    error_BG = f_BG - f_hat_BG
    square_BG = importance_G * error_BG.square()
    got = need_shape(
        call(weighted_loss, f_BG, f_hat_BG, importance_G),
        (),
        "the loss",
        "Average over samples and features until one number is left.",
    )
    _no_nan(got, "the loss", "0 / 0, or the square root of a negative number")
    wrong = {
        "importance is missing": error_BG.square().mean(),
        "importance is squared too: weight the squared error, not the error": (
            (importance_G * error_BG).square().mean()
        ),
        "square the error; an absolute value is another loss": (
            (importance_G * error_BG.abs()).mean()
        ),
        "positive and negative errors cancel: square them": (importance_G * error_BG).mean(),
        "this is summed over features: here it is the mean over both": square_BG.sum(1).mean(),
        "this is summed over the batch, so it grows with batch size: take the mean": (
            square_BG.sum(0).mean()
        ),
        "this is a sum, so it grows with batch size: take the mean": square_BG.sum(),
        "no square root: the mean of squares is the loss": square_BG.mean().sqrt(),
        "divide by the number of entries, not by the sum of importances": (
            square_BG.sum() / (importance_G.sum() * len(f_BG))
        ),
    }
    otherwise = "compare with the mean over samples and features of I_g (f_g - f_hat_g)^2"
    diagnose(got, square_BG.mean(), wrong, otherwise, rtol=1e-4, atol=1e-7)


def _shares(W_GD: Tensor) -> Tensor:
    """Dimensionality by the definition, feature by feature."""
    shares = []
    for w in W_GD:
        norm = math.sqrt(float(w @ w))
        overlap = sum(float(w @ other / norm) ** 2 for other in W_GD)
        shares.append(norm**2 / overlap)
    return torch.tensor(shares, dtype=torch.float64)


@exercise(
    "Exercise 2.4", passed="1 for a feature alone, 1/2 in an opposite pair, 2/5 in a pentagon"
)
def dimensionality(share: Callable) -> None:
    """`share(W_GD)` -> `[G]`."""
    generator = torch.Generator().manual_seed(3)
    W_GD = torch.randn(6, 3, generator=generator)
    gram = W_GD @ W_GD.T
    norm_G = W_GD.norm(dim=1)
    unit_GD = W_GD / norm_G[:, None]
    cos2 = (unit_GD @ unit_GD.T).square()
    others = (unit_GD @ W_GD.T).square()
    got = need_shape(call(share, W_GD), (6,), "the answer", "One number for each feature.")
    wrong = {
        "feature g itself belongs to the sum: W_g . W_g / ||W_g|| is its own length": (
            norm_G.square() / (others.sum(1) - others.diag())
        ),
        "divide W_g by its length in the sum below": norm_G.square() / gram.square().sum(1),
        "only W_g is divided by its length, not W_j": norm_G.square() / cos2.sum(1),
        "with cosines alone lengths are lost: divide only W_g by its length, and sum over j, "
        "the last axis": 1 / cos2.sum(1),
        "above stands the squared length, not the length": norm_G / others.sum(1),
        "the overlaps are squared before they are summed": (
            norm_G.square() / (unit_GD @ W_GD.T).sum(1)
        ),
        "the overlaps are squared one by one, before they are summed": (
            norm_G.square() / (unit_GD @ W_GD.T).sum(1).square()
        ),
        "the overlaps are squared, an absolute value is not enough": (
            norm_G.square() / (unit_GD @ W_GD.T).abs().sum(1)
        ),
        "you divided W_j by its length; it is W_g's length that is divided out": (
            norm_G.square() / others.T.sum(1)
        ),
    }
    otherwise = "compare with ||W_g||^2 / sum over j of (W_g . W_j / ||W_g||)^2"
    diagnose(got, _shares(W_GD), wrong, otherwise, rtol=1e-3, atol=1e-5)
    forgotten = need_shape(call(share, torch.tensor([[1.0, 0.0], [0.0, 0.0]])), (2,), "the answer")
    if not close(forgotten, [1.0, 0.0], atol=1e-4):
        raise Mistake("a feature of length 0 has no share: 0, not NaN; keep 0 / 0 away with clamp")


@exercise("Exercise 2.6", passed="rare and important weigh alike: only their product counts")
def cost(cost_of_dropping: Callable) -> None:
    """`cost_of_dropping(p_G, importance_G)` -> expected weighted squared error of each, `[G]`."""
    p_G, importance_G = torch.tensor([0.5, 0.1, 1e-3]), torch.tensor([1.0, 3.0, 50.0])
    each = "One number for each feature, no sum over them."
    got = need_shape(call(cost_of_dropping, p_G, importance_G), (3,), "the cost", each)
    _no_nan(got, "the cost", "look for 0 / 0 or an average over no samples at all")
    right = importance_G * p_G / 3
    wrong = {
        "1/3 itself, not 0.33: here two digits are too few": importance_G * p_G * 0.33,
        "the mean of a square is not the square of the mean: E[f^2] = 1/3, not 1/4": (
            importance_G * p_G / 4
        ),
        "the error is squared: E[f^2] = 1/3, while 1/2 is E[f]": importance_G * p_G / 2,
        "the amplitude is missing: when on, f^2 is 1/3 on average": importance_G * p_G,
        "it costs something only when it is on, so p is missing": importance_G / 3,
        "importance is missing": p_G / 3,
        "p counts once: being on happens with probability p, not p^2": importance_G * p_G**2 / 3,
        "p is the probability to be on": importance_G * (1 - p_G) / 3,
    }
    ratio_G = got / right
    scatters = ratio_G.max() - ratio_G.min() > 0.01
    if scatters and (ratio_G[:2] - 1).abs().max() < 0.4:  # the third is too rare to be drawn well
        raise Mistake(
            "near, but not exact: an average over drawn samples scatters; the mean of u^2 can be "
            "worked out on paper"
        )
    otherwise = "importance times the probability to be on times the mean of f^2 when on"
    diagnose(got, right, wrong, otherwise, rtol=5e-3, atol=1e-9)
