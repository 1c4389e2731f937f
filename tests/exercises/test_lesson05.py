"""The checks of lesson 05: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn.exercises import lesson05 as check
from saelearn.tiny import dial


def best_by_search(a, l1):
    z = torch.linspace(0, 2, 400_001, dtype=torch.double)
    return torch.stack([z[((v - z) ** 2 + l1 * z).argmin()] for v in a.double()])


def price(f, W):
    return (f * W.norm(dim=1)).sum(1).mean()


def price_by_rows(f, W):
    return sum(f[:, i].mean() * W[i].square().sum().sqrt() for i in range(len(W)))


def price_of_longer_code(f, W):
    """The price of the code in the units that it writes in."""
    return torch.einsum("bf,f->b", f, W.pow(2).sum(-1) ** 0.5).mean()[None]


def price_in_place(f, W):
    with torch.no_grad():
        W /= W.norm(dim=1, keepdim=True)
    return f.sum(1).mean()


def half_up_log(l1, l0, missed):
    """The largest coefficient that misses less than a quarter."""
    return l1[missed < 0.25].max()


def by_numpy(l1, l0, missed):
    l0, missed = l0.numpy(), missed.numpy()
    seen = np.flatnonzero(l0 > 0.02 * l0.max())
    x, y = (v[seen] for v in (np.log(l0), missed))
    below = (x - x.min()) / np.ptp(x) + (y - y.min()) / np.ptp(y)
    return l1.numpy()[seen][below.argmin()]


def overwrites(l1, l0, missed):
    l0 /= l0.max()
    return check.elbow(l1, l0, missed)


PREDICTED = {
    "L0": "falls",
    "variance missed": "rises",
    "gamma": "falls",
    "planted found": "rises, then falls",
}
TERSE = {"L0": "down", "variance missed": "up", "gamma": "decreases", "planted found": "both"}

RIGHT = [
    (check.prediction, (PREDICTED,)),
    (check.prediction, (TERSE,)),
    (check.prediction, ({name.upper(): word.upper() for name, word in PREDICTED.items()},)),
    (check.best_activation, (lambda a, l1: torch.relu(a - l1 / 2),)),
    (check.best_activation, (lambda a, l1: (a - 0.5 * l1).clamp(min=0),)),
    (check.best_activation, (best_by_search,)),
    (check.fair_penalty, (price,)),
    (check.fair_penalty, (price_by_rows,)),
    (check.fair_penalty, (price_of_longer_code,)),
    (check.choose, (check.elbow,)),
    (check.choose, (half_up_log,)),
    (check.choose, (by_numpy,)),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128 / 32)),
    (check.translations, (1.68, torch.tensor(0.009375), 1.2)),
    (check.translations, (1.7, 0.0094, 0.3 * 4)),
    (check.translations, (np.float32(1.68), np.array(0.009375), torch.tensor([1.2]))),
]

WRONG = [
    (check.prediction, (dict.fromkeys(PREDICTED, ...),), "no answer for 'L0' yet"),
    (check.prediction, (PREDICTED | {"gamma": None},), "no answer for 'gamma' yet"),
    (check.prediction, ({"L0": "...", "variance missed": "..."},), "no answer for 'L0' yet"),
    (check.prediction, (PREDICTED | {"L0": "rises"},), "L0: not quite"),
    (check.prediction, (PREDICTED | {"L0": "falls, then rises"},), "L0: not quite"),
    (check.prediction, (PREDICTED | {"gamma": "rises"},), "pulls every activation"),
    (check.prediction, (PREDICTED | {"planted found": "falls"},), "both ends"),
    (check.prediction, ({"L0": "falls"},), "no answer for"),
    (check.prediction, ("falls",), "dictionary"),
    (check.best_activation, (lambda a, l1: a - l1 / 2,), "cannot be negative"),
    (check.best_activation, (lambda a, l1: (a - l1).relu(),), "mind the 2"),
    (check.best_activation, (lambda a, l1: (a - 2 * l1).relu(),), "2λ"),
    (check.best_activation, (lambda a, l1: (a * (1 - l1 / 2)).relu(),), "scales"),
    (check.best_activation, (lambda a, l1: torch.where(a > l1 / 2, a, 0),), "shortened too"),
    (
        check.best_activation,
        (lambda a, l1: a.sign() * (a.abs() - l1 / 2).relu(),),
        "for a negative a",
    ),
    (check.best_activation, (lambda a, l1: max(0, a - l1 / 2),), "compare single numbers"),
    (check.best_activation, (lambda a, l1: a.relu(),), "not the minimum"),
    (check.best_activation, (lambda a, l1: a.relu().sum(),), "shape"),
    (check.fair_penalty, (lambda f, W: f.sum(1).mean(),), "decoder is not in it"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=1)).sum(),), "batch size"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=1)).mean(),), "over the features"),
    (check.fair_penalty, (lambda f, W: (f * W.square().sum(1)).sum(1).mean(),), "squared"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=0)).sum(1).mean(),), "columns"),
    (check.fair_penalty, (lambda f, W: (f / W.norm(dim=1)).sum(1).mean(),), "cheaper still"),
    (check.fair_penalty, (lambda f, W: f * W.norm(dim=1),), "shape"),
    (check.fair_penalty, (lambda f, W: (f * W.norm(dim=1)).sum() / 6,), "batch mean"),
    (check.fair_penalty, (price_in_place,), "W_dec_FD itself is overwritten"),
    (check.fair_penalty, (lambda f, W: price(f, W).item(),), "no gradient reaches f_BF"),
    (check.fair_penalty, (lambda f, W: price(f, W.detach()),), "no gradient reaches W_dec_FD"),
    (check.choose, (lambda l1, l0, missed: l1[missed.argmin()],), "many are on"),
    (check.choose, (lambda l1, l0, missed: l1[l0.argmin()],), "much is missed"),
    (check.choose, (lambda l1, l0, missed: l1[len(l1) // 2],), "0.65 is asked for"),
    (check.choose, (lambda l1, l0, missed: 0.5,), "none of l1_K"),
    (check.choose, (lambda l1, l0, missed: (missed < 0.25).sum() - 1,), "none of l1_K"),
    (check.choose, (lambda l1, l0, missed: l1[(l0 - 3).abs().argmin()],), "0.65 is asked for"),
    (check.choose, (lambda l1, l0, missed: float("nan"),), "none of l1_K"),
    (check.choose, (lambda l1, l0, missed: l1,), "one λ is wanted"),
    (check.choose, (overwrites,), "the sweep itself is changed"),
    (check.translations, (0.3 / 5.6, 0.3 / 32, 1.2), "`scaled` is the wrong way round"),
    (check.translations, (0.3 * 5.6**2, 0.3 / 32, 1.2), "one s is left"),
    (check.translations, (0.3 * 5.6, 0.3 * 32, 1.2), "`averaged` is the wrong way round"),
    (check.translations, (0.3 * 5.6, 0.3, 1.2), "`averaged` is unchanged"),
    (check.translations, (0.3 * 5.6, "small", 1.2), "number"),
    (check.translations, (0.3 * 5.6, "0.009375", 1.2), "number, but it is a str"),
    (check.translations, ((1.68, 0.0094, 1.2),) * 3, "number, but it is a tuple"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, float("nan")), "number"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128), "`both` is one of two steps"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32), "`both` is one of two steps"),
    (check.translations, (0.3 * 5.6, 0.3 / (32 * 256), 1.2), "was there before"),
    (check.translations, (0.3 * 5.6, 0.3 / 128, 1.2), "32 dimensions"),
    (check.translations, (0.3 * 5.6, 0.008, 1.2), "nearly right"),
    (check.translations, (7.0, 0.3 / 32, 1.2), "multiply the whole loss"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 32 / 128), "upside down"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32), "penalty too"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 128), "error too"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 / 32 / 128), "divided twice"),
    (check.translations, (0.3 * 5.6, 0.3 / 32, 0.3 * 256 * 4), "batch means already"),
]


def test_hidden_sweeps_differ_in_every_size_and_unit_and_have_the_same_truth():
    """What a rule is told differs; a rule that sees the curve's shape alone is not disturbed."""
    seen = []
    check.scores(lambda *given: seen.append(given) or check.elbow(*given), dial.load_sweep())
    assert len({len(l1_K) for l1_K, *_ in seen}) >= 4
    assert len({round(float(l0_K.max()), 1) for _, l0_K, _ in seen}) == len(seen)
    best = check.scores(lambda *given: check.elbow(*given), dial.load_sweep())
    assert all(0 < value <= 1 for value in best)
