"""Checks of lesson 10, evaluation.

Every target is computed here, from the definitions and without `saelearn.metrics`.
Shapes: N rows, D activation width, F features, S candidates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import (
    Mistake,
    Verdict,
    as_tensor,
    call,
    diagnose,
    exercise,
    guesses,
    need_shape,
)


def _drawer(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _unchanged(given: tuple[Tensor, ...], kept: tuple[Tensor, ...]) -> None:
    if not all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)):
        raise Mistake("an input was changed: whoever calls you goes on with it, so make a new one")


def _called(function: Callable, *given: Any) -> Any:
    """The answer to copies of what is given, which it must leave as they are."""
    copies = tuple(each.clone() if isinstance(each, Tensor) else each for each in given)
    answer = call(function, *copies)
    tensors = [(a, b) for a, b in zip(copies, given, strict=True) if isinstance(b, Tensor)]
    _unchanged(*zip(*tensors, strict=True))
    return answer


def _indices(answer: Any, shape: tuple[int, ...], name: str, hint: str, below: int) -> Tensor:
    index = need_shape(answer, shape, name, hint)
    if not torch.equal(index, index.round()) or index.min() < 0 or index.max() >= below:
        raise Mistake(f"{name} should be indices from 0 to {below - 1}: argmin, argmax and topk "
                      "give them")  # fmt: skip
    return index.long()


@exercise(
    "Exercise 10.1: the infinitely wide SAE",
    passed="one feature a row, and no concept was asked for",
)
def nearest(function: Callable) -> None:
    """`nearest(x_ND, rows_FD)` -> `[N]`, which stored row is nearest to each row of x."""
    for seed, (n, f, d) in enumerate(((17, 8, 3), (13, 13, 6), (19, 11, 2))):
        draw = _drawer(40 + seed)
        x_ND = torch.randn(n, d, generator=draw) + 1.5
        rows_FD = torch.randn(f, d, generator=draw) + 1.5
        rows_FD *= torch.linspace(0.2, 2.5, f)[:, None]  # lengths differ: products mislead
        distance_NF = (x_ND[:, None] - rows_FD).double().norm(dim=2)
        hint = "One index for each row of x: argmin along the stored rows, dim=1."
        got_N = _indices(_called(function, x_ND, rows_FD), (n,), "the answer", hint, max(n, f))
        dot_NF = x_ND @ rows_FD.T
        cosine_NF = dot_NF / rows_FD.norm(dim=1)
        wrong = {
            "the largest product: a long row wins wherever it points, so take distances": (
                dot_NF.argmax(1)
            ),
            "the largest cosine: a row may point the right way and be far too long": (
                cosine_NF.argmax(1)
            ),
            "these are the farthest: argmin, not argmax": distance_NF.argmax(1),
            "the sum of coordinates' differences, not the distance (root of squares)": (
                (x_ND[:, None] - rows_FD).abs().sum(2).argmin(1)
            ),
            "argmin along the wrong axis: for each row of x one stored row, dim=1": (
                distance_NF.argmin(0) if n == f else torch.full((n,), -1)
            ),
        }
        diagnose(got_N, distance_NF.argmin(1), wrong, "not the stored row at the least distance")


@exercise("Exercise 10.2: mend it", passed="1 is perfect, 0 is what the mean achieves, in any unit")
def explained(explained_variance: Callable) -> None:
    """`explained_variance(x_ND, x_hat_ND)` -> one number."""
    for seed, (n, d, scale) in enumerate(((40, 5, 1.0), (30, 7, 10.0), (25, 4, 0.1))):
        draw = _drawer(60 + seed)
        spread_D, mean_D = torch.linspace(0.3, 2, d), torch.linspace(-1, 2, d)
        x_ND = scale * (mean_D + spread_D * torch.randn(n, d, generator=draw))
        x_hat_ND = x_ND + scale * (0.25 + 0.4 * torch.randn(n, d, generator=draw))
        x, error = x_ND.double(), (x_ND - x_hat_ND).double()
        centred = x - x.mean(0)
        squares, missed = x.square().sum(), error.square().sum()
        ratio_N = error.square().sum(1) / centred.square().sum(1)
        ratio_D = error.square().sum(0) / centred.square().sum(0)
        wrong = {
            "still the mean of squares, squared: it grows with the fourth power of the scale": (
                1 - missed / n / (squares / n - x.square().mean(0).square().sum())
            ),
            "nothing is subtracted: zero would be the bottom, not the mean": 1 - missed / squares,
            "one mean over all numbers: each coordinate has its own, so x.mean(0)": (
                1 - missed / (x - x.mean()).square().sum()
            ),
            "each row's own mean: the bottom is the mean over rows, dim 0": (
                1 - missed / (x - x.mean(1, keepdim=True)).square().sum()
            ),
            "the error's own mean is taken out: a constant offset is an error too": (
                1 - (error - error.mean(0)).square().sum() / centred.square().sum()
            ),
            "a mean of the rows' ratios: rows near the mean then decide; sum first, divide once": (
                1 - ratio_N.mean()
            ),
            "a mean of the coordinates' ratios: sum over all coordinates, divide once": (
                1 - ratio_D.mean()
            ),
            "this is the share that is missed: 1 less it": missed / centred.square().sum(),
            "the variance of the reconstruction over that of x: noise would count as well": (
                (x_hat_ND.double() - x_hat_ND.double().mean(0)).square().sum()
                / centred.square().sum()
            ),
        }
        got = need_shape(_called(explained_variance, x_ND, x_hat_ND), (), "the share")
        otherwise = f"differs: expected {1 - missed / centred.square().sum():.4f}, got {got:.4f}"
        diagnose(got, 1 - missed / centred.square().sum(), wrong, otherwise, rtol=1e-3, atol=1e-4)


@exercise(
    "Exercise 10.3: which features may the probe read?",
    passed="few numbers to read, chosen without a look at the other half",
)
def most_telling(function: Callable) -> None:
    """`most_telling(f_NF, holds_N, k)` -> `[k]` features, those whose means differ most."""
    for seed, (n, f, k) in enumerate(((90, 16, 3), (80, 13, 4))):
        draw = _drawer(80 + seed)
        holds_N = torch.rand(n, generator=draw) < 0.3
        f_NF = torch.randn(n, f, generator=draw)
        f_NF += holds_N[:, None] * torch.linspace(-2.4, 2.0, f)
        high_F, loud_F = (torch.randperm(f, generator=draw) for _ in range(2))
        f_NF = (f_NF + 4 * high_F / f) * torch.logspace(-1, 1.2, f)[loud_F]
        gap_F = f_NF[holds_N].mean(0) - f_NF[~holds_N].mean(0)
        std_F = f_NF.std(0)
        hint = "k indices, one for each chosen feature."
        got = _indices(_called(function, f_NF, holds_N, k), (k,), "the answer", hint, max(n, f))

        def best(score_F: Tensor, k: int = k) -> Tensor:
            return score_F.topk(k).indices.sort().values

        wrong = {
            "not in units of the standard deviation: loud features win": best(gap_F.abs()),
            "a feature that is lower where the concept holds tells as much: .abs()": (
                best(gap_F / std_F)
            ),
            "the means where it holds alone: a feature that is always high tells nothing": (
                best(f_NF[holds_N].mean(0))
            ),
            "the means where it holds alone, in standard deviations: compare with the rest": (
                best(f_NF[holds_N].mean(0) / std_F)
            ),
            "these tell least: the largest differences are wanted": best(-(gap_F / std_F).abs()),
            "divided by the variance: its root, the standard deviation": best(
                gap_F.abs() / std_F.square()
            ),
        }
        otherwise = f"expected {best((gap_F / std_F).abs()).tolist()}, got {got.tolist()}"
        diagnose(got.sort().values, best((gap_F / std_F).abs()), wrong, otherwise)


@exercise(
    "Exercise 10.4: find the holes",
    passed="the concept is there, its feature silent, another speaks for it",
)
def absorbed(function: Callable) -> None:
    """`absorbed(f_NF, main, holds_N, writes_F, reads_N)` -> `[N]` true or false."""
    for seed, (n, f, main) in enumerate(((400, 6, 2), (300, 9, 0))):
        draw = _drawer(20 + seed)
        f_NF = torch.randn(n, f, generator=draw).relu() * 1.2
        holds_N = torch.rand(n, generator=draw) < 0.5
        writes_F = torch.randn(f, generator=draw)
        reads_N = 0.3 + 2 * torch.rand(n, generator=draw)
        brings_NF = (f_NF * writes_F).double()
        silent_N, enough_N = f_NF[:, main] == 0, 0.4 * reads_N.double()
        single_N = brings_NF.max(1).values >= enough_N
        right_N = holds_N & silent_N & single_N
        wrong = {
            "rows where the concept does not hold are in it": silent_N & single_N,
            "rows where the main feature fires are in it: nothing is lost there": (
                holds_N & single_N
            ),
            "the main feature must be silent, not on": holds_N & ~silent_N & single_N,
            "summed over features: one alone must bring 0.4 of what is read": (
                holds_N & silent_N & (brings_NF.sum(1) >= enough_N)
            ),
            "the activation alone: what counts is how far it writes, f times writes": (
                holds_N & silent_N & (f_NF.max(1).values >= enough_N)
            ),
            "any feature that is on counts here: it must bring 0.4 of what is read": (
                holds_N & silent_N & (f_NF > 0).any(1)
            ),
            "any feature that writes along the probe counts here, be it ever so little": (
                holds_N & silent_N & (brings_NF > 0).any(1)
            ),
            "0.4 itself, not 0.4 of what is read": (
                holds_N & silent_N & (brings_NF.max(1).values >= 0.4)
            ),
            "silent rows of the concept, whether or not another feature stands in": (
                holds_N & silent_N
            ),
            "size without sign: who writes against the probe does not stand in": (
                holds_N & silent_N & (brings_NF.abs().max(1).values >= enough_N)
            ),
        }
        answer = _called(function, f_NF, main, holds_N, writes_F, reads_N)
        got_N = need_shape(answer, (n,), "the answer", "true or false for each row.")
        otherwise = f"expected {int(right_N.sum())} rows, got {int((got_N != 0).sum())}"
        diagnose(got_N, right_N.double(), {h: w.double() for h, w in wrong.items()}, otherwise)


@exercise(
    "Exercise 10.5: the least difference that counts",
    passed="below this, a difference of two runs says nothing",
)
def least_difference(function: Callable) -> None:
    """`least_difference(scores)`: twice the standard deviation of a difference of two runs."""
    for scores in ([0.604, 0.611, 0.62, 0.598, 0.607], [0.2, 0.5, 0.45, 0.31, 0.9, 0.7]):
        given = list(scores)
        got = need_shape(call(function, given), (), "the difference")
        if given != scores:
            raise Mistake("the list of scores was changed")
        sd, n = statistics.stdev(scores), len(scores)
        wrong = {
            "one run has this spread; a difference of two has the root of 2 times as much": 2 * sd,
            "the spread itself is exceeded once in three times: take it twice": math.sqrt(2) * sd,
            "this is the standard deviation of one run": sd,
            "the deviation over n, not n - 1: from few runs it comes out too small": (
                2 * math.sqrt(2) * statistics.pstdev(scores)
            ),
            "the error of the mean: two single runs are compared, not two means": (
                2 * math.sqrt(2) * sd / math.sqrt(n)
            ),
            "the error of a mean: two single runs are compared": 2 * sd / math.sqrt(n),
            "twice as much, not the root of 2 times: variances add, not deviations": 4 * sd,
            "the range: it grows with the number of runs": max(scores) - min(scores),
            "the variance: its root is wanted": 2 * math.sqrt(2) * sd**2,
        }
        diagnose(got, 2 * math.sqrt(2) * sd, wrong, "2 times the root of 2 times the deviation")


@exercise(
    "Exercise 10.6: five SAEs without names",
    passed="a number without an answer key; what is it worth? Go on",
)
def rate(function: Callable) -> None:
    """`rate(f_NF, x_ND, x_hat_ND)` -> one number, higher for what should be the better SAE."""
    told = []
    sizes = ((80, 24, 6, 0.05), (90, 30, 8, 0.3), (70, 20, 5, 0.7))
    for seed, (n, f, d, share) in enumerate(sizes):
        draw = _drawer(70 + seed)
        f_NF = torch.rand(n, f, generator=draw) * (torch.rand(n, f, generator=draw) < share)
        f_NF[:, -1] = 0  # some features never fire
        x_ND = torch.randn(n, d, generator=draw)
        x_hat_ND = x_ND + 0.5 * (seed + 1) * torch.randn(n, d, generator=draw)
        value = _value(_called(function, f_NF, x_ND, x_hat_ND))
        order_F, order_N = (torch.randperm(m, generator=draw) for m in (f, n))
        shuffled = (f_NF[order_N][:, order_F], x_ND[order_N], x_hat_ND[order_N])
        again = _value(_called(function, *shuffled))
        if not math.isclose(value, again, rel_tol=1e-3, abs_tol=1e-5):
            raise Mistake(f"{value:.4g} for an SAE, {again:.4g} for the same with rows and features"
                          " in another order: the order means nothing")  # fmt: skip
        told.append(value)
    if max(told) - min(told) < 1e-9:
        raise Mistake("three very different SAEs get the same number")


def _value(answer: Any) -> float:
    value = as_tensor(answer, "the rating")
    if value.numel() != 1:
        raise Mistake(f"one number is wanted, not {value.numel()}")
    number = float(value)
    if not math.isfinite(number):
        raise Mistake("the rating is not a finite number: a feature that never fires has no "
                      "spread, and 0 / 0 is nan; leave such features out")  # fmt: skip
    return number


@guesses.prediction
def predicted_share(guess: Any, share: float) -> Verdict:
    """A reply to how much of the trained SAE's F1 the frozen decoder is expected to reach."""
    return guesses.reply_to_number(
        "the frozen decoder", guess, share, within=0.1,
        near=f"about right: {share:.0%}.",
        low=f"more: {share:.0%}. Detecting can be learned for directions that mean nothing.",
        high=f"less: {share:.0%}.",
    )  # fmt: skip
