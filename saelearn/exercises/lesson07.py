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
from saelearn.exercises.trainable import unchanged
from saelearn.sae import SAE
from saelearn.train.memory import needed


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _number(value: object, name: str) -> float:
    hint = "One number for all the data, not one for each row or dimension."
    return float(need(value, (), name, hint))


@guesses.prediction
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
    "Exercise 7.1: rows",
    passed="one row a token, documents one after another, without the opening token",
)
def rows(to_rows: Callable) -> None:
    """`to_rows(x_BTD)` -> `x_ND` without position 0."""
    for B, T, D in ((3, 5, 4), (2, 4, 6)):
        _judge_rows(to_rows, torch.arange(float(B * T * D)).reshape(B, T, D))


def _judge_rows(to_rows: Callable, x_BTD: Tensor) -> None:
    B, T, D = x_BTD.shape
    x_ND = as_tensor(call(to_rows, given := x_BTD.clone()), "the result")
    unchanged(given, x_BTD, "x_BTD")
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
    "Exercise 7.2: the scale",
    passed="one scalar brings every model's activations to one size, so that one coefficient fits",
)
def scale(scale_of: Callable) -> None:
    """`scale_of(x_ND)` -> the scalar after which the mean squared norm is D."""
    for N, D, seed in ((400, 16, 0), (300, 9, 5)):
        length_N1 = _random(N, 1, seed=seed).exp()  # rows of different lengths, off centre
        offset_D = torch.linspace(-2, 6, D)
        _judge_scale(scale_of, 3.0 * length_N1 * _random(N, D, seed=seed + 1) + offset_D)


def _judge_scale(scale_of: Callable, x_ND: Tensor) -> None:
    D = x_ND.shape[1]
    square_N = x_ND.double().square().sum(1)
    right = math.sqrt(D / float(square_N.mean()))
    value = _number(call(scale_of, given := x_ND.clone()), "the scale")
    unchanged(given, x_ND, "x_ND")
    spread = (x_ND - x_ND.mean(0)).double().square().sum(1).mean()
    diagnose(
        value,
        right,
        {
            "the square root is missing: the norm grows with the scale, its square with the "
            "scale's square": right**2,
            "upside down: this is the size as it is; the scale is what brings it to sqrt(D)": (
                1 / right
            ),
            "this brings the mean squared norm to 1; here it should become D": (
                right / math.sqrt(D)
            ),
            "this brings the mean *norm* to sqrt(D); square first, then average": (
                math.sqrt(D) / float(square_N.sqrt().mean())
            ),
            "the mean was subtracted first: the convention scales the activations as they are": (
                math.sqrt(D / float(spread))
            ),
            "the standard deviation leaves out the mean: the convention scales the activations "
            "as they are": 1 / float(x_ND.double().std()),
        },
        "after (x_ND * scale), the mean over rows of the summed squares should be D",
        rtol=1e-3,
    )


@exercise(
    "Exercise 7.3: resampling",
    passed="a new start where the error is large, and a quiet one: 0.2 of the living",
)
def revive(function: Callable) -> None:
    """`revive(sae, dead_F, x_BD, generator)` changes `sae` in place and returns it."""
    for D, F, n_dead, seed in ((6, 40, 30, 0), (9, 420, 400, 1)):
        _judge_revival(function, _asleep(D, F, seed), torch.arange(F) % F < n_dead, seed)


def _asleep(D: int, F: int, seed: int) -> SAE:
    """An SAE in which nothing fires, so that its output is b_dec and its error known."""
    sae = SAE(D, F, seed=seed)
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 3, F)[:, None]
        sae.W_enc *= torch.linspace(2, 0.3, F)
        sae.b_dec += _random(D, seed=seed + 2)
        sae.b_enc.fill_(-1e3)
    return sae


def _judge_revival(function: Callable, sae: SAE, dead_F: Tensor, seed: int) -> None:
    F, D = sae.W_dec.shape
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    parameters = {name: id(p) for name, p in sae.named_parameters()}
    direction_BD = _random(60, D, seed=seed + 3)
    direction_BD /= direction_BD.norm(dim=1, keepdim=True)
    bad_B = torch.arange(60) % 2 == 0  # their squared error is three times the others'
    x_BD = direction_BD * torch.where(bad_B, 3.0**0.5, 1.0)[:, None] + before["b_dec"]
    given = x_BD.clone(), dead_F.clone()
    returned = call(function, sae, given[1], given[0], torch.Generator().manual_seed(seed))
    del returned
    unchanged(given[0], x_BD, "x_BD")
    after = dict(sae.named_parameters())
    if {name: id(p) for name, p in after.items()} != parameters:
        raise Mistake("a parameter was replaced by another tensor, which Adam does not know: write "
                      "into it, sae.W_dec[dead_F] = ...")  # fmt: skip
    after = {name: p.detach() for name, p in after.items()}
    if all(torch.equal(after[name], before[name]) for name in after):
        raise Mistake("nothing has changed: write into the parameters of `sae`, under no_grad")
    _judge_the_living(before, after, dead_F)
    drawn_I = _judge_directions(before, after, dead_F, direction_BD, x_BD)
    _judge_lengths(before, after, dead_F)
    if int(dead_F.sum()) >= 400:
        _judge_draws(bad_B[drawn_I].double().mean(), len(drawn_I.unique()))
        twin = _asleep(D, F, seed)
        call(function, twin, dead_F.clone(), x_BD.clone(), torch.Generator().manual_seed(seed))
        if not torch.equal(twin.W_dec, sae.W_dec):
            raise Mistake("the same generator drew something else: hand `generator` to multinomial")


def _judge_the_living(before: dict, after: dict, dead_F: Tensor) -> None:
    changed = {
        "W_enc": before["W_enc"][:, ~dead_F].ne(after["W_enc"][:, ~dead_F]),
        "b_enc": before["b_enc"][~dead_F].ne(after["b_enc"][~dead_F]),
        "W_dec": before["W_dec"][~dead_F].ne(after["W_dec"][~dead_F]),
        "b_dec": before["b_dec"].ne(after["b_dec"]),
    }
    for name, changed_ in changed.items():
        if changed_.any():
            raise Mistake(f"{name} of features that are alive has changed: only dead ones start")
    if after["b_enc"][dead_F].any():
        raise Mistake("b_enc of the dead still keeps them silent: set it to 0")


def _judge_directions(
    before: dict, after: dict, dead_F: Tensor, direction_BD: Tensor, x_BD: Tensor
) -> Tensor:
    """Which row each dead feature was given."""
    rows_ID = after["W_dec"][dead_F]
    cosine_IB = torch.nn.functional.normalize(rows_ID, dim=1) @ direction_BD.T
    if (cosine_IB.amax(1) < 0.999).any():
        raw_BD = torch.nn.functional.normalize(x_BD, dim=1)
        raw_IB = torch.nn.functional.normalize(rows_ID, dim=1) @ raw_BD.T
        if (raw_IB.amax(1) > 0.999).all():
            raise Mistake("the rows of W_dec point at x; the decoder starts from b_dec: x - b_dec")
        if ((-cosine_IB).amax(1) > 0.999).all():
            raise Mistake("the rows of W_dec point away from the badly reconstructed x: the sign")
        raise Mistake("a new row of W_dec should point along x - b_dec of one row that was drawn")
    columns_DI = torch.nn.functional.normalize(after["W_enc"][:, dead_F], dim=0)
    if ((columns_DI.T * rows_ID).sum(1) < 0.999 * rows_ID.norm(dim=1)).any():
        raise Mistake("the columns of W_enc should point where the new rows of W_dec point")
    return cosine_IB.argmax(1)


def _judge_lengths(before: dict, after: dict, dead_F: Tensor) -> None:
    rows_I = after["W_dec"][dead_F].norm(dim=1)
    living = before["W_dec"][~dead_F].norm(dim=1).mean()
    if not close(rows_I, living.expand_as(rows_I), rtol=1e-3):
        raise Mistake(f"the new rows of W_dec should be as long as the living ones are on average, "
                      f"{living:.3g}; the first is {rows_I[0]:.3g} long")  # fmt: skip
    columns_I, length_F = after["W_enc"][:, dead_F].norm(dim=0), before["W_enc"].norm(dim=0)
    diagnose(
        columns_I,
        (0.2 * length_F[~dead_F].mean()).expand_as(columns_I),
        {
            "the factor 0.2 is missing: a loud newcomer would fire everywhere": (
                length_F[~dead_F].mean().expand_as(columns_I)
            ),
            "the mean length is that of the *living* columns of W_enc": (
                (0.2 * length_F.mean()).expand_as(columns_I)
            ),
            "the columns of W_enc have length 0.2: it should be 0.2 times the living ones' mean": (
                torch.full_like(columns_I, 0.2)
            ),
        },
        "the new columns of W_enc should be 0.2 times as long as the living ones are on average, "
        f"{0.2 * length_F[~dead_F].mean():.3g}; the first is {columns_I[0]:.3g} long",
        rtol=1e-3,
    )


def _judge_draws(share: Tensor, different: int) -> None:
    """Of rows with three times the squared error, 0.9 are expected (9 : 1)."""
    if different < 10:
        raise Mistake("all newcomers start at the same few rows; draw for each feature anew")
    if share > 0.96:
        raise Mistake("only the worst rows are taken; draw, so that others have a chance")
    if share < 0.6:
        raise Mistake("rows are drawn alike, whatever their error: weigh them by it")
    if share < 0.83:
        raise Mistake("the weight is the squared error; it should be its square once more")


@exercise(
    "Exercise 7.4: loss recovered",
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
    "Exercise 7.5: bug hunt",
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
    "Exercise 7.6: memory",
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


def counted(d_in: int, d_sae: int, buffer_rows: int) -> int:
    """What the lesson goes on with while exercise 7.6 is open: bytes in fp32."""
    parts = needed(d_in, d_sae, 1)
    return sum(parts[name] for name in ("weights", "gradients", "moments")) + 4 * buffer_rows * d_in
