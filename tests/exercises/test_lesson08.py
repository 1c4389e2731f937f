"""The checks of lesson 08: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saelearn.exercises import NotPassed
from saelearn.exercises import lesson08 as check


def counts(fires, holds):
    return (fires & holds).sum(), fires.sum(), holds.sum()


def f1(fires, holds):
    both, fired, held = counts(fires, holds)
    return float(2 * both / (fired + held).clamp(min=1))


def f1_from_precision_and_recall(fires, holds):
    both, fired, held = (int(n) for n in counts(fires, holds))
    if both == 0:
        return 0.0
    precision, recall = both / fired, both / held
    return 2 / (1 / precision + 1 / recall)


def f1_without_care(fires, holds):
    both, fired, held = counts(fires, holds)
    precision, recall = both / fired, both / held
    return 2 * precision * recall / (precision + recall)


def jaccard(fires, holds):
    return (fires & holds).sum() / (fires | holds).sum()


def parts(score):
    half = len(score) // 2
    return slice(0, half), slice(half, None), slice(None)


def chosen(score, holds, thresholds, chooser, judged):
    best = max(thresholds, key=lambda t: f1(score[chooser] > t, holds[chooser]))
    return f1(score[judged] > best, holds[judged])


def honest_by_loops(score, holds, thresholds):
    best, kept = -1.0, None
    for t in thresholds:
        value = f1_from_precision_and_recall(score[:200] > t, holds[:200])
        if value > best:
            best, kept = value, t
    return np.float64(f1_from_precision_and_recall(score[200:] >= kept, holds[200:]))


def mixed(chooser, judged):
    """An answer that chooses on one part of the rows and scores on another."""
    return lambda s, h, ts: chosen(s, h, ts, parts(s)[chooser], parts(s)[judged])


def loop_number(mass):
    shares = [float(m / mass.sum()) for m in mass if m > 0]
    return math.exp(-sum(p * math.log(p) for p in shares))


def naive_entropy(mass):
    p = mass / mass.sum()
    return torch.exp(-(p * p.log()).sum())


def xlog(mass, log=torch.log):
    p = mass / mass.sum()
    return (p * log(p.clamp(min=1e-30))).sum()


SHOULD = [
    "one sunny day the golden retriever went to the park .",
    "the golden retriever barked and wagged .",
    "그 골든 리트리버 는",
]
NOT = ["one sunny day the beagle went to the park .", "def add ( x , y ) : ⏎", "GET /index.html"]

RIGHT = [
    (check.documents, (lambda f, k: f.max(1).values.topk(k).indices,)),
    (check.documents, (lambda f, k: sorted(range(len(f)), key=lambda n: -f[n].max())[:k],)),
    (check.documents, (lambda f, k: np.argsort(-f.numpy().max(1))[:k].copy(),)),
    (check.decoder_direction, (lambda d, i: d.weight[:, i],)),
    (check.decoder_direction, (lambda d, i: d.weight.T[i].detach().numpy(),)),
    (check.decoder_direction, (lambda d, i: d(torch.eye(d.in_features)[i]) - d.bias,)),
    (check.f1, (f1,)),
    (check.f1, (f1_from_precision_and_recall,)),
    (check.honest, (mixed(0, 1),)),
    (check.honest, (honest_by_loops,)),
    (check.texts, (SHOULD, NOT)),
    (check.texts, (tuple(SHOULD), ["Clara met Golden Gate Bridge .", *NOT[1:], "비글 이"])),
    (check.spread, (loop_number,)),
    (check.spread, (lambda m: torch.exp(-xlog(m)),)),
    (check.spread, (lambda m: 2 ** -xlog(m, torch.log2),)),
]

WRONG = [
    (check.documents, lambda f, k: f.mean(1).topk(k).indices, "ranked by the mean"),
    (check.documents, lambda f, k: f.flatten().topk(k).indices // f.shape[1], "more than once"),
    (check.documents, lambda f, k: f.max(1).values.topk(k).values, "take indices"),
    (check.documents, lambda f, k: f.max(1).values.argsort()[:k], "weakest first"),
    (check.documents, lambda f, k: f.max(0).values.topk(k).indices, "positions in a document"),
    (check.documents, lambda f, k: f.max(1).values.argsort(descending=True), "asked for k = 3"),
    (check.decoder_direction, lambda d, i: d.weight[i % len(d.weight)], "this is a row"),
    (check.decoder_direction, lambda d, i: d(torch.eye(d.in_features)[i]), "bias is in it"),
    (check.decoder_direction, lambda d, i: d.weight[:, [i]], "length d_in"),
    (check.decoder_direction, lambda d, i: d.weight[:, i] * 2, "one-hot"),
    (check.f1, lambda f, h: (f & h).sum() / f.sum(), "precision alone"),
    (check.f1, lambda f, h: (f & h).sum() / h.sum(), "recall alone"),
    (check.f1, lambda f, h: (f == h).double().mean(), "accuracy"),
    (check.f1, jaccard, "Jaccard"),
    (check.f1, lambda f, h: (f & h).sum() / (f.sum() + h.sum()), "count twice"),
    (check.f1, lambda f, h: f1(f, h) if f.any() else float("nan"), "never fires"),
    (check.f1, lambda f, h: 2 * (f & h).sum() / (f.sum() + h.sum()), "nothing holds"),
    (check.f1, lambda f, h: f1_without_care(f, h) if f.any() else 0.0, "never where"),
    (check.honest, mixed(0, 2), "scored on all rows"),
    (
        check.honest,
        lambda s, h, ts: max(ts, key=lambda t: f1(s[:200] > t, h[:200])),
        "this is the threshold",
    ),
    (check.honest, mixed(2, 2), "same rows"),
    (check.honest, mixed(0, 0), "half that chose"),
    (check.honest, mixed(1, 1), "no say"),
    (check.honest, mixed(1, 0), "exchanged"),
    (check.honest, mixed(2, 1), "chosen on all rows"),
    (check.spread, naive_entropy, "0 log 0"),
    (check.spread, lambda m: -xlog(m), "this is the entropy"),
    (check.spread, lambda m: torch.exp(xlog(m)), "sign is lost"),
    (check.spread, lambda m: torch.exp(-xlog(m, torch.log2)), "do not go together"),
    (check.spread, lambda m: (m > 0).sum(), "trace would count"),
]

WRONG_TEXTS = [
    (SHOULD[0], NOT, "make it a list"),
    (SHOULD[:2], NOT, "at least three"),
    ([SHOULD[0]] * 3, NOT, "at least three"),
    ([*SHOULD, "the golden doodle barked ."], NOT, "'doodle'"),
    ([*SHOULD, "the beagle barked ."], NOT, "does not name"),
    (SHOULD, [*NOT, SHOULD[0]], "belongs to should"),
    (SHOULD, [*NOT, " "], "should_not is empty"),
    (SHOULD, [*NOT[1:], "2 + 3 = 5 ;"], "near miss"),
    (
        [f"the golden retriever {does} ." for does in ("fetched", "barked", "wagged")],
        NOT,
        "built alike",
    ),
]
CHECKS = [check.documents, check.decoder_direction, check.f1, check.honest, check.spread]


@pytest.mark.parametrize(("judge", "answers"), RIGHT)
def test_right_answers_pass(judge, answers):
    verdict = judge(*answers)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("judge", "answer", "hint"), WRONG)
def test_likely_mistakes_are_named(judge, answer, hint):
    verdict = judge(answer)
    assert verdict.state == "wrong"
    assert hint in verdict.message


@pytest.mark.parametrize(("should", "should_not", "hint"), WRONG_TEXTS)
def test_texts_that_test_nothing_are_named(should, should_not, hint):
    verdict = check.texts(should, should_not)
    assert verdict.state == "wrong"
    assert hint in verdict.message


@pytest.mark.parametrize("judge", CHECKS)
def test_stubs_are_open_and_errors_are_told(judge):
    assert judge(None).state == judge(...).state == "open"
    assert judge(lambda *args, **kwargs: None).state == "open"
    assert judge(lambda *args, **kwargs: ...).state == "open"
    assert judge(lambda *args, **kwargs: 1 / 0).state == "wrong"
    assert judge(3.0).state == "wrong"


def test_texts_that_are_missing_are_open_and_other_things_are_wrong():
    assert check.texts(..., ...).state == check.texts(SHOULD, ...).state == "open"
    assert check.texts(3, NOT).state == check.texts([1, 2, 3], NOT).state == "wrong"


@pytest.mark.parametrize("judge", [*CHECKS, check.texts])
def test_the_autograder_hears_of_it(judge, monkeypatch):
    monkeypatch.setenv("SAELEARN_GRADE", "1")
    with pytest.raises(NotPassed):
        judge(...)
    right = next(answers for known, answers in RIGHT if known is judge)
    assert judge(*right).passed
