"""Checks of lesson 08, what features mean.

Every target is computed here, from the definitions and without `saelearn.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from saelearn import corpus
from saelearn.errors import Refusal
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


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@exercise(
    "Exercise 8.1: where it fires",
    passed="the documents in which it fires hardest, each of them once",
)
def documents(top_documents: Callable) -> None:
    """`top_documents(f_NT, k)` -> `[k]` document numbers, strongest first."""
    f_NT = torch.tensor(
        [
            [0.0, 9.0, 8.0, 7.5],  # three of the strongest tokens are in one document
            [0.0, 0.0, 0.0, 0.0],
            [6.0, 0.0, 0.0, 0.0],
            [3.0, 3.0, 3.0, 3.0],
            [0.0, 0.0, 0.0, 5.0],
        ]
    )
    got = as_tensor(call(top_documents, f_NT.clone(), 3), "the answer").flatten().tolist()
    if len(got) != 3:
        raise Mistake(f"asked for k = 3 documents, but {len(got)} came back")
    if got == [1, 2, 3]:
        raise Mistake("these are positions in a document: take the maximum over positions, dim=1")
    if got == [9, 8, 7.5] or got == [9, 6, 5]:
        raise Mistake("these are activations: topk and sort give values and indices, take indices")
    if len(set(got)) < 3:
        raise Mistake(
            "one document comes more than once: a single talkative text would fill the page. "
            "Take each document's peak first"
        )
    if max(got) > 4:
        raise Mistake("these are numbers of tokens, not of documents: look at each row's peak")
    if got == [0, 3, 2]:
        raise Mistake(
            "ranked by the mean or the sum: one strong token is enough, so rank by the peak"
        )
    if got[0] == 1:
        raise Mistake("weakest first: sort in descending order")
    if got != [0, 2, 4]:
        raise Mistake("rank documents by their peak, f_NT.max(dim=1).values, highest first")
    wide_NT = _normal(1, 40, 6).abs()
    got = as_tensor(call(top_documents, wide_NT.clone(), 7), "the answer").flatten().tolist()
    if got != sorted(range(40), key=lambda n: -float(wide_NT[n].max()))[:7]:
        raise Mistake("right for one example, but not for 40 other documents with k = 7")


@exercise(
    "Exercise 8.2: the logit effect",
    passed="what a push does to each word, and to no word in particular: 0",
)
def effect(function: Callable) -> None:
    """`effect(before_NTV, after_NTV)` -> `[V]`, the mean gain relative to all words."""
    for seed, (n, t, v) in enumerate(((3, 5, 7), (4, 4, 4))):  # where a wrong axis gives no error
        before_NTV, gain_NTV = 2 * _normal(seed, n, t, v), _normal(seed + 9, n, t, v)
        gain_NTV += torch.linspace(-1, 2, v) + 3.0  # a shift common to all words
        gain_NTV[:, 0] = 20 * _normal(seed + 5, v)  # what stands at <doc> counts for nothing
        after_NTV = before_NTV + gain_NTV
        mean_V, all_V = gain_NTV[:, 1:].mean((0, 1)), gain_NTV.mean((0, 1))
        sum_V = gain_NTV[:, 1:].sum((0, 1))
        chance_V = (after_NTV.softmax(-1) - before_NTV.softmax(-1))[:, 1:].mean((0, 1))
        log_V = (after_NTV.log_softmax(-1) - before_NTV.log_softmax(-1))[:, 1:].mean((0, 1))
        wrong = {
            "the other way round: after minus before": mean_V.mean() - mean_V,
            "a shift common to all words is still in it: subtract the mean over words": mean_V,
            "position 0 is in it, where nothing was added: [:, 1:]": all_V - all_V.mean(),
            "sums, not means: they grow with the number of texts": sum_V - sum_V.mean(),
            "these are probabilities; logits are asked for, before the softmax": chance_V,
            "these are log-probabilities; take the logits, less their mean over words": log_V,
        }
        got = call(function, before_NTV.clone(), after_NTV.clone())
        got = need_shape(got, (v,), "the effect", "One number for each word: average the rest.")
        otherwise = "mean over documents and positions but the first, less the mean over words"
        diagnose(got, mean_V - mean_V.mean(), wrong, otherwise, rtol=1e-3, atol=1e-4)


def _f1(fires_N: Tensor, holds_N: Tensor) -> float:
    both, fired, held = (float(a.sum()) for a in (fires_N & holds_N, fires_N, holds_N))
    return 2 * both / (fired + held) if fired + held else 0.0


@exercise("Exercise 8.3: F1", passed="precision and recall in one number that forgives neither")
def f1(f1_score: Callable) -> None:
    """`f1_score(fires_N, holds_N)` -> one number."""
    fires_N = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).bool()
    holds_N = torch.tensor([1, 0, 1, 1, 1, 1, 0, 0, 0, 0]).bool()
    got = need_shape(call(f1_score, fires_N.clone(), holds_N.clone()), (), "F1")
    precision, recall = 2 / 3, 2 / 5
    wrong = {
        "this is precision alone: a feature that fires once, rightly, would be perfect": precision,
        "this is recall alone: a feature that always fires would be perfect": recall,
        "this is accuracy: concepts are rare, so a feature that never fires would do well": 0.6,
        "this is the plain mean; F1 is the harmonic one": (precision + recall) / 2,
        "this is the overlap (Jaccard); in F1 the hits count twice, above and below": 1 / 3,
        "the hits count twice: 2 hits / (fired + held)": 0.25,
    }
    diagnose(got, 0.5, wrong, "F1 = 2 hits / (fired + held)", rtol=1e-4)
    never = need_shape(call(f1_score, torch.zeros(10).bool(), holds_N.clone()), (), "F1")
    if not close(never, 0.0):  # nan too
        raise Mistake("a feature that never fires should get 0, without dividing by zero")
    cases = {"it fires, but never where the concept holds": (fires_N, ~fires_N)}
    cases["it never fires and nothing holds"] = (torch.zeros(10).bool(),) * 2
    for why, (fires, holds) in cases.items():
        none = float(need_shape(call(f1_score, fires.clone(), holds.clone()), (), "F1"))
        if none != 0:  # nan too
            raise Mistake(f"{none:g} where {why}; F1 should be 0: avoid dividing by zero")


@exercise(
    "Exercise 8.4: an honest F1", passed="chosen on one half, scored on the other: an honest number"
)
def honest(honest_f1: Callable) -> None:
    """`honest_f1(score_N, holds_N, thresholds)` -> F1 on the second half."""
    grid = [0.05 + 0.1 * i for i in range(10)]
    for seed in (0, 1):
        score_N, holds_N = _two_halves(seed)
        half = len(score_N) // 2
        first, second = slice(0, half), slice(half, None)

        def at(threshold: float, part: slice, score=score_N, holds=holds_N) -> float:
            return _f1(score[part] > threshold, holds[part])

        def best(part: slice, at=at) -> float:
            return max(grid, key=lambda t: at(t, part))

        every = slice(None)
        mistaken = {
            "this is the score on the half that chose: report the other half's": (first, first),
            "chosen and scored on the same rows, all of them: keep the second half out": (every,)
            * 2,
            "the second half chose and is scored: it must have no say": (second, second),
            "the halves are exchanged: choose on the first, score on the second": (second, first),
            "chosen on all rows: the second half had a say in it": (every, second),
            "scored on all rows: the half that chose must not be scored": (first, every),
        }
        wrong = {hint: at(best(chooser), part) for hint, (chooser, part) in mistaken.items()}
        threshold = "this is the threshold: return the F1 that it gets on the second half"
        wrong[threshold] = best(first)
        got = call(honest_f1, score_N.clone(), holds_N.clone(), list(grid))
        got = need_shape(got, (), "the answer", "One number, the F1 on the second half.")
        otherwise = (
            "find the threshold with the best F1 on the first half, score the second with it"
        )
        diagnose(got, at(best(first), second), wrong, otherwise, rtol=1e-4)


def honestly(score_N: Tensor, holds_N: Tensor, thresholds: Sequence[float]) -> float:
    """What the lesson goes on with while exercise 8.4 is open."""
    half = len(score_N) // 2
    best = max(thresholds, key=lambda t: _f1(score_N[:half] > t, holds_N[:half]))
    return _f1(score_N[half:] > best, holds_N[half:])


def _two_halves(seed: int) -> tuple[Tensor, Tensor]:
    """Scores and truths whose best threshold is another one in each half."""
    generator = torch.Generator().manual_seed(seed)
    score_N = torch.rand(400, generator=generator)
    cut_N = torch.where(torch.arange(400) < 200, 0.75, 0.35)
    p_N = torch.sigmoid(15 * (score_N - cut_N))
    return score_N, torch.rand(400, generator=generator) < p_N


NAMED = ("golden retriever", "골든 리트리버")


@cache
def _words() -> frozenset[str]:
    return frozenset(word for doc in corpus.documents(2_000) for word in doc.tokens)


@exercise("Exercise 8.5: should fire, should not", passed="a test that the label could have failed")
def texts(should: Sequence[str], should_not: Sequence[str]) -> None:
    """Texts that name a golden retriever, and texts that do not, one of them nearly."""
    for name, group in (("should", should), ("should_not", should_not)):
        if isinstance(group, str):
            raise Mistake(f"{name} is one text: make it a list of texts, ['...', '...', '...']")
        if not isinstance(group, list | tuple) or not all(isinstance(t, str) for t in group):
            raise Mistake(f"{name} should be a list of texts, ['...', '...', '...']")
        if len({" ".join(text.split()) for text in group}) < 3:
            raise Mistake(f"{name} needs at least three texts that differ")
        for text in group:
            if not text.split():
                raise Mistake(f"a text in {name} is empty")
            unknown = sorted(set(text.split()) - _words())
            if unknown:
                raise Mistake(
                    f"the model does not know {', '.join(map(repr, unknown))}: use words from the "
                    "texts above, each punctuation mark between spaces"
                )
    silent = [t for t in should if not any(n in " ".join(t.split()) for n in NAMED)]
    if silent:
        raise Mistake(f"{silent[0]!r} does not name the golden retriever, so why should it fire?")
    if named := [t for t in should_not if any(n in " ".join(t.split()) for n in NAMED)]:
        raise Mistake(f"{named[0]!r} names the golden retriever: it belongs to should")
    if not any(_near(a, b) for a in should for b in should_not):
        raise Mistake(
            "no near miss: any label would pass. Copy a text from should and put another animal "
            "where the golden retriever stands, everywhere, and leave all else"
        )
    if len({text.split()[0] for text in should}) < 2:
        raise Mistake("all texts in should begin alike: vary the register")


def _near(named: str, other: str) -> bool:
    """Whether only the dog's name (and in Korean a particle) was exchanged."""
    text = " ".join(named.split())
    a, b = text.replace(NAMED[0], "DOG").replace(NAMED[1], "DOG").split(), other.split()
    differ = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    particles = {"이", "가", "은", "는"}
    allowed = all(x == "DOG" or {x, y} <= particles for x, y in differ)
    return len(a) == len(b) and bool(differ) and allowed


@exercise(
    "Exercise 8.6: the base rate", passed="for a rare concept the false alarms decide, not the hits"
)
def base_rate(precision: Callable) -> None:
    """`precision(recall, false_alarms, base_rate)` -> the share of firings that are right."""
    for recall, alarms, rate in ((0.9, 0.02, 0.01), (0.5, 0.1, 0.3), (0.99, 1e-6, 1e-9)):
        right, false = recall * rate, alarms * (1 - rate)
        swapped = "1 - false_alarms is not the recall: it says what happens at the other tokens"
        missing = "the base rate is missing, or cancels: the other tokens are 1 - base_rate of all"
        alone = "false alarms happen at the other tokens only: weigh them by 1 - base_rate"
        wrong = {
            "that is how often it fires at all: divide the right firings by it": right + false,
            "that is the share of firings that are wrong": false / (right + false),
            "recall is missing: some tokens of the concept do not fire": rate / (rate + false),
            missing: recall / (recall + alarms),
            swapped: (1 - alarms) * rate / ((1 - alarms) * rate + false),
            alone: right / (right + alarms),
        }
        got = need_shape(call(precision, recall, alarms, rate), (), "the precision")
        otherwise = "right firings over all firings, each as a share of all tokens"
        diagnose(got, right / (right + false), wrong, otherwise, rtol=1e-4, atol=0.0)


def share_right(recall: float, false_alarms: float, base_rate: float) -> float:
    """What the lesson goes on with while exercise 8.6 is open."""
    right, false = recall * base_rate, false_alarms * (1 - base_rate)
    return right / (right + false)


# --- predictions ----------------------------------------------------------------------------------


@guesses.prediction
def predicted_ratio(guess: Any, ratio: float) -> Verdict:
    """A reply to how many times the neurons' score the features are expected to reach."""
    return guesses.reply_to_number(
        "features against neurons", guess, ratio, within=0.2, span=(0, 100),
        near=f"about right: {ratio:.1f} times.",
        low=f"more: {ratio:.1f} times.",
        high=f"less: {ratio:.1f} times. Many concepts have no feature of their own.",
    )  # fmt: skip


@guesses.prediction
def predicted_share(guess: Any, share: float) -> Verdict:
    """A reply to how often a good detector of a rare concept is expected to be right."""
    return guesses.reply_to_number(
        "how often it is right", guess, share, within=0.03,
        near=f"about right: {share:.0%}.",
        low=f"more often: {share:.0%}.",
        high=f"much less often: {share:.0%}. The others are so many that one in a hundred is a "
        "crowd.",
    )  # fmt: skip


def riddle(f_NF: Tensor, labels_NC: Tensor, names: Sequence[str], *, start: int) -> int:
    """The first feature from `start` on (then from 0) that a concept of the key fits well.

    Well: an F1 of 0.85 in both halves of the rows when it fires above some share of its maximum.
    Registers are too broad for a riddle, and Korean sounds and particles not for everybody.
    """
    kept = [c for c, name in enumerate(names) if name.partition(":")[0] not in _NO_RIDDLE]
    order = torch.arange(f_NF.shape[1]).roll(-start)
    halves = [rows.float() for rows in labels_NC[:, kept].tensor_split(2)]
    for index in order.split(32):
        f_NI = f_NF[:, index]
        fits_I = torch.zeros(len(index), dtype=torch.bool)
        for share in (0.0, 0.1, 0.2, 0.4):
            fires_NI = (f_NI > share * f_NI.amax(0)).float()
            f1_2IC = torch.stack(
                [
                    2 * (fires.T @ held) / (fires.sum(0)[:, None] + held.sum(0)).clamp(min=1)
                    for fires, held in zip(fires_NI.tensor_split(2), halves, strict=True)
                ]
            )
            fits_I |= (f1_2IC > 0.85).all(0).any(1) & (fires_NI.sum(0) >= 60)
        if fits_I.any():
            return int(index[fits_I.nonzero()[0, 0]])
    raise Refusal("a feature that fits some concept", "none", "take another SAE of the sweep")


_NO_RIDDLE = {"register", "sound", "particle"}
