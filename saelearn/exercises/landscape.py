"""The check of exercise 3.3: the best code for two atoms, exactly. Lesson 03.

Shapes: D width of a row, two atoms.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, rand, randn

from saelearn.exercises import Mistake, call, difference, exercise, need_shape
from saelearn.exercises.trainable import unchanged


def lowest(x_D: Tensor, W_FD: Tensor, l1_coefficient: float) -> Tensor:
    """What the lesson goes on with while exercise 3.3 is open: the best code f >= 0, `[F]`.

    Each atom is on or off. Those that are on solve a linear system,

        W W^T f = W x - lambda / 2;

    of all sets whose f is nowhere negative, the one with the least cost.
    """
    best_F, least = W_FD.new_zeros(len(W_FD)), float(x_D @ x_D)
    for on in product((False, True), repeat=len(W_FD)):
        on_F = torch.tensor(on)
        some_ID = W_FD[on_F]
        gram_II = some_ID @ some_ID.T
        if not len(some_ID) or torch.linalg.det(gram_II) < 1e-9:
            continue
        f_I = torch.linalg.solve(gram_II, some_ID @ x_D - l1_coefficient / 2)
        cost = _cost(x_D, some_ID, f_I, l1_coefficient)
        if (f_I >= 0).all() and cost < least:
            best_F, least = torch.zeros_like(best_F), cost
            best_F[on_F] = f_I
    return best_F


def _cost(x_D: Tensor, W_FD: Tensor, f_F: Tensor, l1_coefficient: float) -> float:
    return float((x_D - f_F @ W_FD).square().sum() + l1_coefficient * f_F.abs().sum())


def _cases() -> list[tuple[Tensor, Tensor, float]]:
    """Rows that ask for both atoms, for one, for the other and for none; x off the plane, too."""
    cases = []
    draw = torch.Generator().manual_seed(34)
    for D, l1 in ((2, 0.1), (3, 0.3), (2, 0.6), (5, 0.2)):
        W_FD = randn(2, D, generator=draw)
        W_FD /= W_FD.norm(dim=1, keepdim=True)
        for strengths in ((0.9, 0.7), (0.8, -0.5), (-0.6, 0.9), (-0.4, -0.7), (0.05, 0.1)):
            f_F = torch.tensor(strengths) * (0.7 + 0.6 * rand(2, generator=draw))
            cases.append((f_F @ W_FD + 0.1 * randn(D, generator=draw), W_FD, l1))
    return cases


@exercise(
    "Exercise 3.3: the bottom of the landscape",
    passed="exact, without a single step: with two atoms there are only four cases to compare.",
)
def two_atoms(best: Callable) -> None:
    """`best(x_D, W_FD, l1_coefficient)` -> the code `[2]` with the least cost, f >= 0."""
    for x_D, W_FD, l1 in _cases():
        given = x_D.clone(), W_FD.clone()
        answer = call(best, *given, l1)
        f_F = need_shape(answer, (2,), "the code", "One strength for each atom.").float()
        unchanged(given[0], x_D, "x_D")
        unchanged(given[1], W_FD, "W_FD")
        _judge(f_F, x_D, W_FD, l1)


def _judge(f_F: Tensor, x_D: Tensor, W_FD: Tensor, l1: float) -> None:
    if f_F.isnan().any():
        raise Mistake("there is a NaN in the code: is something divided by 0?")
    right_F = lowest(x_D, W_FD, l1)
    if (f_F - right_F).abs().max() < 2e-3:
        return
    cosine = float(W_FD[0] @ W_FD[1])
    raise Mistake(
        f"{_hint(f_F, right_F, x_D, W_FD, l1)} {difference(f_F, right_F)} "
        f"(Two atoms in {len(x_D)} dimensions with cosine {cosine:.2f}, λ = {l1:g}; "
        f"W x = {_pair(W_FD @ x_D)}; yours {_pair(f_F)} costs {_cost(x_D, W_FD, f_F, l1):.4f}, "
        f"the lowest {_cost(x_D, W_FD, right_F, l1):.4f}.)"
    )


def _pair(f_F: Tensor) -> str:
    return "(" + ", ".join(f"{float(f):.3f}" for f in f_F) + ")"


def _hint(f_F: Tensor, right_F: Tensor, x_D: Tensor, W_FD: Tensor, l1: float) -> str:
    """The mistake that gives this very code, or where it differs."""
    alone_F = W_FD @ x_D
    gram = W_FD @ W_FD.T
    free_F = torch.linalg.solve(gram, alone_F)
    priced_F = torch.linalg.solve(gram, alone_F - l1 / 2)
    known = (
        ("a strength is never negative here: compare the cases with one atom off.", priced_F),
        ("setting negative strengths to 0 is not enough: the other atom then changes, too.",
         priced_F.relu()),
        ("without the price this is the exact solution; λ / 2 is missing.", free_F),
        ("each atom is thresholded on its own; where both are on, they share x between them.",
         (alone_F - l1 / 2).relu()),
        ("the whole λ is subtracted; the derivative of the squared error has a 2.",
         lowest(x_D, W_FD, 2 * l1)),
        ("the two strengths are swapped.", right_F.flip(0)),
        ("the price is missing: this is the least error alone.", lowest(x_D, W_FD, 0.0)),
    )  # fmt: skip
    for hint, mistaken_F in known:
        if (f_F - mistaken_F).abs().max() < 2e-3:
            return hint
    if (f_F < 0).any():
        return known[0][0]
    off = "both atoms off" if not right_F.any() else "the right atoms on"
    if ((f_F > 1e-3) != (right_F > 0)).any():
        return f"other atoms are on than in the cheapest code, which has {off}."
    return "the right atoms are on, with other strengths: solve for them with λ / 2 taken off."
