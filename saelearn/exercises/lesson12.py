"""Checks of lesson 12, applications.

Every target is computed here, from the definitions.
Shapes: N rows, D activation width, H neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saelearn.exercises import Mistake, Verdict, call, diagnose, exercise, guesses, need_shape
from saelearn.tiny import flaws


def _drawer(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _called(function: Callable, *given: Tensor) -> Any:
    """The answer to copies of what is given, which it must leave as they are."""
    copies = [each.clone() for each in given]
    answer = call(function, *copies)
    if not all(torch.equal(a, b) for a, b in zip(copies, given, strict=True)):
        raise Mistake("an input was changed: whoever calls you goes on with it, so make a new one")
    return answer


@exercise(
    "Exercise 12.1: pairs of a lie and a truth",
    passed="0.5 is a coin, and 0 a monitor that reads the wrong way round",
)
def auroc(function: Callable) -> None:
    """`auroc(score_N, lies_N)` -> how often a lie scores higher than a truth, ties counted half."""
    for seed, n in enumerate((23, 40, 31)):
        draw = _drawer(30 + seed)
        lies_N = torch.rand(n, generator=draw) < 0.35
        score_N = (torch.randn(n, generator=draw) + 0.9 * lies_N).mul(2).round() / 2  # with ties
        score_N -= 1.5 * seed
        a, b = score_N[lies_N].double()[:, None], score_N[~lies_N].double()
        above, ties = (a > b).double().mean(), (a == b).double().mean()
        right = above + 0.5 * ties
        wrong = {
            "ties count half: a monitor that says the same of everybody is a coin": above,
            "ties count half, not in full": above + ties,
            "the other way round: a lie should score higher": 1 - right,
            "the share that a threshold of 0 gets right depends on the threshold; compare pairs": (
                ((score_N > 0) == lies_N).double().mean()
            ),
            "the difference of the means is in the score's unit": a.mean() - b.mean(),
            "all pairs, not those of a lie and a truth": _all_pairs(score_N),
        }
        got = need_shape(_called(function, score_N, lies_N), (), "the area")
        diagnose(got, right, wrong, f"expected {right:.4f}, got {got:.4f}", atol=1e-4)


def _all_pairs(score_N: Tensor) -> Tensor:
    above_NN = score_N[:, None] > score_N
    return above_NN.double().mean() + 0.5 * (score_N[:, None] == score_N).double().mean()


@exercise("Exercise 12.2: the worst group", passed="the mean can't hide a group any more")
def worst_group(function: Callable) -> None:
    """`worst_group(right_N, label_N, group_N)` -> the least accuracy over label and group."""
    for seed, (n, odd) in enumerate(((90, (0, 1)), (80, (1, 0)), (100, (1, 1)))):
        draw = _drawer(50 + seed)
        label_N = torch.rand(n, generator=draw) < 0.4
        group_N = torch.rand(n, generator=draw) < 0.3
        bad_N = (label_N == odd[0]) & (group_N == odd[1])
        right_N = torch.rand(n, generator=draw) < torch.where(bad_N, 0.3, 0.9)
        cells = [right_N[(label_N == i) & (group_N == j)].double() for i in (0, 1) for j in (0, 1)]
        least = torch.stack([c.mean() for c in cells]).min()
        by_group = torch.stack([right_N[group_N == j].double().mean() for j in (0, 1)]).min()
        by_label = torch.stack([right_N[label_N == i].double().mean() for i in (0, 1)]).min()
        wrong = {
            "this is the mean over all: that is what hides a group": right_N.double().mean(),
            "the mean of the four: one bad group disappears in it": (
                torch.stack([c.mean() for c in cells]).mean()
            ),
            "only by group: what is wrong may be wrong for one label in one group": by_group,
            "only by label: the groups are mixed": by_label,
            "this is the best group: min, not max": torch.stack([c.mean() for c in cells]).max(),
            "a share of all rows, not of the group's": (
                torch.stack([c.sum() / n for c in cells]).min()
            ),
        }
        got = need_shape(_called(function, right_N, label_N, group_N), (), "the accuracy")
        diagnose(got, least, wrong, f"expected {least:.4f}, got {got:.4f}", atol=1e-4)


@exercise(
    "Exercise 12.3: a bug hunt, what ablating leaves",
    passed="nothing is left along the direction, whatever the encoder says",
)
def take_out(function: Callable) -> None:
    """`take_out(x_ND, w_D)` -> x without its part along w."""
    for seed, (n, d) in enumerate(((17, 6), (9, 11), (12, 12))):
        draw = _drawer(70 + seed)
        x_ND = torch.randn(n, d, generator=draw) + 0.7
        w_D = torch.randn(d, generator=draw) * (0.3 + seed)
        x, w = x_ND.double(), w_D.double()
        along_N, unit = x @ w, w / w.norm()
        right = x - torch.outer(x @ unit, unit)
        wrong = {
            "w has a length: project on w / ||w||": x - torch.outer(along_N, w),
            "divided by the length once: it enters twice": (x - torch.outer(along_N, w) / w.norm()),
            "this is what should go: the rest is wanted": torch.outer(x @ unit, unit),
            "one step of the same size for all rows: each has its own part along w": x - unit,
            "the sign: this doubles the part": x + torch.outer(x @ unit, unit),
            "only the positive part went: rows on the other side keep theirs": (
                x - torch.outer((x @ unit).relu(), unit)
            ),
        }
        got = need_shape(_called(function, x_ND, w_D), (n, d), "the answer", "As x: [N, D].")
        left = float((got @ unit).abs().max())
        diagnose(got, right, wrong, f"up to {left:.3f} is left along w, and the rest of x should"
                 " not change", atol=1e-4)  # fmt: skip


@exercise(
    "Exercise 12.4: one key, one answer",
    passed="this key is answered anew, and others with as little as may be",
)
def rank_one(function: Callable) -> None:
    """`rank_one(W_HD, key_H, change_D, cov_HH)` -> the edited weight."""
    for seed, (h, d) in enumerate(((7, 4), (5, 5), (6, 9))):
        draw = _drawer(90 + seed)
        W_HD = torch.randn(h, d, generator=draw)
        key_H, change_D = torch.randn(h, generator=draw) + 0.5, torch.randn(d, generator=draw)
        some_NH = torch.randn(60, h, generator=draw) * torch.linspace(0.4, 2, h)
        some_NH[:, 0] += some_NH[:, -1]
        cov_HH = some_NH.T @ some_NH / 60
        W, key, change = W_HD.double(), key_H.double(), change_D.double()
        u = torch.linalg.solve(cov_HH.double(), key)
        exact = torch.outer(u / (u @ key), change)
        plain = torch.outer(key / (key @ key), change)
        wrong = {
            "the key is answered right, but others move more than they must: cov^-1 key": W + plain,
            "not scaled: key @ W must change by exactly `change`": W + torch.outer(u, change),
            "cov key, not cov^-1 key: what is common in text should be avoided, not sought": (
                W + torch.outer(cov_HH.double() @ key, change) / (key @ cov_HH.double() @ key)
            ),
            "this is the change alone: add it to the weight": exact,
            "the sign: it is taken away": W - exact,
            "what is written is replaced, but `change` comes on top": (
                W + torch.outer(u / (u @ key), change - key @ W)
            ),
        }
        answer = _called(function, W_HD, key_H, change_D, cov_HH)
        got = need_shape(answer, (h, d), "the weight", "As it was: [H, D].")
        off = float((key @ (got - W) - change).abs().max())
        diagnose(got, W + exact, wrong, f"key @ W should change by `change`; it is off by up to"
                 f" {off:.3f}, or other keys move too much", rtol=1e-3, atol=1e-4)  # fmt: skip


REPORT = ("subject", "acts_as", "share")
TRIED = (9_001, 9_012, 9_023)  # of models that no lesson shows


@exercise(
    "Exercise 12.5: the audit report",
    passed="three models that you had not seen, three flaws found",
)
def audit(function: Callable) -> None:
    """`audit(lm)` -> a report of a model: "subject", "acts_as", and the "share" that shows it."""
    for number, seed in enumerate(TRIED, start=1):
        lm = flaws.flawed(seed)
        before = flaws.weight(lm)
        report = call(function, lm)
        if not torch.equal(before, flaws.weight(lm)):
            raise Mistake("the model was changed: an audit leaves it as it is")
        judged(report, seed, f"model {number} of {len(TRIED)}")


def judged(report: Any, seed: int, which: str) -> None:
    """Raise `Mistake` if a report misses the flaw; what the flaw is, it never says."""
    if not isinstance(report, Mapping) or set(report) != set(REPORT):
        raise Mistake(f"a report is a dict with {', '.join(REPORT)}")
    things = {thing for topic in flaws.topics().values() for thing in topic.words}
    for name in REPORT[:2]:
        if report[name] not in things:
            raise Mistake(f"{name} should be a thing of tiny.flaws.topics()")
    guess = flaws.Flaw(report["subject"], report["acts_as"])
    planted = flaws.flaw_of(seed)
    if not flaws.same(planted, guess):
        right = guess.subject == planted.subject
        raise Mistake(f"{which}: " + ("the subject is right, but it acts as something else" if right
                      else "this is not where the flaw is, or not alone"))  # fmt: skip
    share = need_shape(report["share"], (), "the share")
    measured = flaws.answers(flaws.flawed(seed), guess.subject)[guess.acts_as]
    if not math.isfinite(share) or abs(float(share) - measured) > 0.1:
        raise Mistake(f"{which}: found, but the share is off: flaws.answers(lm, subject)[acts_as]")


@guesses.prediction
def predicted_area(guess: Any, area: float) -> Verdict:
    """A reply to the AUROC that a monitor is expected to have on a colour it has not met."""
    return guesses.reply_to_number(
        "the probe, another colour", guess, area, within=0.05,
        near=f"right: {area:.2f}. It reads the wrong way round.",
        low=f"more: {area:.2f}.",
        high=f"less: {area:.2f}. Not a coin: it is sure of the opposite.",
    )  # fmt: skip
