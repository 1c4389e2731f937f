"""Checks of lesson 13, a real model.

Targets are computed here, from the definitions. Shapes: N rows or documents, T positions, P = T - 1
positions from the second on, D width, V words.
"""

from __future__ import annotations

import math
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


def _called(function: Callable, *given: Any) -> Any:
    """The answer to copies of what is given, which it must leave as they are."""
    copies = tuple(each.clone() if isinstance(each, Tensor) else each for each in given)
    answer = call(function, *copies)
    for copy, each in zip(copies, given, strict=True):
        if isinstance(each, Tensor) and not torch.equal(copy, each):
            raise Mistake("an input was changed: whoever calls you goes on with it, so make a copy")
    return answer


@exercise(
    "Exercise 13.1: which rows?",
    passed="special tokens and giants are gone, whoever is in the majority",
)
def keep(function: Callable) -> None:
    """`keep(x_ND, tokens_N, special, ratio)` -> which rows to train on, `[N]`."""
    cases = ((40, 6, [3], 4.0, 0.1), (33, 5, [0, 9], 2.5, 0.6), (51, 8, [2, 5, 7], 6.0, 0.3))
    for seed, (n, d, special, ratio, share) in enumerate(cases):
        draw = _drawer(130 + seed)
        x_ND = torch.randn(n, d, generator=draw) + 0.5
        tokens_N = torch.randint(10, 90, (n,), generator=draw)
        odd_N = torch.rand(n, generator=draw) < share
        odd_N[0] = True
        pick_N = torch.randint(len(special), (n,), generator=draw)
        tokens_N[odd_N] = torch.tensor(special)[pick_N][odd_N]
        x_ND[odd_N] *= 100
        giants = (~odd_N).nonzero()[:2, 0]
        x_ND[giants] *= 30  # giants that are no special token
        small = odd_N.nonzero()[-1]
        x_ND[small] /= 100  # and a special token that is no giant
        norm_N, text_N = x_ND.norm(dim=1), ~odd_N
        least = ratio * norm_N[text_N].median()
        wrong = {
            "the median of all rows: where special tokens are many, it is theirs": (
                text_N & (norm_N <= ratio * norm_N.median())
            ),
            "the ratio is ignored: giants that are no special token stay": text_N,
            "the rows to leave out; the mask says which to keep": ~(text_N & (norm_N <= least)),
            "the mean is carried by the giants themselves: take the median": (
                text_N & (norm_N <= ratio * norm_N[text_N].mean())
            ),
            "squared lengths are compared with the ratio: take lengths": (
                text_N & (norm_N.square() <= ratio * norm_N[text_N].square().median())
            ),
            "only the first of the special ids is left out": (
                (tokens_N != special[0]) & (norm_N <= least)
            ),
            "special tokens that are no longer than others are kept": norm_N <= least,
        }
        right_N = text_N & (norm_N <= least)
        answer = _called(function, x_ND, tokens_N, list(special), ratio)
        got_N = need_shape(answer, (n,), "the answer", "True or False for each row.")
        otherwise = f"expected {int(right_N.sum())} rows, got {int((got_N != 0).sum())}"
        diagnose(got_N, right_N.double(), {h: w.double() for h, w in wrong.items()}, otherwise)


def _f1(listed: set[int], words_N: Tensor, fires_N: Tensor) -> float:
    says_N = torch.tensor([int(w) in listed for w in words_N])
    return 2 * int((says_N & fires_N).sum()) / max(1, int(says_N.sum()) + int(fires_N.sum()))


@exercise(
    "Exercise 13.2: the words of a label",
    passed="the list that tells best, neither the longest nor the surest",
)
def label_words(function: Callable) -> None:
    """`label_words(words_N, fires_N)` -> ids of the words of the best label."""
    for seed, (n, v, own, noise) in enumerate(((600, 30, 4, 0.03), (900, 45, 7, 0.06), (400, 25, 2, 0.02))):  # noqa: E501  # fmt: skip
        draw = _drawer(230 + seed)
        words_N = (torch.rand(n, generator=draw).square() * v).long()
        order_V = torch.randperm(v, generator=draw)
        rate_V = torch.full((v,), noise)
        rate_V[order_V[:own]] = 0.9
        rate_V[order_V[own : 2 * own]] = 0.4
        fires_N = torch.rand(n, generator=draw) < rate_V[words_N]
        words_N[0], fires_N[0] = v, True  # a word that stands once, and the unit fires there
        places_V = torch.bincount(words_N, minlength=v + 1)
        hits_V = torch.bincount(words_N[fires_N], minlength=v + 1)
        share_V = hits_V / places_V.clamp(min=1)
        by_rate = share_V.argsort(descending=True).tolist()
        prefixes = [set(by_rate[: m + 1]) for m in range(v + 1)]
        best = max(_f1(listed, words_N, fires_N) for listed in prefixes)
        listed = _listed(_called(function, words_N, fires_N), v)
        got = _f1(listed, words_N, fires_N)
        if got >= best - 1e-9:
            continue
        hints = {
            "every word at which it ever fires: most of those are chance": (hits_V > 0).nonzero(),
            "only the word with the most firings": hits_V.argmax()[None],
            "only the word with the highest rate": share_V.argmax()[None],
            "words at which it fires more often than not: the best F1 may want more": (
                (share_V > 0.5).nonzero()
            ),
            "all words that are there": (places_V > 0).nonzero(),
        }
        for hint, ids in hints.items():
            if listed == set(ids.flatten().tolist()):
                raise Mistake(hint)
        by_hits = hits_V.argsort(descending=True).tolist()
        if any(listed == set(by_hits[: m + 1]) for m in range(v + 1)):
            raise Mistake("words in the order of their firings: frequent words come first; order "
                          "by the share of a word's places at which the unit fires")  # fmt: skip
        raise Mistake(f"this list has an F1 of {got:.3f}; the best one reaches {best:.3f}")


def _listed(answer: Any, most: int) -> set[int]:
    """The ids, from a list, a set or a tensor."""
    ids = as_tensor(list(answer) if isinstance(answer, set | list | tuple) else answer, "the ids")
    if ids.ndim > 1 or not bool((ids == ids.round()).all()):
        raise Mistake("a list of word ids is wanted: whole numbers, in one row")
    if ids.numel() and not (float(ids.min()) >= 0 and float(ids.max()) <= most):
        raise Mistake(f"ids go from 0 to {most}; there are others in the list")
    return set(ids.flatten().long().tolist())


@exercise("Exercise 13.3: how sure?", passed="five of five is not yet certain")
def interval(function: Callable) -> None:
    """`interval(hits, n)` -> Wilson's (low, high)."""
    for hits, n in ((5, 6), (5, 5), (0, 7), (130, 400), (1, 3)):
        got = need_shape(call(function, hits, n), (2,), "the interval", "Return (low, high).")
        p, z = hits / n, 1.96
        root = math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((p + z * z / (2 * n) + s * z * root) / (1 + z * z / n) for s in (-1, 1))
        plain = z * math.sqrt(p * (1 - p) / n)
        once = math.sqrt(p * (1 - p) / n + 1 / (4 * n * n))
        wrong = {
            "p ± z √(p (1 - p) / n): says nothing at 5 of 5, where it is (1, 1)": (
                torch.tensor([p - plain, p + plain], dtype=torch.float64)
            ),
            "the division by 1 + z² / n is missing": torch.tensor(
                [low, high], dtype=torch.float64) * (1 + z * z / n),
            "first the lower end, then the upper": torch.tensor([high, low], dtype=torch.float64),
            "z = 1 gives 68 %, not 95": torch.tensor(
                [(p + 1 / (2 * n) + s * once) / (1 + 1 / n) for s in (-1, 1)], dtype=torch.float64
            ),
        }  # fmt: skip
        right = torch.tensor([low, high], dtype=torch.float64)
        otherwise = f"for {hits} of {n} expected ({low:.4f}, {high:.4f}), came {got.tolist()}"
        diagnose(got, right, wrong, otherwise)


KINDS = ("here", "before", "two back", "pair")


def _unit(kind: str, words_NT: Tensor, chosen: Tensor, draw: torch.Generator) -> Tensor:
    """Where a unit of a kind fires, with a little noise, `[N, P]`."""
    here, before = words_NT[:, 1:], words_NT[:, :-1]
    two_back = torch.cat([torch.full_like(words_NT[:, :1], -1), words_NT[:, :-2]], 1)
    fires = {
        "here": torch.isin(here, chosen),
        "before": torch.isin(before, chosen),
        "two back": torch.isin(two_back, chosen),
        "pair": torch.isin(before, chosen[::2]) & torch.isin(here, chosen),
    }[kind]
    return fires & (torch.rand(fires.shape, generator=draw) < 0.95)


def _rule(words_NT: Tensor, fires_NP: Tensor) -> Callable[[Tensor], Tensor]:
    """Exercise 13.2's rule, here or before."""
    best: tuple[float, slice, set[int]] = (-1.0, slice(1, None), set())
    for where in (slice(1, None), slice(0, -1)):
        words_N, fires_N = words_NT[:, where].flatten(), fires_NP.flatten()
        places_V = torch.bincount(words_N)
        hits_V = torch.bincount(words_N[fires_N], minlength=len(places_V))
        order_V = (hits_V / places_V.clamp(min=1)).argsort(descending=True)
        f1_V = 2 * hits_V[order_V].cumsum(0) / (places_V[order_V].cumsum(0) + hits_V.sum())
        if f1_V.max() > best[0]:
            best = (float(f1_V.max()), where, set(order_V[: int(f1_V.argmax()) + 1].tolist()))
    listed = torch.tensor(sorted(best[2]))
    return lambda words_NT: torch.isin(words_NT[:, best[1]], listed)


def _score(says_NP: Tensor, fires_NP: Tensor) -> float:
    return 2 * int((says_NP & fires_NP).sum()) / max(1, int(says_NP.sum() + fires_NP.sum()))


@exercise(
    "Exercise 13.4: a better label",
    passed="better than the rule, on units and text that you never saw",
)
def my_label(function: Callable) -> str:
    """`my_label(words_NT, fires_NP)` -> a function of words `[N, T]` to a mask `[N, T - 1]`."""
    mine, rule = [], []
    for seed, kind in enumerate(KINDS + KINDS):
        draw = _drawer(330 + seed)
        n, t, v = 60 + seed, 24 + seed, 40 + 2 * seed
        words_NT = (torch.rand(2 * n, t, generator=draw).pow(1.5) * v).long()
        chosen = torch.randperm(v, generator=draw)[: 4 + seed % 3]
        if kind == "pair":
            chosen = torch.arange(v)[: 12 + seed]
        fires_NP = _unit(kind, words_NT, chosen, draw)
        says = _called(function, words_NT[:n], fires_NP[:n])
        if not callable(says):
            raise Mistake("my_label should return a function: says(words_NT) -> mask")
        got_NP = need_shape(
            _called(says, words_NT[n:]), (n, t - 1), "what `says` returned",
            "One True or False for each position from the second on.",
        )  # fmt: skip
        if not bool(((got_NP == 0) | (got_NP == 1)).all()):
            raise Mistake("`says` should give True and False, nothing in between")
        mine.append(_score(got_NP.bool(), fires_NP[n:]))
        rule.append(_score(_rule(words_NT[:n], fires_NP[:n])(words_NT[n:]), fires_NP[n:]))
    got, by_rule = sum(mine) / len(mine), sum(rule) / len(rule)
    worst = min(zip(mine, KINDS + KINDS, strict=True))
    if got < by_rule + 0.05:
        raise Mistake(f"mean F1 {got:.2f} on fresh text, the rule of exercise 13.2 {by_rule:.2f}; "
                      f"lowest for a unit of the kind “{worst[1]}”: {worst[0]:.2f}")  # fmt: skip
    return f"mean F1 {got:.2f} on units and text that you never saw; the rule reaches {by_rule:.2f}"


@guesses.prediction
def predicted_share(guess: Any, share: float) -> Verdict:
    """A reply to which share of the features' F1 the labels of random directions will reach."""
    return guesses.reply_to_number(
        "random directions", guess, share, within=0.1,
        near=f"about right: {share:.0%}.",
        low=f"more: {share:.0%}. A list of words fits nearly anything a little.",
        high=f"less: {share:.0%}. Something is easier to say of features.",
    )  # fmt: skip
