"""Checks of lesson 08, what features mean. Layer 4.

Every target is computed here, from the definitions and without `saelearn.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from saelearn import corpus
from saelearn.exercises import Mistake, as_tensor, call, close, diagnose, exercise, need_shape


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@exercise("Exercise 8.1", passed="the documents in which it fires hardest, each of them once")
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
        raise Mistake("ranked by the mean: one strong token is enough, so rank by the peak")
    if got[0] == 1 or got == [4, 2, 0]:
        raise Mistake("weakest first: sort in descending order")
    if got != [0, 2, 4]:
        raise Mistake("rank documents by their peak, f_NT.max(dim=1).values, highest first")
    wide_NT = _normal(1, 40, 6).abs()
    got = as_tensor(call(top_documents, wide_NT.clone(), 7), "the answer").flatten().tolist()
    if got != sorted(range(40), key=lambda n: -float(wide_NT[n].max()))[:7]:
        raise Mistake("right for one example, but not for 40 other documents with k = 7")


@exercise("Exercise 8.2", passed="a feature writes one column of an nn.Linear's weight")
def decoder_direction(written_by: Callable) -> None:
    """`written_by(decoder, feature)` -> `[D]` for an `nn.Linear` from F features to D."""
    square = nn.Linear(6, 6)  # where the wrong index gives no error
    wide = nn.Linear(12, 4)
    with torch.no_grad():
        for seed, layer in enumerate((square, wide)):
            layer.weight.copy_(_normal(seed, *layer.weight.shape))
            layer.bias.copy_(1 + _normal(seed + 5, len(layer.bias)))
    for layer, feature in ((square, 2), (wide, 9)):
        with torch.no_grad():
            got = call(written_by, layer, feature)
        column = layer.weight.detach()[:, feature]
        wrong = {
            "the bias is in it: every feature would seem to write it": column + layer.bias.detach()
        }
        if layer is square:
            hint = "this is a row: what reaches output 2 from every feature. Take the column"
            wrong = {hint: layer.weight.detach()[feature], **wrong}
        hint = "It has length d_in: slice the decoder that is handed in."
        got = need_shape(got, (layer.out_features,), "the direction", hint)
        otherwise = "feature i writes what decoder(one-hot i) - decoder.bias gives: try that"
        diagnose(got, column, wrong, otherwise, rtol=1e-4, atol=1e-5)


def _f1(fires_N: Tensor, holds_N: Tensor) -> float:
    both, fired, held = (float(a.sum()) for a in (fires_N & holds_N, fires_N, holds_N))
    return 2 * both / (fired + held) if fired + held else 0.0


@exercise("Exercise 8.3", passed="precision and recall in one number that forgives neither")
def f1(f1_score: Callable) -> None:
    """`f1_score(fires_N, holds_N)` -> one number."""
    fires_N = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).bool()
    holds_N = torch.tensor([1, 0, 1, 1, 1, 1, 0, 0, 0, 0]).bool()
    got = need_shape(call(f1_score, fires_N, holds_N), (), "F1")
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
    never = call(f1_score, torch.zeros(10).bool(), holds_N)
    if math.isnan(float(never)) or float(never) != 0:
        raise Mistake("a feature that never fires should get 0, without dividing by zero")
    nothing_N = torch.zeros(10).bool()
    for fires, holds, why in (
        (nothing_N, nothing_N, "it never fires and nothing holds"),
        (fires_N, ~fires_N, "it fires, but never where the concept holds"),
    ):
        none = float(need_shape(call(f1_score, fires.clone(), holds.clone()), (), "F1"))
        if none != 0:  # nan too
            raise Mistake(f"{none:g} where {why}; F1 should be 0: avoid dividing by zero")


@exercise("Exercise 8.4", passed="chosen on one half, scored on the other: an honest number")
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

        everywhere = slice(None)
        wrong = {
            "this is the score on the half that chose: report the other half's": at(
                best(first), first
            ),
            "chosen and scored on the same rows, all of them: keep the second half out": at(
                best(everywhere), everywhere
            ),
            "the second half chose and is scored: it must have no say": at(best(second), second),
            "the halves are exchanged: choose on the first, score on the second": at(
                best(second), first
            ),
            "chosen on all rows: the second half had a say in it": at(best(everywhere), second),
            "scored on all rows: the half that chose must not be scored": at(
                best(first), everywhere
            ),
            "this is the threshold: return the F1 that it gets on the second half": best(first),
        }
        got = call(honest_f1, score_N.clone(), holds_N.clone(), list(grid))
        got = need_shape(got, (), "the answer", "One number, the F1 on the second half.")
        otherwise = (
            "find the threshold with the best F1 on the first half, score the second with it"
        )
        diagnose(got, at(best(first), second), wrong, otherwise, rtol=1e-4)


def _two_halves(seed: int) -> tuple[Tensor, Tensor]:
    """Scores and truths whose best threshold is another one in each half."""
    generator = torch.Generator().manual_seed(seed)
    score_N = torch.rand(400, generator=generator)
    cut_N = torch.where(torch.arange(400) < 200, 0.75, 0.35)
    p_N = torch.sigmoid(15 * (score_N - cut_N))
    return score_N, torch.rand(400, generator=generator) < p_N


NAMED = ("golden retriever", "골든 리트리버")
NEAR = {"poodle", "beagle", "husky", "Golden", "푸들", "비글", "허스키"}


@cache
def _words() -> frozenset[str]:
    return frozenset(word for doc in corpus.documents(2_000) for word in doc.tokens)


@exercise("Exercise 8.5", passed="a test that the label could have failed")
def texts(should: Sequence[str], should_not: Sequence[str]) -> None:
    """Texts that name a golden retriever, and texts that do not, some of them nearly."""
    for name, group in (("should", should), ("should_not", should_not)):
        if isinstance(group, str):
            raise Mistake(f"{name} is one text: make it a list of texts, ['...', '...', '...']")
        if len({" ".join(text.split()) for text in group}) < 3:
            raise Mistake(f"{name} needs at least three texts that differ")
        for text in group:
            if not text.split():
                raise Mistake(f"a text in {name} is empty")
            unknown = sorted(set(text.split()) - _words())
            if unknown:
                raise Mistake(
                    f"the model does not know {', '.join(map(repr, unknown))}: use its words, "
                    "each punctuation mark between spaces"
                )
    silent = [t for t in should if not any(n in " ".join(t.split()) for n in NAMED)]
    if silent:
        raise Mistake(f"{silent[0]!r} does not name the golden retriever, so why should it fire?")
    if named := [t for t in should_not if any(n in " ".join(t.split()) for n in NAMED)]:
        raise Mistake(f"{named[0]!r} names the golden retriever: it belongs to should")
    if not any(NEAR & set(text.split()) for text in should_not):
        raise Mistake(
            "these are all far from it: any label would pass. Add a near miss, another dog or "
            "the Golden Gate Bridge"
        )
    if len({text.split()[0] for text in should}) < 2 and len({len(t.split()) for t in should}) < 2:
        raise Mistake("all texts in should are built alike: vary the place, the register, or both")


@exercise("Exercise 8.6", passed="1 for a specialist, R for whoever is equally at home everywhere")
def spread(effective_number: Callable) -> None:
    """`effective_number(mass_R)` -> exp of the entropy of the shares."""
    for mass in ([3.0, 3.0, 3.0, 3.0], [6.0, 3.0, 1.0], [1.0, 1.0, 0.0, 2.0]):
        mass_R = torch.tensor(mass)
        share = [m / sum(mass) for m in mass if m > 0]
        entropy = -sum(p * math.log(p) for p in share)
        got = call(effective_number, mass_R.clone())
        got = need_shape(got, (), "the answer", "One number for one row of masses.")
        if got.isnan():
            raise Mistake("0 log 0 is nan in floating point: leave out shares of 0, or clamp them")
        unnormalised = -sum(m * math.log(m) for m in mass if m > 0)
        wrong = {
            "this is the entropy: take exp of it, so that it counts registers": entropy,
            "the sign is lost: entropy is minus the sum of p log p": math.exp(-entropy),
            "masses are not shares yet: divide by their sum": math.exp(min(unnormalised, 700)),
            "log2 and exp do not go together: use log, or 2 ** entropy": math.exp(
                entropy / math.log(2)
            ),
            "this is how many are not zero: a trace would count as much as the bulk": len(share),
        }
        if close(got, math.exp(entropy), rtol=1e-3):
            continue
        diagnose(got, math.exp(entropy), wrong, "exp(-sum of p log p), p = mass / sum", rtol=1e-3)
