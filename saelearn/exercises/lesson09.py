"""Checks of lesson 09, steering.

Every target is computed here, from the definitions and without the library's edits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saelearn import tiny
from saelearn.exercises import (
    Mistake,
    Verdict,
    as_tensor,
    call,
    close,
    diagnose,
    exercise,
    guesses,
    need_shape,
)
from saelearn.sae import SAE


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@exercise(
    "Exercise 9.1: the push",
    passed="the same step for every token, as long as you said, and x is kept",
)
def push(function: Callable) -> None:
    """`push(x_BTD, direction_D, amount)` -> `[B, T, D]`."""
    x_BTD, direction_D, amount = _normal(2, 3, 5), 3 * _normal(5, seed=1), 4.0
    unit_D = direction_D / direction_D.norm()
    given_BTD = x_BTD.clone()
    got = need_shape(
        call(function, given_BTD, direction_D.clone(), amount),
        (2, 3, 5),
        "the result",
        "Same shape as x: the vector is added to every token.",
    )
    wrong = {
        "divide the direction by its length first: amount alone should say how far": (
            x_BTD + amount * direction_D
        ),
        "x is lost: add to what is there": (amount * unit_D).expand(2, 3, 5),
        "this goes backwards: plus, not minus": x_BTD - amount * unit_D,
        "divide by the length, not by its square": (
            x_BTD + amount * direction_D / direction_D.square().sum()
        ),
        "amount is missing": x_BTD + unit_D,
    }
    otherwise = "compare with x + amount * direction / ||direction||"
    diagnose(got, x_BTD + amount * unit_D, wrong, otherwise, rtol=1e-4, atol=1e-5)
    if not torch.equal(given_BTD, x_BTD):
        raise Mistake("x itself was changed: write x + ..., not x += ..., and return the sum")


def pushed(x_BTD: Tensor, direction_D: Tensor, amount: float) -> Tensor:
    """What the lesson goes on with while exercise 9.1 is open. `[B, T, D]`."""
    return x_BTD + amount * direction_D / direction_D.norm()


@exercise(
    "Exercise 9.2: the unit", passed="how far a token usually lies from the middle of the cloud"
)
def unit(typical_norm: Callable) -> None:
    """`typical_norm(x_ND)` -> one number."""
    x_ND = _normal(50, 6, seed=2) * torch.arange(1.0, 7.0) + 10.0
    centred_ND = x_ND - x_ND.mean(0)
    length_N = centred_ND.norm(dim=1)
    got = need_shape(call(typical_norm, x_ND), (), "the unit", "One number for the whole site.")
    wrong = {
        "subtract the mean vector first: all tokens share it, so it says nothing": (
            x_ND.norm(dim=1).mean()
        ),
        "subtract the mean of each dimension over the rows (dim=0), not each row's own": (
            (x_ND - x_ND.mean(1, keepdim=True)).norm(dim=1).mean()
        ),
        "one mean for each dimension: x_ND.mean(0), not x_ND.mean()": (
            (x_ND - x_ND.mean()).norm(dim=1).mean()
        ),
        "that is the root of the mean square; here: the mean of the lengths": (
            length_N.square().mean().sqrt()
        ),
        "lengths, not their squares": length_N.square().mean(),
        "one length for each row (dim=1), then their mean": centred_ND.norm(),
        "lengths along dim=1: each row is a token": centred_ND.norm(dim=0).mean(),
    }
    otherwise = "compare with the mean over rows of ||x - mean(x)||"
    diagnose(got, length_N.mean(), wrong, otherwise, rtol=1e-4, atol=1e-5)


@exercise(
    "Exercise 9.4: which slice",
    passed="out of the feature, into the stream: a column of that matrix",
)
def direction(function: Callable) -> None:
    """`decoder_direction(decoder, feature)` -> `[D]`, of any length, for an nn.Linear(F, D)."""
    feature = 4
    for d_sae, d_in in ((6, 6), (9, 6)):  # the square one is where a row fits and still is wrong
        decoder = nn.Linear(d_sae, d_in)
        decoder.weight.data = _normal(d_in, d_sae, seed=d_sae)
        hint = "One number for each D of the `decoder` that the function is given."
        got = need_shape(call(function, decoder, feature), (d_in,), "the direction", hint)
        right = decoder.weight.detach()[:, feature].double()
        row = decoder.weight.detach()[feature].double() if d_sae == d_in else -right
        _same_way(got, right, row, decoder)


def _same_way(got: Tensor, right: Tensor, row: Tensor, decoder: nn.Linear) -> None:
    cosine = float(torch.cosine_similarity(got, right, dim=0))
    if cosine > 1 - 1e-6:
        return
    if close(got, row, rtol=1e-3):
        raise Mistake(
            "that is a row: how one dimension is mixed out of all features. Take a column"
        )
    if close(got, right + decoder.bias.detach().double(), rtol=1e-3):
        raise Mistake("without the bias: it is added once, whichever features are on")
    if cosine < -1 + 1e-6:
        raise Mistake("this points the opposite way")
    raise Mistake(
        "nn.Linear(F, D) keeps its weight as [D, F]: which slice has one number for each D?"
    )


@exercise(
    "Exercise 9.5: clamp", passed="only this feature's share of x is exchanged; the rest stays"
)
def clamp(function: Callable) -> None:
    """`clamp(x_BD, sae, feature, value)` -> `[B, D]`."""
    sae, x_BD, feature = SAE(6, 10, decoder_init_norm=2.0, seed=3), _normal(8, 6, seed=4), 2
    sae.W_enc.data += 0.3 * _normal(6, 10, seed=5)
    sae.b_dec.data = _normal(6, seed=6)
    with torch.no_grad():
        before_BF = ((x_BD - sae.b_dec) @ sae.W_enc) + sae.b_enc
        f_BF, row_D = before_BF.relu(), sae.W_dec[feature].clone()
    old_B1 = f_BF[:, [feature]]
    for value in (5.0, 0.5):  # above all activations of this feature, and below the largest
        step_B1 = value - old_B1
        with torch.no_grad():
            set_BF = f_BF.clone()
            set_BF[:, feature] = value
            replaced_BD = set_BF @ sae.W_dec + sae.b_dec
            wrong = {
                "you put the reconstruction in x's place: what the SAE missed is lost. Change x by "
                "the difference only": replaced_BD,
                "that adds `value` on top; the feature may be on already: subtract what it is": (
                    x_BD + value * row_D
                ),
                "W_dec writes, W_enc only looks: use the decoder row": (
                    x_BD + step_B1 * sae.W_enc[:, feature]
                ),
                "keep the decoder row's own length: value is in the feature's units": (
                    x_BD + step_B1 * row_D / row_D.norm()
                ),
                "the other way round: value - f, not f - value": x_BD - step_B1 * row_D,
                "that takes the feature out (value 0), and puts nothing in": x_BD - old_B1 * row_D,
                "a clamp lowers a feature too: where it is above value, value - f is negative": (
                    x_BD + step_B1.relu() * row_D
                ),
                "set it where it is silent, too: there the step is value - 0": (
                    x_BD + step_B1 * (old_B1 > 0) * row_D
                ),
                "f is never negative: take it from sae.encode, after the ReLU": (
                    x_BD + (value - before_BF[:, [feature]]) * row_D
                ),
            }
        got = need_shape(
            call(function, x_BD.clone(), sae, feature, value),
            (8, 6),
            "the result",
            "Same shape as x.",
        )
        otherwise = "compare with x + (value - f_i(x)) * W_dec_i"
        diagnose(got, x_BD + step_B1 * row_D, wrong, otherwise, rtol=1e-4, atol=1e-5)


def clamped(x_BD: Tensor, sae: SAE, feature: int, value: float) -> Tensor:
    """What the lesson goes on with while exercise 9.5 is open. `[B, D]`."""
    return x_BD + (value - sae.encode(x_BD)[:, [feature]]) * sae.W_dec[feature]


# (rates, validities) of three candidates at three strengths; each mistake goes wrong on one of them
_VALID = [[0.9, 0.9, 0.9], [0.9, 0.8, 0.8], [0.3, 0.3, 0.2]]
_TABLES = (
    (
        [[0.2, 0.5, 0.7], [0.6, 1, 1], [0.1, 0.2, 0.9]],
        [[0.9, 0.9, 0.8], [0.5, 0.2, 0.1], [1, 1, 1]],
    ),
    ([[0.5, 0.6, 0.6], [0, 0.1, 1], [0.1, 0.1, 0.1]], [[0.9, 0.9, 0.9], [1, 1, 0.9], [1, 1, 1]]),
    ([[0.9, 0, 0], [0.5, 0.4, 0.5], [0.9, 0.9, 0.9]], _VALID),
    ([[1, 0, 0.9], [0.5, 0.6, 0.6], [0.2, 0.2, 0.2]], [[0.1, 1, 0.2], [0.6, 0.5, 0.5], [1, 1, 1]]),
    (
        [[1, 0.2, 0.2], [0.1, 0.1, 0.1], [0.9, 0.6, 0.5]],
        [[0.1, 0.1, 0.1], [1, 1, 1], [0.8, 0.8, 0.8]],
    ),
)


@exercise(
    "Exercise 9.3: choose", passed="loud and broken loses, and so does well-formed and silent"
)
def choose(function: Callable) -> None:
    """`choose(rate_FS, validity_FS)` -> index of the best candidate."""
    answers, rights, guesses = [], [], {}
    for rate, validity in _TABLES:
        rate_FS = torch.tensor(rate, dtype=torch.float)
        validity_FS = torch.tensor(validity, dtype=torch.float)
        got = as_tensor(call(function, rate_FS.clone(), validity_FS.clone()), "the choice")
        if got.numel() != 1:
            raise Mistake("one index: average over the strengths (dim=1), then argmax")
        answers.append(float(got))
        product_FS = rate_FS * validity_FS
        rights.append(int(product_FS.mean(1).argmax()))
        wrong = {
            "the best by rate alone degenerates into babble: multiply by validity": rate_FS.mean(1),
            "by validity alone the one wins that says nothing of it": validity_FS.mean(1),
            "one lucky strength decides here: take the mean over strengths, not the maximum": (
                product_FS.amax(1)
            ),
            "multiply at each strength, then average: a product of means rewards babble at one "
            "strength and silence at another": rate_FS.mean(1) * validity_FS.mean(1),
            "rate plus validity: silent, well-formed text scores 1. Multiply them": (
                rate_FS.mean(1) + validity_FS.mean(1)
            ),
            "that is the best strength: average over the strengths, dim=1": product_FS.mean(0),
        }
        for hint, score in wrong.items():
            guesses.setdefault(hint, []).append(int(score.argmax()))
    if answers == rights:
        return
    if any(answer % 1 for answer in answers):
        raise Mistake("this is a score, not an index: argmax instead of max")
    for hint, indices in guesses.items():
        if answers == indices:  # on all tables, since three candidates often coincide on one
            raise Mistake(hint)
    raise Mistake("an index into the rows (candidates) is needed: argmax of the mean product")


def chosen(rate_FS: Tensor, validity_FS: Tensor) -> int:
    """What the lesson goes on with while exercise 9.3 is open: the best mean product."""
    return int((rate_FS * validity_FS).mean(1).argmax())


AFTER = 10  # the first position after a push at the first eight words: earlier ones may stammer
ENOUGH = 0.25  # of the texts; one in seven without a push


@exercise("Exercise 9.6: Golden Gate", passed="it speaks of the bridge, and still speaks")
def bridge(tokens_NT: Tensor) -> None:
    """A quarter of 100 or more texts name the bridge after the push, at a validity of 0.8."""
    tokens_NT = as_tensor(tokens_NT, "the texts").long()
    if tokens_NT.ndim != 2 or len(tokens_NT) < 100 or tokens_NT.shape[1] < 40:
        raise Mistake(
            "generate at least 100 texts of 40 tokens or more: tokens_NT from lm.generate"
        )
    if len(tokens_NT.unique(dim=0)) < len(tokens_NT) / 2:
        raise Mistake("most of these texts are copies: write as many different ones")
    prompt_T = (tokens_NT == tokens_NT[0]).all(0).long().cumprod(0)  # what all begin with
    told_NT = tokens_NT[:1, : int(prompt_T.sum())]
    if told_NT.shape[1] >= 3 and tiny.mention_rate(told_NT, "Golden_Gate_Bridge"):
        raise Mistake("all texts begin with the bridge: the prompt told them. Begin with <doc>")
    late_NT, valid = tokens_NT[:, AFTER:], tiny.validity(tokens_NT)
    rate = tiny.mention_rate(late_NT, "Golden_Gate_Bridge")
    whole = tiny.mention_rate(tokens_NT, "Golden_Gate_Bridge")
    if rate < ENOUGH and tiny.mention_rate(late_NT, "golden_retriever") > 0.3:
        raise Mistake("these texts speak of golden retrievers: take the bridge's direction")
    if rate < ENOUGH and valid < 0.8:
        raise Mistake(
            f"only {rate:.0%} speak of it and validity is {valid:.2f}: far too strong, or not its "
            "direction"
        )
    if rate < ENOUGH < whole - ENOUGH:
        raise Mistake(
            f"{whole:.0%} of the texts name the bridge, but only {rate:.0%} from position {AFTER} "
            "on: they stammer it while they are pushed. Compare strengths and features by the late "
            "rate"
        )
    if rate < ENOUGH:
        raise Mistake(
            f"only {rate:.0%} speak of the bridge from position {AFTER} on (not steered, about one "
            "in seven does): try another feature of your list; if it is the right one, push further"
        )
    if valid < 0.8:
        raise Mistake(f"they babble (validity {valid:.2f}): less strength, or fewer positions")


@guesses.prediction
def predicted_rate(guess: Any, rate: float) -> Verdict:
    """A reply to the expected share of steered texts; any guess is valid, and nothing is graded."""
    measured = f"{rate:.0%} of the texts."
    return guesses.reply_to_number(
        "how many will speak of it", guess, rate, within=0.1,
        near=f"about right: {measured}",
        low=f"more: {measured} One vector at eight places is enough. "
        "But read the texts before you rejoice.",
        high=f"fewer: {measured} Not every text follows a push that soon ends.",
    )  # fmt: skip
