"""The checks of lesson 08: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import torch
from every_lesson import *  # noqa: F403

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


def f1_of_sets(fires, holds):
    fires, holds = ({*np.flatnonzero(x.numpy())} for x in (fires, holds))
    both, n_wrong = len(fires & holds), len(fires ^ holds)
    return np.array([both / (both + n_wrong / 2) if both else 0.0])


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


def honest_at_once(score, holds, thresholds):
    """All thresholds in one table."""
    fires_KN = score[None] > torch.tensor(thresholds)[:, None]
    halves = fires_KN.unflatten(1, (2, -1)), holds.unflatten(0, (2, -1))
    both_K2 = (halves[0] & halves[1]).sum(-1)
    f1_K2 = 2 * both_K2 / (halves[0].sum(-1) + halves[1].sum(-1)).clamp(min=1)
    return f1_K2[f1_K2[:, 0].argmax(), 1:]


def mixed(chooser, judged):
    """An answer that chooses on one part of the rows and scores on another."""
    return lambda s, h, ts: chosen(s, h, ts, parts(s)[chooser], parts(s)[judged])


def gain(before, after):
    return (after - before)[:, 1:].mean((0, 1))


def effect_by_loops(before, after):
    """The same with numpy, word by word."""
    before, after = before.numpy(), after.numpy()
    words = [after[:, 1:, v].mean() - before[:, 1:, v].mean() for v in range(after.shape[2])]
    return np.array(words) - np.mean(words)


def effect_of_centred(before, after):
    centred = [x - x.mean(-1, keepdim=True) for x in (before, after)]
    return gain(*centred)


def of_a_million(recall, alarms, rate):
    held = 1e6 * rate
    right, false = recall * held, alarms * (1e6 - held)
    return right / (right + false)


SHOULD = [
    "one sunny day the golden retriever went to the park .",
    "the golden retriever barked and wagged .",
    "그 골든 리트리버 는",
]
NOT = ["one sunny day the beagle went to the park .", "def add ( x , y ) : ⏎", "GET /index.html"]

RIGHT = [
    (check.predicted_ratio, (1, 1.5)),
    (check.predicted_ratio, (np.float32(1.6), 1.5)),
    (check.predicted_ratio, (torch.tensor(10), 1.5)),
    (check.predicted_share, (0.99, 0.09)),
    (check.predicted_share, (torch.tensor([0.1]), 0.09)),
    (check.predicted_share, (0, 0.09)),
    (check.documents, (lambda f, k: f.max(1).values.topk(k).indices,)),
    (check.documents, (lambda f, k: sorted(range(len(f)), key=lambda n: -f[n].max())[:k],)),
    (check.documents, (lambda f, k: np.argsort(-f.numpy().max(1))[:k].copy(),)),
    (check.effect, (lambda a, b: gain(a, b) - gain(a, b).mean(),)),
    (check.effect, (effect_by_loops,)),
    (check.effect, (effect_of_centred,)),
    (check.f1, (f1,)),
    (check.f1, (f1_from_precision_and_recall,)),
    (check.f1, (f1_of_sets,)),
    (check.honest, (mixed(0, 1),)),
    (check.honest, (honest_by_loops,)),
    (check.honest, (honest_at_once,)),
    (check.texts, (SHOULD, NOT)),
    (check.texts, (tuple(SHOULD), [*NOT[1:], "그 비글 은"])),  # the particle goes with the name
    (check.texts, ([f"  {text} " for text in SHOULD], [*NOT, "the lion barked and wagged ."])),
    (check.base_rate, (lambda r, a, b: r * b / (r * b + a * (1 - b)),)),
    (check.base_rate, (of_a_million,)),
    (check.base_rate, (lambda r, a, b: torch.tensor(1 / (1 + a / r * (1 / b - 1))),)),
]

WRONG = [
    *unreadable(check.predicted_ratio, 100, 1.5),  # noqa: F405
    *unreadable(check.predicted_share, 1, 0.09),  # noqa: F405
    (check.documents, (lambda f, k: f.mean(1).topk(k).indices,), "ranked by the mean"),
    (check.documents, (lambda f, k: f.max(dim=1).topk(k).indices,), "take .values or .indices"),
    (check.documents, (lambda f, k: f.flatten().topk(k).indices // f.shape[1],), "more than once"),
    (check.documents, (lambda f, k: f.max(1).values.topk(k).values,), "take indices"),
    (check.documents, (lambda f, k: f.max(1).values.argsort()[:k],), "weakest first"),
    (check.documents, (lambda f, k: f.max(0).values.topk(k).indices,), "positions in a document"),
    (check.documents, (lambda f, k: f.max(1).values.argsort(descending=True),), "asked for k = 3"),
    (check.effect, (gain,), "common to all words"),
    (check.effect, (lambda a, b: gain(b, a) - gain(b, a).mean(),), "other way round"),
    (check.effect, (lambda a, b: (b - a).mean((0, 1)) - (b - a).mean(),), "position 0"),
    (
        check.effect,
        (lambda a, b: len(a) * (a.shape[1] - 1) * effect_of_centred(a, b),),
        "sums, not",
    ),
    (check.effect, (lambda a, b: gain(a.softmax(-1), b.softmax(-1)),), "probabilities"),
    (check.effect, (lambda a, b: gain(a.log_softmax(-1), b.log_softmax(-1)),), "log-probabilities"),
    (check.effect, (lambda a, b: (b - a)[:, 1:].mean(0),), "average the rest"),
    (check.effect, (lambda a, b: 2 * effect_of_centred(a, b),), "less the mean over words"),
    (check.f1, (lambda f, h: (f & h).sum() / f.sum(),), "precision alone"),
    (check.f1, (lambda f, h: (f & h).sum() / h.sum(),), "recall alone"),
    (check.f1, (lambda f, h: (f == h).double().mean(),), "accuracy"),
    (check.f1, (jaccard,), "Jaccard"),
    (check.f1, (lambda f, h: (f & h).sum() / (f.sum() + h.sum()),), "count twice"),
    (check.f1, (lambda f, h: f1(f, h) if f.any() else float("nan"),), "never fires"),
    (check.f1, (lambda f, h: 2 * (f & h).sum() / (f.sum() + h.sum()),), "nothing holds"),
    (check.f1, (lambda f, h: f1_without_care(f, h) if f.any() else 0.0,), "never where"),
    (check.honest, (mixed(0, 2),), "scored on all rows"),
    (
        check.honest,
        (lambda s, h, ts: max(ts, key=lambda t: f1(s[:200] > t, h[:200])),),
        "this is the threshold",
    ),
    (check.honest, (mixed(2, 2),), "same rows"),
    (check.honest, (mixed(0, 0),), "half that chose"),
    (check.honest, (mixed(1, 1),), "no say"),
    (check.honest, (mixed(1, 0),), "exchanged"),
    (check.honest, (mixed(2, 1),), "chosen on all rows"),
    (check.base_rate, (lambda r, a, b: r / (r + a),), "base rate is missing"),
    (check.base_rate, (lambda r, a, b: b / (b + a * (1 - b)),), "recall is missing"),
    (check.base_rate, (lambda r, a, b: of_a_million(1 - a, a, b),), "not the recall"),
    (check.base_rate, (lambda r, a, b: r * b / (r * b + a * b),), "or cancels"),
    (check.base_rate, (lambda r, a, b: r * b / (r * b + a),), "weigh them"),
    (check.base_rate, (lambda r, a, b: 1 - of_a_million(r, a, b),), "that are wrong"),
    (check.base_rate, (lambda r, a, b: r * b + a * (1 - b),), "how often it fires"),
    (check.base_rate, (lambda r, a, b: r * b,), "right firings over all"),
]

WRONG += [
    (check.texts, (SHOULD[0], NOT), "make it a list"),
    (check.texts, (SHOULD[:2], NOT), "at least three"),
    (check.texts, ([SHOULD[0]] * 3, NOT), "at least three"),
    (check.texts, ([*SHOULD, "the golden doodle barked ."], NOT), "'doodle'"),
    (check.texts, ([*SHOULD, "the beagle barked ."], NOT), "does not name"),
    (check.texts, (SHOULD, [*NOT, SHOULD[0]]), "belongs to should"),
    (check.texts, (SHOULD, [*NOT, " "]), "should_not is empty"),
    (check.texts, (SHOULD, [*NOT[1:], "2 + 3 = 5 ;"]), "near miss"),
    (check.texts, (SHOULD, [*NOT[1:], "the beagle ate the bone ."]), "near miss"),
    (
        check.texts,
        (
            [f"the golden retriever {does} ." for does in ("fetched", "barked", "wagged")],
            ["the beagle fetched .", *NOT],
        ),
        "begin alike",
    ),
    (check.texts, (3, NOT), "a list of texts"),
    (check.texts, ([1, 2, 3], NOT), "a list of texts"),
]

OPEN = [(check.texts, (SHOULD, ...))]
