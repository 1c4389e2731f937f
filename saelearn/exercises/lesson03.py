"""Checks of lesson 03, sparse coding.

Every target is computed here, from the definitions and without the library's solvers, from copies
that an answer never sees.
Shapes: B batch, D width of a row, F atoms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, full, randn, where, zeros_like
from torch.linalg import eigvalsh

from saelearn.exercises import (
    Mistake,
    Verdict,
    as_tensor,
    call,
    close,
    diagnose,
    difference,
    exercise,
    guesses,
    need_shape,
)
from saelearn.exercises.landscape import lowest, two_atoms
from saelearn.exercises.trainable import unchanged

__all__ = [
    "dictionary_step",
    "first_step_encoder",
    "ista_step",
    "lowest",
    "predicted_gap",
    "predicted_on",
    "predicted_steps",
    "shuffled_pixels",
    "soft_threshold",
    "two_atoms",
]


def _draw(*shape: int, seed: int) -> Tensor:
    return randn(*shape, generator=torch.Generator().manual_seed(seed))


def _unit(W_FD: Tensor) -> Tensor:
    return W_FD / W_FD.norm(dim=1, keepdim=True)


def _soft(a: Tensor, threshold: float | Tensor) -> Tensor:
    """Three cases, as the definition has them."""
    high, low = a - threshold, a + threshold
    return where(a > threshold, high, where(a < -threshold, low, zeros_like(a)))


def _steepest(W_FD: Tensor) -> Tensor:
    """The dictionary's own curvature."""
    return eigvalsh(W_FD @ W_FD.T)[-1]


def _call(function: Callable, *args: Any, remedies: dict[str, str] | None = None) -> Any:
    """`call` with copies that must stay as they are; a remedy for errors with such words."""
    copies = [each.clone() if isinstance(each, Tensor) else each for each in args]
    try:
        result = call(function, *copies)
    except (RuntimeError, ValueError) as error:
        for words, remedy in (remedies or {}).items():
            if words in str(error):
                told = type(error)(f"{error}\n{remedy}")
                raise told.with_traceback(error.__traceback__) from None
        raise
    for number, (now, before) in enumerate(zip(copies, args, strict=True)):
        if isinstance(before, Tensor):
            unchanged(now, before, f"argument {number + 1} of your function")
    return result


@guesses.prediction
def predicted_on(guess: Any, n_on: int) -> Verdict:
    """A reply to how many of the 64 numbers of the shortest code are not 0."""

    def answer(guess: Any) -> str:
        value = guesses.number(guess, 0, 64)
        if value > n_on - 3:
            return f"right, {n_on}: it pays by the square, so it spreads the work over everyone."
        which = "Of 1 and 0, or 0.5 and 0.5, the second is shorter."
        if value <= 5:
            return f"that is the truth, but who tells the method? It has {n_on}. {which}"
        if value == 32:
            return f"32 would do (32 equations), but the shortest has {n_on}. {which}"
        return f"more: {n_on}. {which}"

    return guesses.reply("the shortest code", guess, answer)


@exercise(
    "Exercise 3.1: the soft threshold",
    passed="what is small becomes exactly 0, everything else moves toward 0 by the same amount.",
)
def soft_threshold(function: Callable) -> None:
    """`soft(a, threshold)`, elementwise, for negative numbers too."""
    edge = torch.tensor([-1.5, -0.6, -0.2, 0.0, 0.1, 0.4, 0.9, 2.0])
    whole = "a is a whole tensor: `if` and max() want one number; use torch.relu, entry by entry."
    for a, t in ((edge, 0.3), (edge, 0.5), (_draw(3, 5, seed=32), 0.8)):
        answer = _call(function, a, t, remedies={"ambiguous": whole})
        z = need_shape(answer, tuple(a.shape), "the result")
        if z.isnan().any():
            raise Mistake("there is a NaN: a / |a| is 0 / 0 at a = 0; a.sign() is 0 there")
        size, past = a.abs(), "small numbers pass through 0 and come out on the other side: "
        wrong = {
            "negative numbers all became 0; here they move up toward 0: treat |a|, then give the "
            "sign back.": (a - t).relu(),
            "subtract the threshold from what survives, don't only cut.": a * (size > t),
            "the sign is lost: multiply by a.sign() at the end.": (size - t).relu(),
            f"{past}stop them at 0.": a.sign() * (size - t),
            f"{past}two cases are too few.": where(a > 0, a - t, a + t),
            "two cases are too few: small numbers become 0.": where(a > t, a - t, a + t),
            "negative numbers move up, toward 0: a + threshold there.": (a - t) * (size > t),
            "that moves everything down; negative numbers should move up, small ones stop at 0.": (
                a - t
            ),
            "that scales; the penalty's slope is the same everywhere: subtract.": a * (1 - t),
            "that is what is cut away: keep the rest, a minus this.": a.clamp(-t, t),
            "you subtract half the threshold; the λ/2 is already in it.": _soft(a, t / 2),
        }
        right = _soft(a, t)
        otherwise = "not it: |a| - threshold, at least 0, with the sign of a."
        diagnose(z, right, wrong, f"{otherwise} {difference(z, right)}")


@exercise(
    "Exercise 3.2: one step of ISTA",
    passed="down the error, then threshold: repeat it, and it converges to the best sparse code.",
)
def ista_step(step: Callable) -> None:
    """`ista_step(x_BD, f_BF, W_dec_FD, l1_coefficient, curvature)` -> `[B, F]`."""
    for B, D, F, l1, c in ((4, 3, 6, 0.4, 2.5), (2, 5, 3, 0.7, 1.6)):
        x_BD, f_BF = _draw(B, D, seed=31), _draw(B, F, seed=32)
        _judge_ista_step(step, x_BD, f_BF, _unit(_draw(F, D, seed=33)), l1, c)


def _judge_ista_step(
    step: Callable, x_BD: Tensor, f_BF: Tensor, W_FD: Tensor, l1: float, c: float
) -> None:
    pull, own = (x_BD - f_BF @ W_FD) @ W_FD.T, _steepest(W_FD)
    moved, t = f_BF + pull / c, l1 / (2 * c)
    shapes = "The residual is [B, D]; times W_dec_FD.T it is [B, F]."
    new_BF = _call(step, x_BD, f_BF, W_FD, l1, c, remedies={"cannot be multiplied": shapes})
    new_BF = need_shape(new_BF, tuple(f_BF.shape), "the new code", shapes)
    wrong = {
        "the threshold is missing: this is plain gradient descent.": moved,
        "that goes uphill: add what is left over, x - f W.": _soft(f_BF - pull / c, t),
        "the threshold is λ / (2c): mind the 2 of the squared error.": _soft(moved, 2 * t),
        "the step is 1/c as long, and so is the threshold: λ / (2c).": _soft(moved, l1 / 2),
        "λ itself is not the threshold: it is λ / (2c).": _soft(moved, l1),
        "too long: divide the step by the curvature, or it overshoots.": _soft(f_BF + pull, t),
        "with the gradient's 2 and a step of 1/c it is twice too long: 1/(2c) and 2 cancel.": (
            _soft(f_BF + 2 * pull / c, t)
        ),
        "the residual is x - f W: what this code explains already must go.": (
            _soft(f_BF + x_BD @ W_FD.T / c, t)
        ),
        "the old code is lost: the step starts from f_BF.": _soft(pull / c, t),
        "codes may be negative here; use the soft threshold, not ReLU.": (moved - t).relu(),
        "threshold last: first the step, then the threshold.": _soft(f_BF, t) + pull / c,
        "the threshold cuts the whole new code, f and step together.": f_BF + _soft(pull / c, t),
        "use the curvature that is handed in.": _soft(f_BF + pull / own, l1 / (2 * own)),
        "l1 / 2 * c multiplies by c; write l1 / (2 * c).": _soft(moved, l1 / 2 * c),
    }
    right = _soft(moved, t)
    otherwise = "compare with soft(f + (x - f W) W^T / c, λ / (2c)), term by term."
    diagnose(new_BF, right, wrong, f"{otherwise} {difference(new_BF, right)}", atol=1e-5)


@exercise(
    "Exercise 3.4: the dictionary's step",
    passed="each atom moves toward what its rows were missing, and keeps length 1.",
)
def dictionary_step(step: Callable) -> None:
    """`dictionary_step(W_dec_FD, x_BD, f_BF, rate)` -> `[F, D]`."""
    for B, D, F, rate in ((7, 3, 5, 0.5), (9, 4, 3, 0.8)):
        x_BD, W_FD = _draw(B, D, seed=41), _unit(_draw(F, D, seed=42))
        f_BF = _draw(B, F, seed=43) * (_draw(B, F, seed=44) > 0)
        f_BF[0] = 0.3  # each atom is used somewhere
        _judge_atoms(step, W_FD, x_BD, f_BF, rate)
        _judge_idle(step, W_FD, x_BD, f_BF)


def _judge_atoms(step: Callable, W_FD: Tensor, x_BD: Tensor, f_BF: Tensor, rate: float) -> None:
    shapes = "f_BF.T @ residual_BD is [F, D]."
    remedies = {
        "must match the size": "each atom's number divides its whole row: make them a column, by "
        "[:, None] (or keepdim=True).",
        "cannot be multiplied": shapes,
    }
    new_FD = _call(step, W_FD, x_BD, f_BF, rate, remedies=remedies)
    new_FD = need_shape(new_FD, tuple(W_FD.shape), "the dictionary", shapes)
    used, signed = f_BF.square().sum(0)[:, None], f_BF.sum(0)[:, None].clamp(min=1e-12)
    sums = rate * f_BF.T @ (x_BD - f_BF @ W_FD)
    long = W_FD + sums / used
    wrong = {
        "the atoms have other lengths than 1: then f can shrink and cheat the penalty. Divide "
        "each row by its length.": long,
        "that goes the wrong way: add the residual's share.": _unit(W_FD - sums / used),
        "divide by how much it was used, the sum of f² over the batch.": _unit(W_FD + sums),
        "the mean over the batch is not enough: rare atoms would hardly move. Divide by the "
        "sum of f².": _unit(W_FD + sums / len(x_BD)),
        "use is the sum of f², not of |f|: units must cancel.": (
            _unit(W_FD + sums / f_BF.abs().sum(0)[:, None])
        ),
        "use is the sum of f², not of f: signs would cancel.": _unit(W_FD + sums / signed),
        "the rate is missing.": _unit(W_FD + sums / rate / used),
        "follow the residual x - f W, not x.": _unit(W_FD + rate * f_BF.T @ x_BD / used),
        "each atom is a row: norm(dim=1, keepdim=True), not dim=0.": long / long.norm(dim=0),
        "one length for the whole matrix: each row is to have length 1.": long / long.norm(),
    }
    otherwise = "compare with W_i + rate * Σ_b f_bi r_b / Σ_b f_bi², each row then of length 1."
    right = _unit(long)
    diagnose(new_FD, right, wrong, f"{otherwise} {difference(new_FD, right)}", atol=1e-5)


def _judge_idle(step: Callable, W_FD: Tensor, x_BD: Tensor, f_BF: Tensor) -> None:
    """An atom that no row uses."""
    f_BF = f_BF.clone()
    f_BF[:, 2] = 0
    idle_FD = as_tensor(_call(step, W_FD, x_BD, f_BF, 0.5), "the dictionary")
    if not close(idle_FD[2], W_FD[2], atol=1e-4):
        kept = "an atom that no row uses should stay as it is; yours became 0 / 0 or moved"
        raise Mistake(f"{kept}: .clamp(min=1e-12) below the division")


SHUFFLED = {
    "edges": {"edge", "edges", "same"},
    "noise": {"noise", "nothing", "random", "garbage"},
    "blobs": {"blob", "blobs", "smooth"},
}
NEGATED = {"no", "not", "none", "without", "or", "and", "neither", "never"}


@exercise(
    "Exercise 3.5: predict the shuffled pixels",
    passed="as you say: nothing in the method knows which pixels are neighbours. Now see it.",
)
def shuffled_pixels(guess: Any) -> None:
    """What is learned if all patches have their pixels shuffled in one and the same way."""
    if not isinstance(guess, str):
        raise Mistake('a word is asked for: "edges", "noise" or "blobs"')
    if guess.strip() in ("", "..."):
        raise NotImplementedError
    words = set(re.findall(r"[a-z]+", guess.lower()))
    named = [meaning for meaning, those in SHUFFLED.items() if those & words]
    meant = named[0] if len(named) == 1 and not words & NEGATED else None
    wrong = {
        "noise": "shuffling hides the edges from us. Does it hide them from the method? Look for "
        "the place in its two steps where it uses which pixel lies beside which.",
        "blobs": "then the method would have to know something about neighbours that shuffling "
        "takes away. Which of its two steps would that be?",
    }
    if meant in wrong:
        raise Mistake(wrong[meant])
    if meant is None:
        raise Mistake('choose one of "edges", "noise" and "blobs", and write no other word')


@exercise(
    "Exercise 3.6: the first step is an encoder",
    passed="one matrix, one bias, one ReLU: ISTA's first step is an SAE's encoder.",
)
def first_step_encoder(encoder: Callable) -> None:
    """`first_step_encoder(W_dec_FD, l1_coefficient, curvature)` -> `W_enc_DF`, `b_enc`."""
    for F, D, l1, c in ((6, 4, 0.3, 2.2), (3, 5, 0.8, 1.4)):
        _judge_encoder(encoder, _unit(_draw(F, D, seed=61)), l1, c)


def _judge_encoder(encoder: Callable, W_FD: Tensor, l1: float, c: float) -> None:
    n_atoms = len(W_FD)
    answer = _call(encoder, W_FD, l1, c)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Mistake("return two things: W_enc_DF, b_enc")
    if any(part is ... or part is None for part in answer):
        raise NotImplementedError
    n_numbers = as_tensor(answer[0], "W_enc_DF").numel()
    if n_numbers in (1, n_atoms) and as_tensor(answer[1], "b").ndim == 2:
        raise Mistake("the order is W_enc_DF, b_enc: the matrix first, then the bias")
    hint = "x_BD @ W_enc_DF should be [B, F]: transpose the dictionary."
    W_enc_DF = need_shape(answer[0], tuple(W_FD.T.shape), "W_enc_DF", hint)
    _judge_matrix(W_enc_DF, W_FD, c)
    b_enc = as_tensor(answer[1], "b_enc")
    if tuple(b_enc.shape) not in ((), (1,), (n_atoms,), (1, n_atoms)):
        raise Mistake(f"b_enc has shape {tuple(b_enc.shape)}: one number, or one for each atom "
                      f"({n_atoms})")  # fmt: skip
    _judge_bias(b_enc.reshape(-1).expand(n_atoms), l1, c)


def _judge_matrix(W_enc_DF: Tensor, W_FD: Tensor, c: float) -> None:
    wrong = {
        "W_enc: the step is 1/c long, so divide by the curvature.": W_FD.T,
        "W_enc: the gradient's 2 and the step's 1/(2c) make 1/c.": 2 * W_FD.T / c,
        "W_enc: the step is 1/c long; the 1/2 belongs to the threshold only.": W_FD.T / (2 * c),
        "W_enc: from f = 0 the step is + x W^T / c.": -W_FD.T / c,
        "W_enc: use the curvature that is handed in.": W_FD.T / _steepest(W_FD),
    }
    diagnose(W_enc_DF, W_FD.T / c, wrong, "W_enc: put f = 0 into ISTA's step; what multiplies x?")


def _judge_bias(b_enc_F: Tensor, l1: float, c: float) -> None:
    right = full(b_enc_F.shape, -l1 / (2 * c))
    wrong = {
        "b_enc: ReLU(a - t) subtracts the threshold, so the bias is negative.": -right,
        "b_enc: the threshold is λ / (2c): mind the 2.": 2 * right,
        "b_enc: the step is 1/c long, and so is the threshold: λ / (2c).": c * right,
        "b_enc: λ itself is not the threshold: it is λ / (2c).": 2 * c * right,
        "b_enc: without a threshold nothing asks for zeros.": 0 * right,
    }
    diagnose(b_enc_F, right, wrong, "b_enc: which number makes ReLU(x W_enc + b_enc) the step?")


@guesses.prediction
def predicted_steps(guess: Any, steps: int) -> Verdict:
    """A reply to how many steps FISTA is expected to need."""
    about = f"about {round(steps, -1)}"
    return guesses.reply_to_number(
        "how many steps", guess, steps, within=0.35 * steps, span=(0, 10_000),
        near=f"right: {about}.", low=f"it needs more, {about}.", high=f"it needs fewer, {about}.",
    )  # fmt: skip


@guesses.prediction
def predicted_gap(guess: Any, gap: float) -> Verdict:
    """A reply to how many times the lowest cost one trained pass is expected to cost."""
    return guesses.reply_to_number(
        "what one pass costs", guess, gap, within=0.1, span=(0, 100),
        near=f"about right: {gap:.1f} times the lowest.",
        low=f"more: {gap:.1f} times the lowest.", high=f"less: {gap:.1f} times the lowest.",
    )  # fmt: skip
