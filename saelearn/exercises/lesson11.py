"""Checks of lesson 11, beyond L1.

Every target is computed here, from the equations and without `saelearn.sae`'s architectures.
Shapes: N rows, B batch, T positions, D activation width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import (
    Mistake,
    Verdict,
    as_tensor,
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
from saelearn.exercises.trainable import call_with_torch, learns, unchanged
from saelearn.sae import SAE

MOST_L0 = 0.4  # share of the features that an architecture of one's own may have on


def _drawer(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _trained(function: Callable, given: dict[str, Tensor], *more: Any, through: Sequence[str] = ()):
    """The answer to tensors that want a gradient, which it must not change, and its test of it.

    Args:
        given: name -> what the function is called with.
        more: what it gets beside that.
        through: names that a gradient has to reach.
    """
    copies = {name: t.clone().requires_grad_(name in through) for name, t in given.items()}
    answer = call_with_torch(function, *copies.values(), *more)
    for name, copy in copies.items():
        unchanged(copy, given[name], name)
    return answer, lambda: learns(answer, **{name: copies[name] for name in through})


def _kept(z_BF: Tensor, least: Tensor) -> Tensor:
    return torch.where((z_BF >= least) & (z_BF > 0), z_BF, 0.0).double()


@exercise(
    "Exercise 11.1: the largest ones", passed="chosen, not paid for: what is kept, is kept as it is"
)
def chosen(top_k: Callable, batch_top_k: Callable) -> None:
    """`top_k(pre_BF, k)`, `batch_top_k(pre_BF, k)` -> features `[B, F]`."""
    cases = ((5, 9, 3), (7, 6, 4), (4, 12, 2))
    for seed, (b, f, k) in enumerate(cases):
        pre_BF = torch.randn(b, f, generator=_drawer(10 + seed)) - 0.4
        pre_BF[0] -= 2.5  # fewer than k above 0
        z_BF = pre_BF.relu()
        raw_least = pre_BF.topk(k, dim=1).values[:, -1:]
        right = _kept(z_BF, z_BF.topk(k, dim=1).values[:, -1:])
        wrong = {
            "features below 0 are kept: ReLU first": (
                torch.where(pre_BF >= raw_least, pre_BF, 0.0)
            ),
            "the k rows in which a feature is largest: along the features, dim=-1": (
                _kept(z_BF, z_BF.topk(min(k, b), dim=0).values[-1])
            ),
            "ones in place of the activations: keep their values": (right > 0),
            "one too few is kept: the k-th belongs to them, so >= it": (
                torch.where(z_BF > raw_least, z_BF, 0.0)
            ),
            "the largest in size: one far below 0 is no feature": (
                torch.where(pre_BF.abs() >= pre_BF.abs().topk(k, dim=1).values[:, -1:], pre_BF, 0.0)
            ),
            "what is kept is reduced by the largest that is not: nothing has to shrink": (
                (z_BF - pre_BF.sort(dim=1, descending=True).values[:, k : k + 1].relu()).relu()
            ),
            "nothing is silenced: k of each row stay": z_BF,
        }
        _judge_choice(top_k, "top_k", pre_BF, k, right, wrong)
    with earned(0.5):
        for seed, (b, f, k) in enumerate(cases):
            pre_BF = torch.randn(b, f, generator=_drawer(30 + seed)) - 0.3
            pre_BF += torch.linspace(-1, 1, b)[:, None]  # some rows need more
            z_BF = pre_BF.relu()
            everyones = z_BF.flatten().sort(descending=True).values
            right = _kept(z_BF, everyones[k * b - 1])
            wrong = {
                "k in each row: the k·B largest of the whole batch, whichever rows they are in": (
                    _kept(z_BF, z_BF.topk(k, dim=1).values[:, -1:])
                ),
                "k in the whole batch: k for each row on average, so k·B": (
                    _kept(z_BF, everyones[k - 1])
                ),
                "one too few is kept: the last of the k·B belongs to them, so >= it": (
                    torch.where(z_BF > everyones[k * b - 1], z_BF, 0.0)
                ),
                "ones in place of the activations: keep their values": (right > 0),
                "features below 0 are kept: ReLU first": torch.where(
                    pre_BF >= pre_BF.flatten().sort(descending=True).values[k * b - 1], pre_BF, 0.0
                ),
            }
            _judge_choice(batch_top_k, "batch_top_k", pre_BF, k, right, wrong)


def _judge_choice(
    function: Callable, name: str, pre_BF: Tensor, k: int, right: Tensor, wrong: dict[str, Tensor]
) -> None:
    answer, test = _trained(function, {"pre_BF": pre_BF}, k, through=["pre_BF"])
    got = need_shape(answer, tuple(pre_BF.shape), name, "Zeros stay in their places.")
    wrong = {f"{name}: {hint}": t.double() for hint, t in wrong.items() if not close(t, right)}
    diagnose(got, right, wrong, f"{name} differs. {difference(got, right)}")
    test()


@exercise("Exercise 11.2: whether, and how much", passed="whether and how much are two questions")
def doors(gated: Callable, jump: Callable) -> None:
    """`gated(pre_BF, b_gate_F, r_mag_F, b_mag_F)`, `jump(pre_BF, threshold_F)` -> `[B, F]`."""
    for seed, (b, f) in enumerate(((9, 6), (11, 4))):
        draw = _drawer(50 + seed)
        pre_BF = torch.randn(b, f, generator=draw)
        b_gate_F, r_mag_F, b_mag_F = torch.randn(3, f, generator=draw) * 0.6
        open_BF, loud_BF = pre_BF + b_gate_F > 0, pre_BF * r_mag_F.exp() + b_mag_F
        right = (open_BF * loud_BF.relu()).double()
        wrong = {
            "the gate alone: a magnitude follows, ReLU(pre · exp(r_mag) + b_mag)": open_BF,
            "no gate: features stay silent unless pre + b_gate > 0": loud_BF.relu(),
            "the magnitude below 0 is kept: ReLU": open_BF * loud_BF,
            "r_mag is a logarithm: times exp(r_mag)": (
                open_BF * (pre_BF * r_mag_F + b_mag_F).relu()
            ),
            "exp(r_mag) multiplies pre, not the offset as well": (
                open_BF * ((pre_BF + b_mag_F) * r_mag_F.exp()).relu()
            ),
            "the gate's strength is multiplied in: it is 0 or 1, else it would shrink": (
                (pre_BF + b_gate_F).relu() * loud_BF.relu()
            ),
            "the two offsets are exchanged": (
                (pre_BF + b_mag_F > 0) * (pre_BF * r_mag_F.exp() + b_gate_F).relu()
            ),
            "the gate is open where pre + b_gate is below 0": ~open_BF * loud_BF.relu(),
        }
        given = {"pre_BF": pre_BF, "b_gate_F": b_gate_F, "r_mag_F": r_mag_F, "b_mag_F": b_mag_F}
        answer, test = _trained(gated, given, through=["pre_BF", "r_mag_F", "b_mag_F"])
        got = need_shape(answer, (b, f), "gated", "One number for each row and feature.")
        wrong = {f"gated: {hint}": each.double() for hint, each in wrong.items()}
        diagnose(got, right, wrong, f"gated differs. {difference(got, right)}")
        test()
    with earned(0.5):
        for seed, (b, f) in enumerate(((8, 5), (12, 7))):
            draw = _drawer(70 + seed)
            pre_BF = torch.randn(b, f, generator=draw) * 1.5
            threshold_F = 0.1 + torch.rand(f, generator=draw)
            over_BF = pre_BF > threshold_F
            right = (pre_BF * over_BF).double()
            wrong = {
                "the threshold is taken off: that shrinks; what exceeds it, stays as it is": (
                    (pre_BF - threshold_F).relu()
                ),
                "ones where it is exceeded: the pre-activations themselves are kept": over_BF,
                "values below the threshold are lifted to it: they are 0": (
                    torch.maximum(pre_BF, threshold_F)
                ),
                "the threshold is ignored": pre_BF.relu(),
                "size counts: far below 0 is not above a threshold": (
                    pre_BF * (pre_BF.abs() > threshold_F)
                ),
                "what lies below the threshold is kept": pre_BF * ~over_BF,
            }
            answer, test = _trained(
                jump, {"pre_BF": pre_BF, "threshold_F": threshold_F}, through=["pre_BF"]
            )
            got = need_shape(answer, (b, f), "jump", "One number for each row and feature.")
            wrong = {f"jump: {hint}": each.double() for hint, each in wrong.items()}
            diagnose(got, right, wrong, f"jump differs. {difference(got, right)}")
            test()


@exercise("Exercise 11.3: the nested error", passed="the first features have to do for themselves")
def nested(nested_error: Callable) -> None:
    """`nested_error(x_BD, f_BF, W_dec_FD, b_dec_D, widths)` -> one number."""
    for seed, (b, d, f, widths) in enumerate(((6, 4, 9, (2, 5, 9)), (8, 3, 7, (3, 7)))):
        draw = _drawer(90 + seed)
        x_BD, f_BF = torch.randn(b, d, generator=draw), torch.randn(b, f, generator=draw).relu()
        W_dec_FD, b_dec_D = torch.randn(f, d, generator=draw), torch.randn(d, generator=draw)

        def squares(low: int, high: int, offset: float = 1.0) -> Tensor:
            made_BD = f_BF[:, low:high] @ W_dec_FD[low:high] + offset * b_dec_D  # noqa: B023
            return (x_BD - made_BD).double().square().sum(1)  # noqa: B023

        each = [squares(0, m).mean() for m in widths]
        blocks = zip((0, *widths[:-1]), widths, strict=True)
        right = sum(each)
        wrong = {
            "the widest alone: the errors of all widths are added": each[-1],
            "a mean over the widths: their sum": right / len(widths),
            "a mean over D: the squares are summed over it": right / d,
            "a sum over the batch: its mean": right * b,
            "blocks apart: each width takes all features before it, f[:, :m]": (
                sum(squares(low, high).mean() for low, high in blocks)
            ),
            "b_dec is missing: every width adds it": sum(squares(0, m, 0.0).mean() for m in widths),
            "distances, not their squares": sum(squares(0, m).sqrt().mean() for m in widths),
        }
        given = {"x_BD": x_BD, "f_BF": f_BF, "W_dec_FD": W_dec_FD, "b_dec_D": b_dec_D}
        through = ["f_BF", "W_dec_FD", "b_dec_D"]
        answer, test = _trained(nested_error, given, widths, through=through)
        got = need_number(answer, "the error", "Sum over D, mean over the batch.")
        diagnose(got, right, wrong, f"differs: expected {right:.4f}, got {got:.4f}", rtol=1e-3)
        test()


@exercise("Exercise 11.4: refit the decoder", passed="no decoder of these features does better")
def refit(function: Callable) -> None:
    """`refit(f_NF, x_ND)` -> the `W_dec_FD` and `b_dec_D` that reconstruct best."""
    for seed, (n, f, d) in enumerate(((60, 7, 4), (80, 5, 6))):
        draw = _drawer(110 + seed)
        f_NF = (torch.randn(n, f, generator=draw) - 0.3).relu()
        f_NF[:, 2] = 0  # one never fires
        x_ND = f_NF @ torch.randn(f, d, generator=draw) + 2 + torch.randn(n, d, generator=draw)
        answer, _ = _trained(function, {"f_NF": f_NF, "x_ND": x_ND})
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Mistake("two tensors are wanted: return W_dec_FD, b_dec_D")
        W_dec_FD = need_shape(answer[0], (f, d), "W_dec_FD", "A row for each feature.")
        b_dec_D = need_shape(answer[1], (d,), "b_dec_D", "One offset for each dimension.")
        if not (W_dec_FD.isfinite().all() and b_dec_D.isfinite().all()):
            raise Mistake("the decoder is not finite: a feature that never fires has no best row, "
                          "and a plain inverse divides by 0; lstsq and pinv don't")  # fmt: skip
        f, x = f_NF.double(), x_ND.double()
        with_one = torch.cat([f, torch.ones(n, 1).double()], 1)

        def missed(features: Tensor, x: Tensor = x) -> Tensor:
            return (x - features @ (torch.linalg.pinv(features) @ x)).square().sum()

        least = missed(with_one)
        got = (x - f @ W_dec_FD - b_dec_D).square().sum()
        centred = f - f.mean(0)
        rows = torch.linalg.pinv(f) @ x
        wrong = {
            "no offset is fitted: a column of ones beside the features": missed(f),
            "the offset is the mean of x: it also has to make up for the features' means": (
                (x - f @ (torch.linalg.pinv(centred) @ x) - x.mean(0)).square().sum()
            ),
            "the rows are fitted without the offset: both at once, with a column of ones": (
                (x - f @ rows - (x - f @ rows).mean(0)).square().sum()
            ),
        }
        diagnose(
            got / least, torch.ones(()), {hint: error / least for hint, error in wrong.items()},
            f"this decoder misses {got / least:.3f} times what the best one does", rtol=1e-3,
        )  # fmt: skip


@exercise("Exercise 11.5: attribution", passed="what is there, times what it would do")
def edges(function: Callable) -> None:
    """`edges(f_TF, W_dec_FD, slope_TD)` -> `[T, F]`, what each active feature brings."""
    for seed, (t, f, d) in enumerate(((5, 8, 4), (6, 7, 3))):
        draw = _drawer(130 + seed)
        f_TF = torch.randn(t, f, generator=draw).relu()
        W_dec_FD = torch.randn(f, d, generator=draw) * torch.linspace(0.5, 2, f)[:, None]
        slope_TD = torch.randn(t, d, generator=draw)
        along_TF = (slope_TD @ W_dec_FD.T).double()
        right = f_TF * along_TF
        unit_FD = W_dec_FD / W_dec_FD.norm(dim=1, keepdim=True)
        wrong = {
            "the slope alone: a feature that is off brings nothing, so times f": along_TF,
            "its sign is lost: a feature can hold another down": right.abs(),
            "one slope for all positions: each has its own": (
                f_TF * (slope_TD.sum(0) @ W_dec_FD.T).double()
            ),
            "summed over positions: each position has an edge of its own": (
                right.sum(0).expand(t, f)
            ),
            "rows of length 1: how far a feature writes counts": f_TF * (slope_TD @ unit_FD.T),
            "the slope's direction alone: how steep it is counts": (
                right / slope_TD.norm(dim=1, keepdim=True)
            ),
            "where it is on, not how strongly: times f": (f_TF > 0) * along_TF,
            "this is what is lost without the feature, which has the other sign": -right,
        }
        given = {"f_TF": f_TF, "W_dec_FD": W_dec_FD, "slope_TD": slope_TD}
        answer, _ = _trained(function, given)
        got = need_shape(answer, (t, f), "the edges", "One for each position and feature.")
        wrong = {hint: each.double() for hint, each in wrong.items()}
        diagnose(got, right, wrong, f"differs. {difference(got, right)}", rtol=1e-3, atol=1e-5)


@exercise(
    "Exercise 11.6: onto the leaderboard",
    passed="it trains and is none of the others; now the leaderboard",
)
def architecture(kind: Callable) -> None:
    """A class, or what makes one, that is called as `kind(d_in, d_sae, seed=...)`."""
    for seed, (b, d, f) in enumerate(((64, 12, 40), (48, 10, 30))):
        sae = call(kind, d, f, seed=seed)
        if not isinstance(sae, SAE):
            raise Mistake(f"this needs a class that stands on SAE, but it makes a "
                          f"{type(sae).__name__}")  # fmt: skip
        x_BD = torch.randn(b, d, generator=_drawer(150 + seed))
        f_BF = sae.encode(x_BD)
        if f_BF is None or f_BF is ...:
            raise NotImplementedError("activate returns nothing so far")
        got = need_shape(f_BF, (b, f), "features", "activate: pre_BF in, as many features out.")
        if not got.isfinite().all() or (got < 0).any():
            raise Mistake("features have to be numbers from 0 up: ReLU, or a choice behind it")
        share = float((got > 0).double().mean())
        if not 0 < share <= MOST_L0:
            raise Mistake(f"{share:.0%} of the features are on: more than none, and at most "
                          f"{MOST_L0:.0%}")  # fmt: skip
        if not torch.equal(got, as_tensor(sae.encode(x_BD), "features")):
            raise Mistake("the same input gave other features: outside of training nothing "
                          "may be drawn or remembered")  # fmt: skip
        reached = None
        if f_BF.requires_grad:
            reached = torch.autograd.grad(f_BF.sum(), sae.W_enc, allow_unused=True)[0]
        if reached is None or not reached.any():
            raise Mistake("no gradient reaches W_enc, so nothing could be trained: NumPy, "
                          ".detach() and comparisons alone cut it")  # fmt: skip
        z_BF = sae.pre(x_BD).detach().relu().double()
        counts = (got > 0).sum(1)
        known = {"a plain ReLU": z_BF}
        if (counts == counts[0]).all():
            known["TopK"] = _kept(z_BF, z_BF.topk(int(counts[0]), dim=1).values[:, -1:])
        n_on = int(counts.sum())
        known["BatchTopK"] = _kept(z_BF, z_BF.flatten().topk(n_on).values[-1])
        for name, each in known.items():
            if torch.allclose(got, each, atol=1e-6):
                raise Mistake(f"this is {name} by another name: change what is kept, or how much "
                              "of it")  # fmt: skip


@guesses.prediction
def predicted_left(guess: Any, share: float) -> Verdict:
    """A reply to which share of L1's unexplained variance is expected to remain with TopK."""
    return guesses.reply_to_number(
        "what TopK leaves of L1's error", guess, share, within=0.1,
        near=f"about right: {share:.0%}.",
        low=f"more remains: {share:.0%}.",
        high=f"less remains: {share:.0%}.",
    )  # fmt: skip
