"""Checks of lesson 02, superposition.

Every target is computed here, from the definitions and without the library's toy models, from
copies that an answer never sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, rand, randn

from saelearn.exercises import (
    Mistake,
    Verdict,
    call,
    close,
    diagnose,
    difference,
    earned,
    exercise,
    guesses,
    need_number,
    need_shape,
)
from saelearn.exercises.counting import bug, more_than_fit, superposed
from saelearn.exercises.reading import cheapest_pair, undo
from saelearn.exercises.trainable import call_with_torch, learns, unchanged

__all__ = [
    "bug",
    "cheapest_pair",
    "dimensionality",
    "model",
    "more_than_fit",
    "predicted_rarity",
    "read_back",
    "sampler",
    "superposed",
    "undo",
    "weighted",
]


@guesses.prediction
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


def _draw(
    sample: Callable, n: int, n_features: int, p: float, *, seed: int = 0, used: int = 0
) -> Tensor:
    """What `sample` returns for a generator that has drawn so many numbers already."""
    generator = torch.Generator().manual_seed(seed)
    rand(used, generator=generator)
    f_BG = call(sample, n, n_features, p, generator=generator)
    hint = "One row per sample, one column per feature."
    sample_BG = need_shape(f_BG, (n, n_features), "the sample", hint)
    divided = "is something divided by p? 0 / 0 has no value" if p == 0 else "look for a division"
    return _no_nan(sample_BG, f"the sample for p = {p:g}", divided)


@exercise(
    "Exercise 2.1: the sampler",
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
    _judge_coins(on_BG.double(), 0.1)
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
    _judge_coins((_draw(sample, 9_000, 4, 0.35) > 0).double(), 0.35)
    _judge_seeds(sample)


def _judge_coins(on_BG: Tensor, p: float) -> None:
    share = float(on_BG.mean())
    room = 6 * math.sqrt(p * (1 - p) / on_BG.numel())
    if abs(share - (1 - p)) < room:
        raise Mistake("p is the probability that a feature is on; yours are off that often")
    if abs(share - p) > room:
        raise Mistake(f"asked for p = {p:g}, but a share of {share:.2f} is on")
    of_each_G = on_BG.mean(0)
    if (of_each_G - p).abs().max() > 6 * math.sqrt(p * (1 - p) / len(on_BG)):
        raise Mistake(f"not all features are on equally often: {_listed(of_each_G)}")
    together_GG = (on_BG.T @ on_BG / len(on_BG)).fill_diagonal_(p * p)
    if together_GG.max() > (p + p * p) / 2:
        raise Mistake(
            "features come on and go off together: each needs its own coin, [n, n_features] of them"
        )
    if (together_GG - p * p).abs().max() > 0.4 * p * p:
        raise Mistake("features should be independent: some rows have none on, some several")


def _listed(numbers: Tensor) -> str:
    return ", ".join(f"{number:.2f}" for number in numbers)


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


def _judge_seeds(sample: Callable) -> None:
    if not _draw(sample, 50, 3, 0.5).equal(_draw(sample, 50, 3, 0.5)):
        raise Mistake("the same seed should give the same sample: pass generator on to torch.rand")
    if _draw(sample, 50, 3, 0.5, seed=0).equal(_draw(sample, 50, 3, 0.5, seed=1)):
        raise Mistake("every seed gives the same sample: use the generator that is passed in")
    if _draw(sample, 50, 3, 0.5).equal(_draw(sample, 50, 3, 0.5, used=16)):
        raise Mistake("a generator that has drawn before gives the same batch again: don't seed it "
                      "anew, draw on")  # fmt: skip


@exercise(
    "Exercise 2.2: the model and its loss",
    passed="down into the plane, back up, bias, ReLU; squares weighted, then averaged",
)
def model(reconstruct: Callable, weighted_loss: Callable) -> None:
    """`reconstruct(f_BG, W_GD, b_G)` -> `[B, G]`; `weighted_loss(f_BG, f_hat_BG, importance_G)`."""
    for B, G, D, seed in ((6, 5, 2, 1), (4, 7, 3, 11)):
        _judge_model(reconstruct, B, G, D, seed)
    with earned(0.5):
        for B, G, seed in ((7, 4, 2), (3, 6, 12)):
            _judge_loss(weighted_loss, B, G, seed)


def _judge_model(reconstruct: Callable, B: int, G: int, D: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    f_BG = rand(B, G, generator=generator)
    W_GD = randn(G, D, generator=generator)
    b_G = randn(G, generator=generator) / 2
    before_BG = f_BG @ W_GD @ W_GD.T
    right = (before_BG + b_G).relu()
    given = {"f_BG": f_BG.clone(), "W_GD": W_GD.clone(), "b_G": b_G.clone()}
    rows = "Rows of W are features: f @ W goes down, @ W.T comes back."
    try:
        answer = call(reconstruct, *given.values())
    except RuntimeError as error:  # the equation typed as it stands, with W where W.T belongs
        if "size of tensor" in str(error):  # what broadcasting says, the bias added in the plane
            rows = "b holds a number for each feature: add it after @ W.T, not in the plane."
        elif "shapes" not in str(error):
            raise
        raise Mistake(f"torch says: {error}. {rows}") from error
    got = need_shape(answer, (B, G), "the reconstruction", rows)
    for name, before in (("f_BG", f_BG), ("W_GD", W_GD), ("b_G", b_G)):
        unchanged(given[name], before, name)
    wrong = {
        "the ReLU is missing": before_BG + b_G,
        "the bias is missing": before_BG.relu(),
        "the bias comes before the ReLU, not after it": before_BG.relu() + b_G,
        "the bias is added, not subtracted": (before_BG - b_G).relu(),
        "ReLU only at the end: the hidden plane has negative numbers too": (
            (f_BG @ W_GD).relu() @ W_GD.T + b_G
        ).relu(),
    }
    otherwise = "compare with ReLU(W^T W f + b): two products with the same W, the bias, then ReLU."
    diagnose(got, right, wrong, f"{otherwise} {difference(got, right)}", rtol=1e-4, atol=1e-5)
    learned = {"W_GD": W_GD.clone().requires_grad_(), "b_G": b_G.clone().requires_grad_()}
    learns(call_with_torch(reconstruct, f_BG.clone(), *learned.values()), **learned)


def _judge_loss(weighted_loss: Callable, B: int, G: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    f_BG, f_hat_BG = rand(2, B, G, generator=generator)
    importance_G = 2 * rand(G, generator=generator)
    error_BG = f_BG - f_hat_BG
    square_BG = importance_G * error_BG.square()
    given = f_BG.clone(), f_hat_BG.clone(), importance_G.clone()
    got = need_number(
        call(weighted_loss, *given),
        "the loss",
        "Average over samples and features until one number is left.",
    )
    for now, before, name in zip(
        given, (f_BG, f_hat_BG, importance_G), ("f_BG", "f_hat_BG", "importance_G"), strict=True
    ):
        unchanged(now, before, name)
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
    right = square_BG.mean()
    otherwise = "compare with the mean over samples and features of I_g (f_g - f_hat_g)^2."
    diagnose(got, right, wrong, f"{otherwise} {difference(got, right)}", rtol=1e-4, atol=1e-7)
    f_hat_BG = f_hat_BG.clone().requires_grad_()
    result = call_with_torch(weighted_loss, f_BG.clone(), f_hat_BG, importance_G.clone())
    learns(result, f_hat_BG=f_hat_BG)


def read_back(f_BG: Tensor, W_GD: Tensor, b_G: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 2.2 is open: the model, `[B, G]`."""
    return torch.relu(f_BG @ W_GD @ W_GD.T + b_G)


def weighted(f_BG: Tensor, f_hat_BG: Tensor, importance_G: Tensor) -> Tensor:
    """The same for its loss, one number."""
    return (importance_G * (f_BG - f_hat_BG).square()).mean()


def _shares(W_GD: Tensor) -> Tensor:
    """Dimensionality by the definition, feature by feature."""
    shares = []
    for w in W_GD:
        norm = math.sqrt(float(w @ w))
        overlap = sum(float(w @ other / norm) ** 2 for other in W_GD)
        shares.append(norm**2 / overlap)
    return torch.tensor(shares, dtype=torch.float64)


@exercise(
    "Exercise 2.3: dimensionality",
    passed="1 for a feature alone, 1/2 in an opposite pair, 2/5 in a pentagon",
)
def dimensionality(share: Callable) -> None:
    """`share(W_GD)` -> `[G]`."""
    for G, D, seed in ((6, 3, 3), (4, 5, 13)):
        _judge_shares(share, randn(G, D, generator=torch.Generator().manual_seed(seed)))
    for short in ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]]):
        W_GD = torch.tensor(short)
        got = need_shape(call(share, W_GD.clone()), (len(W_GD),), "the answer")
        if not close(got, W_GD.any(1).double(), atol=1e-4):
            raise Mistake("a feature of length 0 has no share: 0, not NaN; keep 0 / 0 away with "
                          "clamp")  # fmt: skip


def _judge_shares(share: Callable, W_GD: Tensor) -> None:
    gram = W_GD @ W_GD.T
    norm_G = W_GD.norm(dim=1)
    unit_GD = W_GD / norm_G[:, None]
    cos2 = (unit_GD @ unit_GD.T).square()
    others = (unit_GD @ W_GD.T).square()
    answer = call(share, given := W_GD.clone())
    got = need_shape(answer, (len(W_GD),), "the answer", "One number for each feature.")
    unchanged(given, W_GD, "W_GD")
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
    right = _shares(W_GD)
    otherwise = "compare with ||W_g||^2 / sum over j of (W_g . W_j / ||W_g||)^2."
    diagnose(got, right, wrong, f"{otherwise} {difference(got, right)}", rtol=1e-3, atol=1e-5)
