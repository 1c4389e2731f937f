"""The checks of lesson 13: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn.exercises import lesson13 as check
from saelearn.real import labels


def kept(x, tokens, special, ratio):
    text = ~torch.isin(tokens, torch.tensor(special))
    norm = x.norm(dim=1)
    return text & (norm <= ratio * norm[text].median())


def kept_numpy(x, tokens, special, ratio):
    x, tokens = x.numpy(), tokens.numpy()
    text = ~np.isin(tokens, special)
    norm = np.sqrt((x**2).sum(1))
    middle = np.sort(norm[text])[(text.sum() - 1) // 2]
    return text & (norm <= ratio * middle)


def kept_by_loop(x, tokens, special, ratio):
    lengths = [float(row.norm()) for row in x]
    text = [int(token) not in special for token in tokens]
    middle = sorted(n for n, t in zip(lengths, text, strict=True) if t)
    middle = middle[(len(middle) - 1) // 2]
    return [t and n <= ratio * middle for n, t in zip(lengths, text, strict=True)]


def first_only(x, tokens, special, ratio):
    norm = x.norm(dim=1)
    least = ratio * norm[~torch.isin(tokens, torch.tensor(special))].median()
    return (tokens != special[0]) & (norm <= least)


def kept_in_place(x, tokens, special, ratio):
    mask = kept(x, tokens, special, ratio)
    x[~mask] = 0
    return mask


def words_by_loop(words, fires):
    places, hits = {}, {}
    for word, fired in zip(words.tolist(), fires.tolist(), strict=True):
        places[word] = places.get(word, 0) + 1
        hits[word] = hits.get(word, 0) + fired
    order = sorted(places, key=lambda w: -hits[w] / places[w])
    best, listed, said, hit = -1.0, [], 0, 0
    for m, word in enumerate(order):
        said, hit = said + places[word], hit + hits[word]
        f1 = 2 * hit / (said + sum(hits.values()))
        if f1 > best:
            best, listed = f1, order[: m + 1]
    return listed


def by_hits(words, fires):
    hits = torch.bincount(words[fires], minlength=int(words.max()) + 1)
    return hits.argsort(descending=True)[:5]


def wilson(hits, n):
    return labels.interval(hits, n)


def wilson_by_roots(hits, n):
    """The two rates whose distance from hits / n is z of their own deviations."""
    z2 = 1.96**2
    roots = np.roots([1 + z2 / n, -(2 * hits / n + z2 / n), (hits / n) ** 2])
    return np.sort(roots.real)


def plain(hits, n):
    p = hits / n
    reach = 1.96 * (p * (1 - p) / n) ** 0.5
    return p - reach, p + reach


def look_back(words_NT, back):
    moved = words_NT.roll(back, 1)
    moved[:, :back] = -1
    return moved[:, 1:]


def pairs(words_NT):
    return look_back(words_NT, 1) * 10_007 + look_back(words_NT, 0)


def best_of(kinds):
    def my_label(words_NT, fires_NP):
        best = (-1.0, None, None)
        for kind in kinds:
            ids, index = kind(words_NT).unique(return_inverse=True)
            listed = torch.tensor(labels.words(index.flatten(), fires_NP.flatten()))
            said = torch.isin(index, listed)
            f1 = float(2 * (said & fires_NP).sum() / (said.sum() + fires_NP.sum()))
            if f1 > best[0] + 0.02:
                best = (f1, kind, ids[listed])
        return lambda words_NT: torch.isin(best[1](words_NT), best[2])

    return my_label


HERE, BEFORE, BACK = (lambda w, b=b: look_back(w, b) for b in (0, 1, 2))
all_kinds = best_of([HERE, BEFORE, BACK, pairs])
three_kinds = best_of([HERE, BEFORE, BACK])


def numpy_label(words_NT, fires_NP):
    says = all_kinds(words_NT, fires_NP)
    return lambda words_NT: says(words_NT).numpy()


def spoils(words_NT, fires_NP):
    fires_NP.zero_()
    return lambda words_NT: words_NT[:, 1:] > 3


RIGHT = [
    (check.keep, (kept,)),
    (check.keep, (kept_numpy,)),
    (check.keep, (kept_by_loop,)),
    (check.label_words, (labels.words,)),
    (check.label_words, (words_by_loop,)),
    (check.label_words, (lambda w, f: torch.tensor(labels.words(w, f)),)),
    (check.interval, (wilson,)),
    (check.interval, (wilson_by_roots,)),
    (check.interval, (lambda h, n: torch.tensor(labels.interval(h, n)),)),
    (check.my_label, (all_kinds,)),
    (check.my_label, (three_kinds,)),
    (check.my_label, (numpy_label,)),
    (check.predicted_share, (0.3, 0.5)),
    (check.predicted_share, (torch.tensor([0.5]), 0.5)),
    (check.predicted_share, (1, 0.5)),
]

WRONG = [
    (
        check.keep,
        (
            lambda x, t, s, r: (
                ~torch.isin(t, torch.tensor(s)) & (x.norm(dim=1) <= r * x.norm(dim=1).median())
            ),
        ),
        "median of all rows",
    ),
    (check.keep, (lambda x, t, s, r: ~torch.isin(t, torch.tensor(s)),), "ratio is ignored"),
    (check.keep, (lambda x, t, s, r: ~kept(x, t, s, r),), "to leave out"),
    (check.keep, (first_only,), "first of the special"),
    (check.keep, (kept_in_place,), "input was changed"),
    (check.keep, (lambda x, t, s, r: x[kept(x, t, s, r)],), "True or False for each row"),
    (check.label_words, (lambda w, f: w[f].unique(),), "ever fires"),
    (check.label_words, (lambda w, f: w.unique(),), "all words"),
    (check.label_words, (by_hits,), "order of their firings"),
    (check.label_words, (lambda w, f: [w[f].mode().values],), "most firings"),
    (check.label_words, (lambda w, f: [0.5],), "whole numbers"),
    (check.label_words, (lambda w, f: labels.words(w, ~f),), "F1 of"),
    (check.interval, (plain,), "says nothing at 5 of 5"),
    (check.interval, (lambda h, n: wilson(h, n)[::-1],), "first the lower"),
    (check.interval, (lambda h, n: h / n,), "(low, high)"),
    (check.interval, (lambda h, n: labels.interval(h, n, z=1.0),), "68 %"),
    (check.interval, (lambda h, n: (0.4365, 0.9699),), "expected"),
    (check.my_label, (best_of([HERE]),), "the rule of exercise 13.2"),
    (check.my_label, (best_of([HERE, BEFORE]),), "the rule of exercise 13.2"),
    (check.my_label, (lambda w, f: f,), "return a function"),
    (check.my_label, (lambda w, f: lambda words: words > 3,), "from the second on"),
    (check.my_label, (lambda w, f: lambda words: words[:, 1:].float(),), "True and False"),
    (check.my_label, (spoils,), "input was changed"),
    *unreadable(check.predicted_share, 1, 0.5),  # noqa: F405
]
