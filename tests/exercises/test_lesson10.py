"""The checks of lesson 10: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn.exercises import lesson10 as check


def by_loop(x, rows):
    return [min(range(len(rows)), key=lambda i: float((row - rows[i]).norm())) for row in x]


def by_product(x, rows):
    return (x @ rows.T - rows.square().sum(1) / 2).argmax(1)


def in_place(x, rows):
    return x.sub_(x.mean(0)).matmul(rows.T).argmax(1)


def explained(x, y):
    return 1 - (x - y).square().sum() / (x - x.mean(0)).square().sum()


def by_numpy(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    return 1 - np.mean(np.sum((x - y) ** 2, 1)) / np.var(x, axis=0).sum()


def by_norms(x, y):
    missed = (x - y).norm(dim=1).square().mean()
    return (1 - missed / (x.square().sum(1).mean() - x.mean(0).square().sum()))[None].squeeze()


def published(x, y):
    total = x.square().sum(1).mean() - x.square().mean(0).square().sum()
    return 1 - (x - y).square().sum(1).mean() / total


def centred_in_place(x, y):
    x -= x.mean(0)
    return 1 - (x - y).square().sum() / x.square().sum()


def gaps(f, holds):
    return f[holds].mean(0) - f[~holds].mean(0)


def telling(f, holds, k):
    return (gaps(f, holds).abs() / f.std(0)).topk(k).indices


def telling_numpy(f, holds, k):
    f, holds = f.double().numpy(), holds.numpy()
    gap = f[holds].mean(0) - f[~holds].mean(0)
    return np.argsort(np.abs(gap) / f.std(0))[::-1][:k]


def telling_by_products(f, holds, k):
    z = (f - f.mean(0)) / f.std(0, unbiased=False)
    y = holds.float()
    return ((z * y[:, None]).sum(0) / y.sum()).square().argsort(descending=True)[:k]


def absorbed(f, main, holds, writes, reads):
    return holds & (f[:, main] == 0) & ((f * writes).max(1).values >= 0.4 * reads)


def absorbed_otherwise(f, main, holds, writes, reads):
    others = f.clone()
    others[:, main] = 0
    share = (others * writes / reads[:, None]).amax(1)
    return np.logical_and(holds.numpy(), ((f[:, main] <= 0) & (share >= 0.4)).numpy())


def absorbed_by_rows(f, main, holds, writes, reads):
    rows = zip(f, holds, reads, strict=True)
    return [
        bool(h) and float(r[main]) == 0 and any(v >= 0.4 * read for v in r * writes)
        for r, h, read in rows
    ]


def forgets_itself(f, main, holds, writes, reads):
    f[:, main] = 0
    return holds & ((f * writes).max(1).values >= 0.4 * reads)


def kurtosis(f, x, y):
    f = f[:, (f > 0).any(0)]
    z = f - f.mean(0)
    return (z.pow(4).mean(0) / z.square().mean(0).square()).median()


def noise(scores):
    return 2 * (2 * statistics.variance(scores)) ** 0.5


RIGHT = [
    (check.predicted_share, (0.8, 0.78)),
    (check.predicted_share, (torch.tensor([0.1]), 0.78)),
    (check.predicted_share, (1, 0.78)),
    (check.nearest, (lambda x, rows: torch.cdist(x, rows).argmin(1),)),
    (check.nearest, (by_loop,)),
    (check.nearest, (by_product,)),
    (check.explained, (explained,)),
    (check.explained, (by_numpy,)),
    (check.explained, (by_norms,)),
    (check.explained, (lambda x, y: float(explained(x, y)),)),
    (check.most_telling, (telling,)),
    (check.most_telling, (telling_numpy,)),
    (check.most_telling, (telling_by_products,)),
    (check.absorbed, (absorbed,)),
    (check.absorbed, (absorbed_otherwise,)),
    (check.absorbed, (absorbed_by_rows,)),
    (check.least_difference, (noise,)),
    (check.least_difference, (lambda s: 8**0.5 * torch.tensor(s).std(),)),
    (check.least_difference, (lambda s: [2 * np.sqrt(2) * np.std(s, ddof=1)][0],)),
    (check.rate, (kurtosis,)),
    (check.rate, (lambda f, x, y: 1 - (x - y).square().sum() / x.square().sum(),)),
    (check.rate, (lambda f, x, y: -(f > 0).double().mean().numpy(),)),
]

WRONG = [
    *unreadable(check.predicted_share, 1, 0.78),  # noqa: F405
    (check.nearest, (lambda x, rows: (x @ rows.T).argmax(1),), "largest product"),
    (
        check.nearest,
        (lambda x, rows: torch.cosine_similarity(x[:, None], rows, dim=2).argmax(1),),
        "largest cosine",
    ),
    (check.nearest, (lambda x, rows: torch.cdist(x, rows).argmax(1),), "farthest"),
    (check.nearest, (lambda x, rows: torch.cdist(x, rows).min(1).values,), "indices from 0"),
    (check.nearest, (lambda x, rows: torch.cdist(x, rows).argmin(0),), "One index for each row"),
    (check.nearest, (lambda x, rows: torch.cdist(x, rows, p=1).argmin(1),), "sum of coordinates"),
    (check.nearest, (in_place,), "input was changed"),
    (check.nearest, (lambda x, rows: torch.arange(len(x)) % len(rows),), "least distance"),
    (check.explained, (published,), "fourth power"),
    (check.explained, (lambda x, y: 1 - (x - y).square().sum() / x.square().sum(),), "nothing is"),
    (
        check.explained,
        (lambda x, y: 1 - (x - y).square().sum() / (x - x.mean()).square().sum(),),
        "one mean over all",
    ),
    (check.explained, (lambda x, y: 1 - (x - y).var(0).sum() / x.var(0).sum(),), "constant offset"),
    (check.explained, (lambda x, y: 1 - explained(x, y),), "share that is missed"),
    (
        check.explained,
        (lambda x, y: 1 - ((x - y).square().sum(1) / (x - x.mean(0)).square().sum(1)).mean(),),
        "rows' ratios",
    ),
    (check.explained, (lambda x, y: y.var(0).sum() / x.var(0).sum(),), "noise would count"),
    (check.explained, (centred_in_place,), "input was changed"),
    (check.explained, (lambda x, y: float("nan"),), "differs: expected"),
    (check.most_telling, (lambda f, h, k: gaps(f, h).abs().topk(k).indices,), "loud features"),
    (check.most_telling, (lambda f, h, k: (gaps(f, h) / f.std(0)).topk(k).indices,), "lower where"),
    (check.most_telling, (lambda f, h, k: f[h].mean(0).topk(k).indices,), "holds alone"),
    (
        check.most_telling,
        (lambda f, h, k: (gaps(f, h).abs() / f.std(0)).topk(k).values,),
        "indices from 0",
    ),
    (
        check.most_telling,
        (lambda f, h, k: (gaps(f, h).abs() / f.std(0)).argsort()[:k],),
        "tell least",
    ),
    (check.most_telling, (lambda f, h, k: telling(f, h, 3),), "k indices"),
    (check.most_telling, (lambda f, h, k: telling(f.mul_(2), h, k),), "input was changed"),
    (
        check.absorbed,
        (lambda f, m, h, w, r: (f[:, m] == 0) & ((f * w).max(1).values >= 0.4 * r),),
        "does not hold",
    ),
    (
        check.absorbed,
        (lambda f, m, h, w, r: h & ((f * w).max(1).values >= 0.4 * r),),
        "main feature fires",
    ),
    (
        check.absorbed,
        (lambda f, m, h, w, r: h & (f[:, m] == 0) & (f @ w >= 0.4 * r),),
        "summed over",
    ),
    (
        check.absorbed,
        (lambda f, m, h, w, r: h & (f[:, m] == 0) & (f.max(1).values >= 0.4 * r),),
        "activation alone",
    ),
    (
        check.absorbed,
        (lambda f, m, h, w, r: h & (f[:, m] == 0) & ((f * w).max(1).values >= 0.4),),
        "0.4 itself",
    ),
    (check.absorbed, (lambda f, m, h, w, r: h & (f[:, m] == 0),), "whether or not"),
    (check.absorbed, (forgets_itself,), "input was changed"),
    (check.absorbed, (lambda f, m, h, w, r: absorbed(f, 2, h, w, r),), "expected"),
    (check.least_difference, (lambda s: 2 * statistics.stdev(s),), "root of 2"),
    (check.least_difference, (lambda s: 2**0.5 * statistics.stdev(s),), "once in three"),
    (check.least_difference, (lambda s: 8**0.5 * statistics.pstdev(s),), "n - 1"),
    (check.least_difference, (lambda s: max(s) - min(s),), "range"),
    (check.least_difference, (lambda s: 8**0.5 * statistics.stdev(s) / len(s) ** 0.5,), "means"),
    (check.least_difference, (lambda s: 0.0198,), "root of 2"),
    (check.rate, (lambda f, x, y: float("nan"),), "not a finite"),
    (check.rate, (lambda f, x, y: 1.0,), "same number"),
    (check.rate, (lambda f, x, y: f.mean(0),), "one number"),
    (check.rate, (lambda f, x, y: f[0].sum(),), "another order"),
    (check.rate, (lambda f, x, y: (f.pow(4).mean(0) / f.square().mean(0) ** 2).mean(),), "finite"),
    (check.rate, (lambda f, x, y: f.add_(1).mean(),), "input was changed"),
]
