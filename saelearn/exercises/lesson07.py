"""Checks of lesson 07, training on a language model.

Every target is computed here, from the definitions and without the library's training code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, Verdict, as_tensor, call, close, diagnose, exercise, guesses
from saelearn.exercises import need_shape as need


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _number(value: object, name: str) -> float:
    hint = "One number for all the data, not one for each row or dimension."
    return float(need(value, (), name, hint))


def predicted_survival(guess: Any, trained: float, untrained: float) -> Verdict:
    """A reply to two guesses of the loss recovered; any in range is valid, none is graded."""

    def answer(guess: Any) -> str:
        try:
            first, second = guess
        except (TypeError, ValueError):
            raise Mistake("two numbers are needed, such as 0.5, 0.1") from None
        replies = []
        for name, mine, truth in (("trained", first, trained), ("untrained", second, untrained)):
            off = guesses.number(mine) - truth
            far = "more than you thought" if off < 0 else "less than you thought"
            replies.append(f"{name}: {'about right' if abs(off) <= 0.1 else far}, {truth:.2f}")
        return "; ".join(replies) + "."

    return guesses.reply("how much survives", guess, answer)


@exercise(
    "Exercise 7.1",
    passed="one row a token, documents one after another, without the opening token",
)
def rows(to_rows: Callable) -> None:
    """`to_rows(x_BTD)` -> `x_ND` without position 0."""
    B, T, D = 3, 5, 4
    x_BTD = torch.arange(B * T * D, dtype=torch.float32).reshape(B, T, D)
    x_ND = as_tensor(call(to_rows, x_BTD), "the result")
    _judge_row_shape(tuple(x_ND.shape), B, T, D)
    wrong = {
        "the last position was left out instead of the first: x_BTD[:, 1:]": x_BTD[:, :-1],
        "the rows run through all documents at position 1, then at position 2 and so on; keep "
        "each document's rows together: flatten the first two axes as they are": (
            x_BTD[:, 1:].transpose(0, 1)
        ),
    }
    diagnose(
        x_ND,
        x_BTD[:, 1:].reshape(-1, D),
        {hint: x.reshape(-1, D) for hint, x in wrong.items()},
        "the shape is right, but the rows are not those of the activations: row 0 should be "
        "position 1 of the first document. Was reshape used where axes had to stay in order?",
    )


def _judge_row_shape(shape: tuple[int, ...], B: int, T: int, D: int) -> None:
    known = {
        (B * T, D): "position 0 is still there: leave it out before you flatten, x_BTD[:, 1:]",
        ((B - 1) * T, D): "a whole document was left out: the position is the second axis, "
        "x_BTD[:, 1:]",
        (B, T - 1, D): "documents and positions are still two axes: .flatten(0, 1) makes them one",
        (B, (T - 1) * D): "positions and dimensions were joined: .flatten(0, 1) joins the first "
        "two axes and leaves the last as it is",
    }
    if shape in known:
        raise Mistake(known[shape])
    if shape != (B * (T - 1), D):
        raise Mistake(
            f"the result has shape {shape}; for activations of shape {(B, T, D)} it should be "
            f"{(B * (T - 1), D)}"
        )


@exercise(
    "Exercise 7.2",
    passed="one scalar brings every model's activations to one size, so that one coefficient fits",
)
def scale(scale_of: Callable) -> None:
    """`scale_of(x_ND)` -> the scalar after which the mean squared norm is D."""
    length_N1 = _random(400, 1).exp()  # rows of different lengths, off centre
    x_ND = 3.0 * length_N1 * _random(400, 16, seed=1) + torch.linspace(-2, 6, 16)
    square_N = x_ND.double().square().sum(1)
    right = math.sqrt(16 / float(square_N.mean()))
    spread = (x_ND - x_ND.mean(0)).double().square().sum(1).mean()
    diagnose(
        _number(call(scale_of, x_ND), "the scale"),
        right,
        {
            "the square root is missing: the norm grows with the scale, its square with the "
            "scale's square": right**2,
            "upside down: this is the size as it is; the scale is what brings it to sqrt(D)": (
                1 / right
            ),
            "this brings the mean squared norm to 1; here it should become D": right / 4,
            "this brings the mean *norm* to sqrt(D); square first, then average": (
                4 / float(square_N.sqrt().mean())
            ),
            "the mean was subtracted first: the convention scales the activations as they are": (
                math.sqrt(16 / float(spread))
            ),
            "the standard deviation leaves out the mean: the convention scales the activations "
            "as they are": 1 / float(x_ND.double().std()),
        },
        "after (x_ND * scale), the mean over rows of the summed squares should be D",
        rtol=1e-3,
    )


@exercise(
    "Exercise 7.3",
    passed="sums over D and over F, means over B: a coefficient that serves any width and batch",
)
def loss(l1_loss: Callable) -> None:
    """`l1_loss(x_BD, x_hat_BD, f_BF, l1_coefficient)` -> one number."""
    x_BD, x_hat_BD, f_BF = _random(6, 5), _random(6, 5, seed=1), _random(6, 7, seed=2).relu()
    result = call(l1_loss, x_BD, x_hat_BD.requires_grad_(), f_BF, 0.7)
    value = _number(result, "the loss")
    square_BD = (x_BD - x_hat_BD).square().detach()
    error, price = square_BD.sum(1).mean(), 0.7 * f_BF.sum(1).mean()
    mean_error = square_BD.mean()
    wrong = {
        "the squared error is still averaged over D: mse_loss divides by D, too": mean_error
        + price,
        "the error is summed over the batch now: sum over D, mean over B": square_BD.sum() + price,
        "the trade-off is right, but the whole loss is D times smaller: sum the error over D, and "
        "leave the penalty as it was": mean_error + price / 5,
        "the penalty was right: the sum over F, then the mean over B": error + 0.7 * f_BF.sum(),
        "the penalty is divided by the number of features too: sum over F, mean over B": (
            error + 0.7 * f_BF.mean()
        ),
        "both are means over everything: sum over D and F": mean_error + 0.7 * f_BF.mean(),
        "both terms are sums over the batch now: then the loss, and with it the size of a step, "
        "depends on the batch. Take means": 6 * (error + price),
        "the penalty is gone": error,
        "the coefficient is missing": error + price / 0.7,
        "the lengths are not squared: the error is the sum of squares": (
            square_BD.sum(1).sqrt().mean() + price
        ),
        "that is L2, the length of f; L1 is the sum of the absolute values": (
            error + 0.7 * f_BF.norm(dim=1).mean()
        ),
        "counting active features has no gradient: L1 sums their values": (
            error + 0.7 * (f_BF > 0).double().sum(1).mean()
        ),
    }
    expected = (
        "expected the mean over B of the summed squared error, plus l1_coefficient times that"
    )
    diagnose(value, error + price, wrong, f"{expected} of the summed features")
    if not getattr(result, "requires_grad", False):
        raise Mistake("the value is right, but no gradient flows: leave out float() or .item()")


@exercise(
    "Exercise 7.4",
    passed="1 is the model's own loss, 0 is as bad as the ablation; say which ablation it was",
)
def recovered(loss_recovered: Callable) -> None:
    """`loss_recovered(clean, spliced, ablated)` -> share."""
    for clean, spliced, ablated in ((1.0, 1.6, 3.5), (2.0, 2.0, 9.0), (0.8, 4.4, 4.0)):
        value = _number(call(loss_recovered, clean, spliced, ablated), "the share")
        diagnose(
            value,
            (ablated - spliced) / (ablated - clean),
            {
                "that is the share that was lost; what is left is 1 minus this": (
                    (spliced - clean) / (ablated - clean)
                ),
                "the clean loss is missing: below, too, stands how far it is from the ablation, "
                "ablated - clean": (ablated - spliced) / ablated,
                "a ratio of losses has no zero: how bad no information would be is missing": (
                    clean / spliced
                ),
                "a ratio of losses has no zero: how bad no information would be is missing. "
                "Compare differences": 1 - (spliced - clean) / clean,
                "upside down": (ablated - clean) / (ablated - spliced + 1e-30),
                "the sign is turned round: above and below, start from the ablated loss": (
                    -(ablated - spliced) / (ablated - clean)
                ),
                "no clipping: worse than the ablation is below 0, and worth knowing": (
                    max(0.0, (ablated - spliced) / (ablated - clean))
                ),
            },
            f"for losses clean {clean}, spliced {spliced}, ablated {ablated} it gave {value:.3g}. "
            "It should be 1 if spliced equals clean, and 0 if it equals ablated",
        )


@exercise(
    "Exercise 7.5",
    passed="the mean vector is what nothing but b_dec could do, and no change of scale moves it",
)
def explained(explained_variance: Callable) -> None:
    """`explained_variance(x_ND, x_hat_ND)` -> 1 - residual / variance about the mean vector."""
    x_ND = _random(200, 6) * torch.linspace(0.3, 3, 6) + torch.linspace(-2, 5, 6)
    x_hat_ND = x_ND + 0.4 * _random(200, 6, seed=1) + torch.linspace(0, 0.5, 6)
    wide = {"x_ND": 10 * x_ND, "x_hat_ND": 10 * x_hat_ND}
    value = _number(call(explained_variance, x_ND, x_hat_ND), "the explained variance")
    residual, spread = (x_ND - x_hat_ND).square().sum(), (x_ND - x_ND.mean(0)).square().sum()
    diagnose(
        value,
        1 - residual / spread,
        _mistaken_variances(x_ND, x_hat_ND),
        "it should be 1 - (sum of squared errors) / (sum of squared distances from the mean "
        "vector x_ND.mean(0))",
        rtol=2e-2 * abs(1 - value) if math.isfinite(value) else 1e-4,  # N or N - 1: both are right
    )
    again = _number(call(explained_variance, *wide.values()), "the explained variance")
    if not close(again, value, rtol=1e-3):
        raise Mistake("everything ten times as large should change nothing, but it did")


def _mistaken_variances(x_ND: Tensor, x_hat_ND: Tensor) -> dict[str, Tensor]:
    """Hint -> the explained variance that this mistake gives."""
    residual_ND, square_ND = (x_ND - x_hat_ND).square(), x_ND.square()
    about_mean_ND = (x_ND - x_ND.mean(0)).square()
    mean_of_squares = (square_ND.mean(0) - square_ND.mean(0).square()).sum()
    return {
        "(mean of x²)² is still there: subtract the mean from x, then square": (
            1 - residual_ND.sum(1).mean() / mean_of_squares
        ),
        "nothing is subtracted now: then answering the mean vector already scores high": (
            1 - residual_ND.sum() / square_ND.sum()
        ),
        "one mean for all numbers was subtracted: each dimension has its own, x_ND.mean(0)": (
            1 - residual_ND.sum() / (x_ND - x_ND.mean()).square().sum()
        ),
        "the mean of each row was subtracted; the average is over the tokens, x_ND.mean(0)": (
            1 - residual_ND.sum() / (x_ND - x_ND.mean(1, keepdim=True)).square().sum()
        ),
        "a ratio for each dimension, then their mean, lets a tiny dimension count as much as "
        "a large one: sum both before you divide": (
            (1 - residual_ND.sum(0) / about_mean_ND.sum(0)).mean()
        ),
        "a ratio for each row, then their mean: sum both over the rows before you divide": (
            (1 - residual_ND.sum(1) / about_mean_ND.sum(1)).mean()
        ),
        "the variance of the error forgives an error that is always the same: take its square": (
            1 - (x_ND - x_hat_ND).var(0).sum() / x_ND.var(0).sum()
        ),
        "that is the share left *un*explained: 1 minus it": (
            residual_ND.sum() / about_mean_ND.sum()
        ),
    }


@exercise(
    "Exercise 7.6",
    passed="four numbers for each weight, and a buffer: known before anything is spent",
)
def memory(training_bytes: Callable) -> None:
    """`training_bytes(d_in, d_sae, buffer_rows)` -> bytes, in fp32."""
    for d_in, d_sae, n in ((512, 4_096, 200_000), (4_096, 8_192, 10_000)):
        value = _number(call(training_bytes, d_in, d_sae, n), "the result")
        weights, buffer = 2 * d_in * d_sae + d_in + d_sae, n * d_in
        right = 4 * (4 * weights + buffer)
        diagnose(
            value,
            right,
            {
                "this counts numbers: in fp32 each takes 4 bytes": right / 4,
                "this counts bits: a byte has 8": 8 * right,
                "give bytes, not gigabytes": right / 1e9,
                "give bytes, not gigabytes; they are easily divided afterwards": right / 2**30,
                "the buffer of activations is missing": 16 * weights,
                "only the weights and the buffer: gradients and Adam's two moments are as large "
                "as the weights, each": 4 * (weights + buffer),
                "three numbers a weight: Adam keeps two moments, or is the gradient missing?": (
                    4 * (3 * weights + buffer)
                ),
                "half of it: are Adam's two moments missing, or one of the two matrices? Encoder "
                "and decoder both have d_in * d_sae": 4 * (2 * weights + buffer),
                "the buffer holds activations, which are d_in wide, not features": (
                    4 * (4 * weights + n * d_sae)
                ),
                "the buffer is not learned: it has no gradient and no moments": (
                    16 * (weights + buffer)
                ),
            },
            f"for d_in {d_in:,}, d_sae {d_sae:,} and {n:,} rows it gave {value:,.0f} bytes. Count "
            "4 bytes for each weight, gradient, first and second moment, and for each number in "
            "the buffer",
            rtol=5e-3,  # with or without the biases
        )
