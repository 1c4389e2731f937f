"""The check of exercise 2.5: read features off a plane, knowing their directions. Lesson 02.

Shapes: B points, G features, D = 2 dimensions, I pairs of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, rand

from saelearn.exercises import Mistake, as_tensor, call, exercise, need_shape
from saelearn.exercises.trainable import unchanged

ROOM = 1.2  # times the error of the cheapest pair: what else is as good passes too
ROUNDING = 1e-5  # and this much more, for solvers that stop early


def cheapest_pair(h_BD: Tensor, W_GD: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 2.5 is open: two features for each point, `f_BG`.

    Of all pairs that give h exactly and with no negative number, the one with the least sum. A
    pair's numbers are h times the inverse of its two directions, its dual basis.
    """
    pairs_I2 = torch.combinations(torch.arange(len(W_GD)))
    both_I22 = W_GD[pairs_I2]
    apart_I = torch.linalg.det(both_I22).abs() > 1e-4 * both_I22.norm(dim=-1).prod(-1)
    pairs_I2 = pairs_I2[apart_I]  # opposite or equal directions are no basis
    f_IB2 = h_BD @ torch.linalg.inv(both_I22[apart_I])
    allowed_IB = (f_IB2 >= -1e-5).all(-1)
    chosen_B = f_IB2.sum(-1).masked_fill(~allowed_IB, math.inf).argmin(0)
    f_B2 = f_IB2[chosen_B, torch.arange(len(h_BD))].clamp(min=0)
    return torch.zeros(len(h_BD), len(W_GD)).scatter_(1, pairs_I2[chosen_B], f_B2)


def _cases() -> list[tuple[Tensor, Tensor]]:
    """Directions all around the plane, each with the features behind its points."""
    cases = []
    for n_features, uneven, p, seed in ((5, 0.0, 0.1, 21), (7, 0.5, 0.05, 22), (4, 0.4, 0.15, 23)):
        draw = torch.Generator().manual_seed(seed)
        step = 2 * math.pi / n_features
        angle_G = step * (torch.arange(n_features) + uneven * rand(n_features, generator=draw))
        angle_G += 6 * rand(1, generator=draw)
        length_G1 = 1 + uneven * (rand(n_features, 1, generator=draw) - 0.5) / 2
        order_G = torch.randperm(n_features, generator=draw)
        W_GD = (length_G1 * torch.stack([angle_G.cos(), angle_G.sin()], 1))[order_G]
        on_BG = rand(3_000, n_features, generator=draw) < p
        f_BG = on_BG * (0.05 + 0.95 * rand(3_000, n_features, generator=draw))
        cases.append((W_GD, f_BG[on_BG.any(1)]))
    return cases


@exercise(
    "Exercise 2.5: read the plane",
    passed="",
)
def undo(read: Callable) -> str:
    """`read(h_BD, W_GD)` -> `f_BG`, from the points and the directions alone."""
    told = []
    for W_GD, f_BG in _cases():
        h_BD = f_BG @ W_GD
        given = h_BD.clone(), W_GD.clone()
        hint = "One row for each point, one column for each feature."
        got_BG = need_shape(call(read, *given), tuple(f_BG.shape), "the reading", hint)
        unchanged(given[0], h_BD, "h_BD")
        unchanged(given[1], W_GD, "W_GD")
        told.append(_judge_reading(got_BG, f_BG, h_BD, W_GD))
    worst = max(told, key=lambda pair: pair[0])
    return f"squared error {worst[0]:.4f} a point at most. {_relative(*worst)}"


def _relative(error: float, ours: float) -> str:
    if error <= 0.99 * ours:
        return f"That is less than ours, {ours:.4f}."
    return f"Where one feature is on, or two neighbours, nothing is lost; ours has {ours:.4f}."


def _judge_reading(got_BG: Tensor, f_BG: Tensor, h_BD: Tensor, W_GD: Tensor) -> tuple[float, float]:
    """The squared error of a reading and of ours, summed over features, a mean over points."""
    if got_BG.isnan().any():
        raise Mistake("there is a NaN in the reading: is a pair that lies on one line inverted?")
    ours = _error(cheapest_pair(h_BD, W_GD), f_BG)
    error = _error(got_BG, f_BG)
    if error <= ROOM * ours + ROUNDING:
        return error, ours
    seen_BG = h_BD @ W_GD.T
    known = {
        "this is W itself in place of its dual: each direction hears all others.": seen_BG,
        "ReLU alone keeps all echoes: the point has to be *split* between two directions.": (
            seen_BG.relu()
        ),
        "the shortest code spreads over all features and goes below 0; two are enough.": (
            h_BD @ torch.linalg.pinv(W_GD)
        ),
        "only the nearest direction was kept: a point between two belongs to both.": (
            _nearest(h_BD, W_GD)
        ),
    }
    for hint, values_BG in known.items():
        if (got_BG - as_tensor(values_BG, "ours")).abs().max() < 1e-3:
            raise Mistake(hint)
    alone_B = (f_BG > 0).sum(1) == 1
    miss_B = (got_BG - f_BG).abs().amax(1)
    at = int((miss_B * alone_B).argmax())
    if miss_B[at] * alone_B[at] > 1e-3:
        g = int(f_BG[at].argmax())
        said = ", ".join(f"{number:.2f}" for number in got_BG[at])
        raise Mistake(f"of {len(W_GD)} directions, feature {g} alone on, {f_BG[at, g]:.2f} strong: "
                      f"yours says {said}. A point on a direction belongs to it.")  # fmt: skip
    if (got_BG < -1e-3).any():
        raise Mistake("a feature is never negative: take a pair whose two numbers are both 0 or "
                      "more")  # fmt: skip
    if ((got_BG @ W_GD.double() - h_BD) ** 2).sum(1).mean() > 1e-4:
        raise Mistake("your features don't add up to the point: f @ W should be h again")
    raise Mistake(f"squared error {error:.3f} a point, where {ours:.3f} is possible with "
                  f"{len(W_GD)} directions: of the pairs without a negative number take the one "
                  "with the least sum")  # fmt: skip


def _error(got_BG: Tensor, f_BG: Tensor) -> float:
    return float((got_BG.double() - f_BG).square().sum(1).mean())


def _nearest(h_BD: Tensor, W_GD: Tensor) -> Tensor:
    unit_GD = W_GD / W_GD.norm(dim=1, keepdim=True)
    cosine_BG = h_BD @ unit_GD.T
    best_B1 = cosine_BG.argmax(1, keepdim=True)
    strength_BG = cosine_BG / W_GD.norm(dim=1)
    return torch.zeros_like(cosine_BG).scatter_(1, best_B1, strength_BG.gather(1, best_B1))
