"""Checks of lesson 05, the L1 dial.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, call, diagnose, earned, exercise, need_shape, told
from saelearn.exercises.dialects import DIALECTS, translations
from saelearn.exercises.trainable import call_with_torch, learns, unchanged


def or_ours(judge: Callable, *answers: Any) -> Any:
    """The reader's answers if the check accepts them, or else ones with which the lesson goes on.

    Args:
        judge: the check of the exercise.
        answers: what it is called with.

    Returns:
        as many as there are answers; one alone comes as it is.
    """
    if told(judge.title, "", lambda: judge.__wrapped__(*answers), answers).passed:
        return answers[0] if len(answers) == 1 else answers
    return STAND_INS[judge.title]


@exercise(
    "Exercise 5.1: encode and decode",
    passed="this is a whole SAE: it looks for directions, keeps what is positive, and adds up the "
    "directions of what it kept.",
)
def encode_decode(encode: Callable, decode: Callable) -> None:
    """`encode(x_BD, W_enc_DF, b_enc_F, b_dec_D)` and `decode(f_BF, W_dec_FD, b_dec_D)`."""
    draw = torch.Generator().manual_seed(11)
    x_BD, W_enc_DF = torch.randn(5, 3, generator=draw), torch.randn(3, 7, generator=draw)
    b_enc_F, b_dec_D = torch.randn(7, generator=draw), torch.randn(3, generator=draw)
    W_dec_FD = torch.randn(7, 3, generator=draw)
    before_BF = (x_BD - b_dec_D) @ W_enc_DF + b_enc_F
    weights = [w.clone().requires_grad_() for w in (W_enc_DF, b_enc_F, b_dec_D)]
    result = call_with_torch(encode, given := x_BD.clone(), *weights)
    f_BF = need_shape(result, (5, 7), "f_BF")
    off_centre = "encode: the input has to be centred first: x_BD - b_dec_D."
    diagnose(
        f_BF,
        before_BF.relu(),
        {
            "encode: some features are negative; ReLU, the last step, is missing.": before_BF,
            off_centre: (x_BD @ W_enc_DF + b_enc_F).relu(),
            "encode: b_dec_D is subtracted from the input, not added.": (
                (x_BD + b_dec_D) @ W_enc_DF + b_enc_F
            ).relu(),
            "encode: the bias b_enc_F is missing.": ((x_BD - b_dec_D) @ W_enc_DF).relu(),
            "encode: ReLU comes after the bias, not before.": (
                ((x_BD - b_dec_D) @ W_enc_DF).relu() + b_enc_F
            ),
        },
        "encode: the shape is right, the numbers are not; compare with the equation, term by term.",
    )
    unchanged(given, x_BD, "encode: x_BD")
    learns(result, **dict(zip(("W_enc_DF", "b_enc_F", "b_dec_D"), weights, strict=True)))
    with earned(0.5):
        _decode(decode, before_BF.relu(), W_dec_FD, b_dec_D)


def _decode(decode: Callable, f_BF: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor) -> None:
    weights = [w.clone().requires_grad_() for w in (W_dec_FD, b_dec_D)]
    result = call_with_torch(decode, given := f_BF.clone(), *weights)
    x_hat_BD = need_shape(result, (5, 3), "x_hat_BD")
    diagnose(
        x_hat_BD,
        f_BF @ W_dec_FD + b_dec_D,
        {
            "decode: what was subtracted on the way in is added on the way out: + b_dec_D.": (
                f_BF @ W_dec_FD
            ),
            "decode: a reconstruction may be negative; ReLU belongs into the encoder only.": (
                f_BF @ W_dec_FD + b_dec_D
            ).relu(),
            "decode: b_dec_D is added, not subtracted.": f_BF @ W_dec_FD - b_dec_D,
        },
        "decode: the shape is right, the numbers are not; compare with the equation.",
    )
    unchanged(given, f_BF, "decode: f_BF")
    learns(result, **dict(zip(("W_dec_FD", "b_dec_D"), weights, strict=True)))


@exercise(
    "Exercise 5.2: the loss",
    passed="both terms are batch means, so the coefficient means the same at every batch size.",
)
def l1_loss(loss: Callable) -> None:
    """`loss(x_BD, x_hat_BD, f_BF, l1_coefficient)`: both terms means over the batch."""
    draw = torch.Generator().manual_seed(13)
    x_BD, x_hat_BD = torch.randn(8, 3, generator=draw), torch.randn(8, 3, generator=draw)
    f_BF, l1 = torch.rand(8, 5, generator=draw), 0.7
    trained = {"x_hat_BD": x_hat_BD.clone().requires_grad_(), "f_BF": f_BF.clone().requires_grad_()}
    result = call_with_torch(loss, given := x_BD.clone(), *trained.values(), l1)
    total = need_shape(result, (), "the loss")
    error_B, penalty_B = (x_BD - x_hat_BD).square().sum(1), f_BF.sum(1)
    diagnose(
        total,
        error_B.mean() + l1 * penalty_B.mean(),
        {
            "the penalty grows with the batch: sum over features, mean over the batch.": (
                error_B.mean() + l1 * f_BF.sum()
            ),
            "f.mean() divides by the number of features too: λ would depend on d_sae.": (
                error_B.mean() + l1 * f_BF.mean()
            ),
            "the error is averaged over D too: that multiplies λ's effect by D.": (
                error_B.mean() / 3 + l1 * penalty_B.mean()
            ),
            "two sums keep the balance, but the gradient grows with the batch: take two means.": (
                error_B.sum() + l1 * penalty_B.sum()
            ),
            "the batch has its own size, len(f_BF): a fixed 128 fits one batch size only.": (
                error_B.mean() + l1 * f_BF.sum() / 128
            ),
            "the coefficient is missing.": error_B.mean() + penalty_B.mean(),
            "f.sum(0) sums over the batch: dimension 1 is the features.": (
                error_B.mean() + l1 * f_BF.sum(0).mean()
            ),
            "the batch has its own size, len(f_BF): a fixed 256 fits one batch size only.": (
                error_B.mean() + l1 * f_BF.sum() / 256
            ),
        },
        "not mean_B sum_D (x - x_hat)² + λ mean_B sum_F f.",
    )
    unchanged(given, x_BD, "x_BD")
    learns(result, **trained)


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
    "Exercise 5.3: predict the dial",
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
    "Exercise 5.4: the best activation",
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


@exercise(
    "Exercise 5.5: a fair penalty",
    passed="rescaling a feature no longer changes its price: this is the library's `weighted`.",
)
def fair_penalty(penalty: Callable) -> None:
    """`penalty(f_BF, W_dec_FD)`: the batch mean of sum_i f_i ||W_dec_i||."""
    draw = torch.Generator().manual_seed(12)
    f_BF, W_dec_FD = torch.rand(6, 4, generator=draw), torch.randn(4, 4, generator=draw)
    trained = {"f_BF": f_BF.clone().requires_grad_(), "W_dec_FD": W_dec_FD.clone().requires_grad_()}
    result = call_with_torch(penalty, *trained.values())
    price = need_shape(result, (), "the penalty")
    norm_F = W_dec_FD.norm(dim=1)
    diagnose(
        price,
        (f_BF * norm_F).sum(1).mean(),
        {
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
            "norms of columns: feature i writes row i of W_dec, so norm(dim=1).": (
                (f_BF * W_dec_FD.norm(dim=0)).sum(1).mean()
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


STAND_INS = {  # by the check's title: what the lesson goes on with after an open exercise
    encode_decode.title: (
        lambda x_BD, W_enc_DF, b_enc_F, b_dec_D: torch.relu((x_BD - b_dec_D) @ W_enc_DF + b_enc_F),
        lambda f_BF, W_dec_FD, b_dec_D: f_BF @ W_dec_FD + b_dec_D,
    ),
    l1_loss.title: lambda x_BD, x_hat_BD, f_BF, l1_coefficient: (
        (x_BD - x_hat_BD).square().sum(1).mean() + l1_coefficient * f_BF.sum(1).mean()
    ),
    best_activation.title: lambda a, l1_coefficient: torch.relu(a - l1_coefficient / 2),
    translations.title: tuple(right for right, _ in DIALECTS.values()),
}
