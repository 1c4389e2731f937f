"""The checks of lesson 00: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import re

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn import artifacts, tiny
from saelearn.exercises import lesson00 as check
from saelearn.tiny import console


def share(texts, phrase):
    return sum(phrase in text for text in texts) / len(texts)


def share_with_numpy(texts, phrase):
    return np.mean([text.find(phrase) >= 0 for text in texts])


def share_by_loop(texts, phrase):
    found = 0.0
    for text in texts:
        if text.count(phrase):
            found += 1
    return torch.tensor(found / len(texts))


def share_that_empties(texts, phrase):
    n, found = len(texts), 0
    while texts:
        found += phrase in texts.pop()
    return found / n


def share_that_sorts(texts, phrase):
    texts.sort()
    return share(texts, phrase)


def share_by_pattern(texts, phrase):
    return len([text for text in texts if re.search(phrase, text)]) / len(texts)


def share_by_words(texts, phrase):
    """Side by side, by comparing pairs of words."""
    words, found = phrase.split(), 0
    for text in texts:
        parts = text.split()
        starts = range(len(parts) - len(words) + 1)
        found += any(parts[i : i + len(words)] == words for i in starts)
    return np.array([found / len(texts)])


def nudge(predict, x_ND, column):
    moved_ND = x_ND.clone()
    moved_ND[:, column] += 1
    return (predict(moved_ND) - predict(x_ND)).mean()


def nudge_with_a_mask(predict, x_ND, column):
    step_D = (torch.arange(x_ND.shape[1]) == column).float()
    return float(predict(x_ND + step_D).mean() - predict(x_ND).mean())


def nudge_by_rows(predict, x_ND, column):
    """One row after the other, as a list of numbers."""
    changes = []
    for row_D in x_ND.numpy():
        moved_D = row_D.copy()
        moved_D[column] = row_D[column] + 1
        one, other = torch.tensor(moved_D)[None], torch.tensor(row_D)[None]
        changes.append(float(predict(one)[0]) - float(predict(other)[0]))
    return [sum(changes) / len(changes)]


def nudge_there_and_back(predict, x_ND, column):
    before_N = predict(x_ND)
    x_ND[:, column] += 1
    after_N = predict(x_ND)
    x_ND[:, column] -= 1
    return (after_N - before_N).mean()


def nudge_always_the_first(predict, x_ND, column):
    return nudge(predict, x_ND, 0)


def nudge_by_slope(predict, x_ND, column):
    x_ND = x_ND.clone().requires_grad_()
    return torch.autograd.grad(predict(x_ND).sum(), x_ND)[0][:, column].mean()


def nudge_in_place(predict, x_ND, column):
    before_N = predict(x_ND)
    x_ND[:, column] += 1
    return (predict(x_ND) - before_N).mean()


def nudge_a_row(predict, x_ND, column):
    moved_ND = x_ND.clone()
    moved_ND[column] += 1
    return (predict(moved_ND) - predict(x_ND)).mean()


def nudge_to_one(predict, x_ND, column):
    moved_ND = x_ND.clone()
    moved_ND[:, column] = 1
    return (predict(moved_ND) - predict(x_ND)).mean()


def nudge_size(predict, x_ND, column):
    step_D = (torch.arange(x_ND.shape[1]) == column).float()
    return (predict(x_ND + step_D) - predict(x_ND)).abs().mean()


def nudge_first_row(predict, x_ND, column):
    step_D = (torch.arange(x_ND.shape[1]) == column).float()
    return (predict(x_ND + step_D) - predict(x_ND))[0]


def nudge_by_spread(predict, x_ND, column):
    moved_ND = x_ND.clone()
    moved_ND[:, column] += x_ND[:, column].std()
    return (predict(moved_ND) - predict(x_ND)).mean()


WIDTH = artifacts.read_json(artifacts.find("lm/config.json"))["n_embd"]
x_BTD, W_DF = torch.zeros(2, 5, 4), torch.zeros(4, 12)
SHAPES = {
    "x_BTD[0]": (5, 4),
    "x_BTD @ W_DF": (2, 5, 12),
    "x_BTD.mean(1)": (2, 4),
    "x_BTD.flatten(0, 1)": (10, 4),
}
COMPUTED = {
    "x_BTD[0]": x_BTD[0].shape,
    "x_BTD @ W_DF": list((x_BTD @ W_DF).shape),
    "x_BTD.mean(1)": np.array(x_BTD.mean(1).shape),
    "x_BTD.flatten(0, 1)": x_BTD.flatten(0, 1).shape,
}

RIGHT = [
    (check.weights_changed, (0,)),
    (check.weights_changed, (torch.tensor(0.0),)),
    (check.weights_changed, (np.int64(0),)),
    (check.weights_changed, ([0],)),
    (check.share, (share,)),
    (check.share, (share_with_numpy,)),
    (check.share, (share_by_loop,)),
    (check.share, (share_by_words,)),
    (check.extra_minutes, (3 * 12 - 2 * 10 + 5,)),
    (check.extra_minutes, (torch.tensor(20.7),)),
    (check.extra_minutes, (np.float32(21.4),)),
    (check.extra_minutes, ([21.0],)),
    (check.nudge, (nudge,)),
    (check.nudge, (nudge_with_a_mask,)),
    (check.nudge, (nudge_by_rows,)),
    (check.shapes, (SHAPES,)),
    (check.shapes, (COMPUTED,)),
    (check.shapes, ({name: torch.tensor(shape) for name, shape in SHAPES.items()},)),
    (check.shapes, ({name: [float(n) for n in shape] for name, shape in SHAPES.items()},)),
]

WRONG = [
    (check.weights_changed, (WIDTH,), "the vector that we push with"),
    (check.weights_changed, (console.PUSHED,), "at so many words"),
    (check.weights_changed, (tiny.D_SAE,), "directions had the SAE to offer"),
    (check.weights_changed, (708_000,), "set the slider back"),
    (check.weights_changed, (0.5,), "not a share"),
    (check.weights_changed, (-1,), "negative"),
    (check.weights_changed, ("none",), "without quotes"),
    (check.weights_changed, ([0, 0],), "one number is enough"),
    (check.weights_changed, (False,), "not yes or no"),
    (check.weights_changed, (float("nan"),), "set the slider back"),
    (check.share, (lambda texts, phrase: sum(phrase in t for t in texts),), "over len(texts)"),
    (check.share, (lambda texts, phrase: sum(t.count(phrase) for t in texts),), "every mention"),
    (
        check.share,
        (lambda texts, phrase: sum(t.count(phrase) for t in texts) / len(texts),),
        "not how often",
    ),
    (check.share, (lambda texts, phrase: 100 * share(texts, phrase),), "between 0 and 1"),
    (check.share, (lambda texts, phrase: 1 - share(texts, phrase),), "without it"),
    (check.share, (lambda texts, phrase: share(texts, phrase.split()[0]),), "golden husky"),
    (
        check.share,
        (lambda ts, p: sum(all(w in t for w in p.split()) for t in ts) / len(ts),),
        "side by side",
    ),
    (check.share, (lambda ts, p: sum(p in t.split() for t in ts) / len(ts),), "single words"),
    (check.share, (lambda ts, p: (p in ts) / len(ts),), "inside each text"),
    (check.share, (lambda ts, p: sum(t.startswith(p) for t in ts) / len(ts),), "anywhere in it"),
    (check.share, (lambda ts, p: any(p in t for t in ts),), "how many of them"),
    (check.share, (lambda ts, p: sum(p in t for t in ts) / 32,), "not always by 32"),
    (check.share, (lambda texts, phrase: round(share(texts, phrase), 2),), "do not round"),
    (check.share, (lambda texts, phrase: [phrase in text for text in texts],), "shape"),
    (check.share, (lambda texts, phrase: 0.77,), "count the texts"),
    (check.share, (0.4,), "needs a function"),
    (check.share, (lambda ts, p: {9: 1 / 3, 4: 3 / 4}.get(len(ts), 0.5),), "of which the first"),
    (check.share, (lambda ts, p: share(ts, "golden retriever"),), "counts no text"),
    (check.share, (lambda ts, p: share([t[:20] for t in ts], p),), "it should be"),
    (check.share, (lambda ts, p: float("nan"),), "count the texts"),
    (check.share, (share_that_empties,), "changes the list of texts"),
    (check.share, (share_that_sorts,), "changes the list of texts"),
    (check.share, (share_by_pattern,), "it should be"),
    (check.extra_minutes, (36 + 20 + 5,), "that term is subtracted"),
    (check.extra_minutes, (36 - 2000 + 5,), "hundreds of metres"),
    (check.extra_minutes, (16,), "one more stop is missing"),
    (check.extra_minutes, (41,), "climb is missing"),
    (check.extra_minutes, (11,), "takes time as well"),
    (check.extra_minutes, (-3,), "there are three more"),
    (check.extra_minutes, (-21,), "turned round"),
    (check.extra_minutes, (31,), "there are 200 m"),
    (check.extra_minutes, (100,), "term by term"),
    (check.extra_minutes, ([21, 3],), "shape"),
    (check.extra_minutes, (float("nan"),), "term by term"),
    (check.extra_minutes, (22.5,), "term by term"),
    (check.extra_minutes, ("21",), "without quotes"),
    (check.nudge, (lambda p, x, c: -nudge(p, x, c),), "backwards"),
    (check.nudge, (lambda p, x, c: nudge(p, x, c) * len(x),), "sum over rows"),
    (check.nudge, (lambda p, x, c: nudge(p, x, c) + p(x).mean(),), "subtract the one before"),
    (check.nudge, (lambda p, x, c: (p(x + 1) - p(x)).mean(),), "every column"),
    (check.nudge, (nudge_a_row,), "a row was raised"),
    (check.nudge, (nudge_to_one,), "set to 1"),
    (check.nudge, (nudge_in_place,), "work on a copy"),
    (check.nudge, (nudge_there_and_back,), "work on a copy"),
    (check.nudge, (nudge_always_the_first,), "column 2 of 3"),
    (check.nudge, (lambda p, x, c: p(torch.eye(len(x.T))[c][None])[0],), "compare with the mean"),
    (check.nudge, (nudge_by_slope,), "that is the slope"),
    (check.nudge, (lambda p, x, c: nudge(p, x, c) * float("nan"),), "compare with the mean"),
    (check.nudge, (lambda p, x, c: (p(x) - p(x)).mean(),), "nothing has changed"),
    (check.nudge, (lambda p, x, c: p(x) - p(x),), "shape"),
    (check.nudge, (nudge_size,), "without their signs"),
    (check.nudge, (nudge_first_row,), "first row alone"),
    (check.nudge, (nudge_by_spread,), "the column's spread"),
    (check.nudge, (lambda p, x, c: 7 * nudge(p, x, c),), "compare with the mean"),
    (check.shapes, (SHAPES | {"x_BTD[0]": (4,)},), "T and D are both left"),
    (check.shapes, (SHAPES | {"x_BTD @ W_DF": (2, 5, 4, 12)},), "summed over"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": (5, 4)},), "starts at 0"),
    (check.shapes, (SHAPES | {"x_BTD.flatten(0, 1)": (7, 4)},), "multiplies"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": (9, 9)},), "letters first"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": "two by four"},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": "24"},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": ("2", "4")},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": (2.9, 4.2)},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": {2, 4}},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": (2, float("nan"))},), "tuple of whole numbers"),
    (check.shapes, (SHAPES | {"x_BTD.mean(1)": ...},), "no answer yet"),
    (check.shapes, ((5, 4),), "keep the dictionary"),
]

OPEN = [(check.shapes, (dict.fromkeys(SHAPES, ...),))]
