"""Checks of lesson 05, the L1 dial.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, call, diagnose, exercise, need_shape
from saelearn.exercises.choosing import choose, elbow, scores
from saelearn.exercises.dialects import DIALECTS, translations
from saelearn.exercises.trainable import call_with_torch, learns, unchanged

__all__ = [
    "DIALECTS",
    "best_activation",
    "choose",
    "elbow",
    "fair_penalty",
    "prediction",
    "scores",
    "shortened",
    "translations",
]


QUANTITIES = {  # name -> what happens as lambda rises, and the hint
    "L0": ("falls", "the penalty makes each active feature cost something."),
    "variance missed": ("rises", "every feature that is switched off or turned down is missed."),
    "gamma": ("falls", "the penalty pulls every activation toward 0, also those that stay on."),
    "planted found": (
        "both",
        "think of both ends: without a penalty nothing asks for sparse codes; with a huge one "
        "nothing fires.",
    ),
}
WORDS = {
    "both": ("rises then falls", "rises, then falls", "both", "up then down", "first"),
    "dips": ("falls then", "falls, then", "down then"),  # right nowhere up to lambda = 1.5
    "falls": ("fall", "down", "less", "decreas", "sinks", "-"),
    "rises": ("rise", "up", "more", "increas", "grows", "+"),
}


@exercise(
    "Exercise 5.1: predict the dial",
    passed="as you say. Now see by how much.",
)
def prediction(answers: dict[str, Any]) -> None:
    """A word for each of `QUANTITIES`: falls, rises, or rises then falls."""
    if not isinstance(answers, dict):
        raise Mistake(f"a dictionary is needed, but this is a {type(answers).__name__}")
    answers = {str(name).strip().lower(): answer for name, answer in answers.items()}
    for name, (right, hint) in QUANTITIES.items():
        if name.lower() not in answers:
            raise Mistake(f"there is no answer for {name!r} in the dictionary")
        answer = answers[name.lower()]
        if answer in (..., None, "...", ""):
            raise Mistake(f"there is no answer for {name!r} yet: put a word in place of the dots")
        if _meaning(str(answer)) != right:
            raise Mistake(f"{name}: not quite; {hint} (Looking at the dial is allowed.)")


def _meaning(answer: str) -> str | None:
    word = answer.strip().lower()
    return next((m for m, starts in WORDS.items() if word.startswith(starts)), None)


@exercise(
    "Exercise 5.2: the best activation",
    passed="soft thresholding: what is below λ/2 is lost, what is above arrives λ/2 too short.",
)
def best_activation(function: Callable) -> None:
    """`best_activation(a, l1_coefficient)`: the z >= 0 with the least (a - z)^2 + lambda z."""
    a_N = torch.tensor([-0.3, 0.0, 0.1, 0.2, 0.35, 0.8, 1.5])
    for l1 in (0.4, 1.0):
        try:
            answer = call(function, a_N.clone(), l1)
        except RuntimeError as error:  # Python's max, or an if, on a whole tensor
            if "ambiguous" not in str(error):
                raise
            raise Mistake(
                "`max` and `if` compare single numbers, and a is a tensor of many: torch.relu, "
                "or .clamp(min=0), treats each on its own."
            ) from error
        z_N = need_shape(answer, (7,), "z")
        diagnose(
            z_N,
            (a_N - l1 / 2).relu(),
            {
                "an activation cannot be negative: where a is small, the best z is 0.": a_N
                - l1 / 2,
                "you subtract λ, but the derivative of (a - z)² is -2 (a - z): mind the 2.": (
                    (a_N - l1).relu()
                ),
                "you subtract 2λ: set -2 (a - z) + λ to 0 and solve for z once more.": (
                    (a_N - 2 * l1).relu()
                ),
                "that scales a; the penalty's slope is the same everywhere, so it subtracts.": (
                    (a_N * (1 - l1 / 2)).relu()
                ),
                "what survives the threshold is shortened too: subtract, don't only cut.": (
                    torch.where(a_N > l1 / 2, a_N, 0.0)
                ),
                "z cannot be negative: for a negative a the best z is 0 too.": (
                    a_N.sign() * (a_N.abs() - l1 / 2).relu()
                ),
            },
            "not the minimum: set the derivative of (a - z)² + λ z to 0, and keep z at 0 or above.",
        )


def shortened(a: Tensor, l1_coefficient: float) -> Tensor:
    """What the lesson goes on with while exercise 5.2 is open: lambda / 2 less, and 0 at least."""
    return torch.relu(a - l1_coefficient / 2)


@exercise(
    "Exercise 5.3: a fair penalty",
    passed="rescaling a feature no longer changes its price: this is the library's `weighted`.",
)
def fair_penalty(penalty: Callable) -> None:
    """`penalty(f_BF, W_dec_FD)`: the batch mean of sum_i f_i ||W_dec_i||."""
    draw = torch.Generator().manual_seed(12)
    for b, f, d in ((6, 4, 4), (9, 5, 3)):  # where columns for rows give no error, and others
        f_BF, W_dec_FD = torch.rand(b, f, generator=draw), torch.randn(f, d, generator=draw)
        _judge_penalty(penalty, f_BF, W_dec_FD)


def _judge_penalty(penalty: Callable, f_BF: Tensor, W_dec_FD: Tensor) -> None:
    trained = {"f_BF": f_BF.clone().requires_grad_(), "W_dec_FD": W_dec_FD.clone().requires_grad_()}
    result = call_with_torch(penalty, *trained.values())
    price = need_shape(result, (), "the penalty")
    norm_F = W_dec_FD.norm(dim=1)
    for name, before in {"f_BF": f_BF, "W_dec_FD": W_dec_FD}.items():
        unchanged(trained[name], before, name)
    columns = {}
    if f_BF.shape[1] == W_dec_FD.shape[1]:
        hint = "norms of columns: feature i writes row i of W_dec, so norm(dim=1)."
        columns[hint] = (f_BF * W_dec_FD.norm(dim=0)).sum(1).mean()
    diagnose(
        price,
        (f_BF * norm_F).sum(1).mean(),
        {
            **columns,
            "the decoder is not in it yet: halve f, double W_dec, and it is half the price.": (
                f_BF.sum(1).mean()
            ),
            "sum over the batch: the price must not depend on the batch size; take the mean.": (
                (f_BF * norm_F).sum()
            ),
            "mean over the features too: sum over features, then mean over the batch.": (
                (f_BF * norm_F).mean()
            ),
            "the squared norm pays twice: doubling W_dec while halving f doubles the price.": (
                (f_BF * norm_F**2).sum(1).mean()
            ),
            "the L1 norm of the row; the convention is its length, the L2 norm.": (
                (f_BF * W_dec_FD.abs().sum(1)).sum(1).mean()
            ),
            "divided by the norm: then a longer row is cheaper still.": (
                (f_BF / norm_F).sum(1).mean()
            ),
        },
        "not the batch mean of the sum of f_i times the length of row i.",
    )
    learns(result, **trained)


def weighted(f_BF: Tensor, W_dec_FD: Tensor) -> Tensor:
    """What the lesson goes on with while exercise 5.3 is open: each activation times its row."""
    return (f_BF * W_dec_FD.norm(dim=1)).sum(1).mean()
