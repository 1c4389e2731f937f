"""The checks of lesson 11: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import functools

import numpy as np
import torch
from every_lesson import *  # noqa: F403

from saelearn.exercises import lesson11 as check
from saelearn.sae import SAE, BatchTopK, TopK


def rows_choose(p, k):
    z = p.relu()
    return torch.where(z >= z.topk(k, dim=-1).values[:, -1:], z, 0.0)


def by_scatter(p, k):
    top = p.topk(k, dim=1)
    return torch.zeros_like(p).scatter(1, top.indices, top.values.relu())


def by_sorting(p, k):
    least = p.sort(dim=1).values[:, -k].clamp(min=0)
    return p * ((p >= least[:, None]) & (p > 0))


def by_rows(p, k):
    rows = [row * (row >= torch.sort(row)[0][-k]) for row in p]
    return torch.stack(rows).relu()


def batch_chooses(p, k):
    z = p.relu()
    return torch.where(z >= z.flatten().topk(k * len(z)).values[-1], z, 0.0)


def by_flat_scatter(p, k):
    top = p.flatten().topk(k * p.shape[0])
    flat = torch.zeros(p.numel()).scatter(0, top.indices, top.values.relu())
    return flat.view_as(p)


def by_kth_value(p, k):
    z = torch.nn.functional.relu(p)
    n = z.numel() - k * len(z) + 1
    return z * (z >= z.reshape(-1).kthvalue(n).values).float()


def gated(p, gate, r, m):
    return (p + gate > 0) * torch.relu(p * r.exp() + m)


def gated_where(p, gate, r, m):
    return torch.where(gate > -p, (torch.exp(r) * p + m).clamp(min=0), torch.zeros(()))


def gated_heaviside(p, gate, r, m):
    opened = torch.heaviside((p + gate).detach(), torch.zeros(()))
    return opened * torch.maximum(p * torch.e**r + m, torch.zeros_like(p))


def jump(p, t):
    return p * (p > t)


def nested(x, f, W, b, widths):
    return sum((x - f[:, :m] @ W[:m] - b).square().sum(1).mean() for m in widths)


def nested_running(x, f, W, b, widths):
    made, low, total = b.expand_as(x), 0, 0.0
    for m in widths:
        made = made + f[:, low:m] @ W[low:m]
        total, low = total + ((made - x) ** 2).sum() / len(x), m
    return total[None]


def nested_masked(x, f, W, b, widths):
    masks = torch.stack([torch.arange(len(W)) < m for m in widths]).float()
    made = torch.einsum("bf,wf,fd->wbd", f, masks, W) + b
    return (made - x).pow(2).sum(-1).mean(-1).sum()


def refit(f, x):
    one = torch.cat([f, torch.ones(len(f), 1)], 1)
    solution = torch.linalg.lstsq(one, x, driver="gelsd").solution
    return solution[:-1], solution[-1]


def refit_numpy(f, x):
    f, x = f.double().numpy(), x.double().numpy()
    rows = np.linalg.pinv(f - f.mean(0)) @ (x - x.mean(0))
    return [rows, x.mean(0) - f.mean(0) @ rows]


def refit_by_normal_equations(f, x):
    one = torch.cat([f, torch.ones(len(f), 1)], 1).double()
    solution = torch.linalg.solve(one.T @ one + 1e-9 * torch.eye(one.shape[1]), one.T @ x.double())
    return solution[:-1], solution[-1]


def refit_overwrites(f, x):
    f -= f.mean(0)
    return torch.linalg.pinv(f) @ x, x.mean(0)


def edges(f, W, slope):
    return f * (slope @ W.T)


class Faint(SAE):
    def activate(self, p):
        z = p.relu()
        return z * (z > 0.5 * z.amax(-1, keepdim=True))


class ByLength(SAE):
    def activate(self, p):
        z = p.relu()
        size = z * torch.linspace(0.2, 2, self.d_sae)
        return torch.where(size >= size.topk(4, dim=-1).values[..., -1:], z, 0.0)


class Halved(SAE):
    def activate(self, p):
        return TopK(1, self.d_sae, k=4).activate(p) * 0.5


class Negative(SAE):
    def activate(self, p):
        return p * (p.abs() > p.abs().amax(-1, keepdim=True) * 0.5)


class Again(SAE):
    def activate(self, p):
        return rows_choose(p, 5)


class AgainByBatch(SAE):
    def activate(self, p):
        return batch_chooses(p, 5)


class Cut(SAE):
    def activate(self, p):
        return (p > p.amax(-1, keepdim=True) * 0.7).float()


class Drawn(SAE):
    def activate(self, p):
        return p.relu() * (torch.rand_like(p) < 0.3)


class Silent(SAE):
    def activate(self, p):
        return p.relu() * (p > 1e6)


class Plain(SAE):
    pass


class Transposed(SAE):
    def activate(self, p):
        return Faint.activate(self, p).T


RIGHT = [
    (check.chosen, (rows_choose, batch_chooses)),
    (check.chosen, (by_scatter, by_flat_scatter)),
    (check.chosen, (by_sorting, by_kth_value)),
    (check.chosen, (by_rows, batch_chooses)),
    (check.doors, (gated, jump)),
    (check.doors, (gated_where, lambda p, t: torch.where(p > t, p, 0.0))),
    (check.doors, (gated_heaviside, lambda p, t: p.masked_fill(p <= t, 0.0))),
    (check.nested, (nested,)),
    (check.nested, (nested_running,)),
    (check.nested, (nested_masked,)),
    (check.refit, (refit,)),
    (check.refit, (refit_numpy,)),
    (check.refit, (refit_by_normal_equations,)),
    (check.edges, (edges,)),
    (check.edges, (lambda f, W, s: np.einsum("tf,fd,td->tf", f, W, s),)),
    (check.edges, (lambda f, W, s: (f[:, :, None] * W * s[:, None]).sum(2),)),
    (check.architecture, (Faint,)),
    (check.architecture, (ByLength,)),
    (check.architecture, (Halved,)),
    (check.architecture, (functools.partial(Faint, decoder_init_norm=0.5),)),
    (check.predicted_left, (0.9, 0.85)),
    (check.predicted_left, (torch.tensor([0.1]), 0.85)),
    (check.predicted_left, (1, 0.85)),
]

WRONG = [
    (check.chosen, (lambda p, k: p.relu(), batch_chooses), "nothing is silenced"),
    (
        check.chosen,
        (lambda p, k: torch.where(p >= p.topk(k, 1).values[:, -1:], p, 0.0), batch_chooses),
        "below 0",
    ),
    (check.chosen, (lambda p, k: rows_choose(p.T, min(k, len(p))).T, batch_chooses), "dim=-1"),
    (check.chosen, (lambda p, k: (rows_choose(p, k) > 0).float(), batch_chooses), "ones in place"),
    (check.chosen, (lambda p, k: rows_choose(p, k - 1), batch_chooses), "one too few"),
    (check.chosen, (lambda p, k: rows_choose(p, 3), batch_chooses), "top_k"),
    (check.chosen, (lambda p, k: rows_choose(p, k).detach(), batch_chooses), "gradient"),
    (check.chosen, (lambda p, k: rows_choose(p.detach().relu_(), k), batch_chooses), "overwritten"),
    (check.chosen, (rows_choose, rows_choose), "k in each row"),
    (
        check.chosen,
        (rows_choose, lambda p, k: torch.where(p >= p.flatten().topk(k).values[-1], p, 0.0).relu()),
        "k in the whole batch",
    ),
    (check.chosen, (rows_choose, lambda p, k: batch_chooses(p, k) * 1.1), "batch_top_k differs"),
    (check.chosen, (rows_choose, lambda p, k: batch_chooses(p, k).T), "has shape"),
    (check.doors, (lambda p, g, r, m: torch.relu(p * r.exp() + m), jump), "no gate"),
    (check.doors, (lambda p, g, r, m: (p + g > 0).float(), jump), "gate alone"),
    (check.doors, (lambda p, g, r, m: (p + g > 0) * (p * r.exp() + m), jump), "below 0 is kept"),
    (check.doors, (lambda p, g, r, m: (p + g > 0) * (p * r + m).relu(), jump), "logarithm"),
    (check.doors, (lambda p, g, r, m: gated(p, m, r, g), jump), "exchanged"),
    (check.doors, (lambda p, g, r, m: (p + g).relu() * gated(p, g, r, m), jump), "shrink"),
    (check.doors, (lambda p, g, r, m: gated(p, g, r.detach(), m), jump), "gradient reaches r_mag"),
    (check.doors, (gated, lambda p, t: (p - t).relu()), "taken off"),
    (check.doors, (gated, lambda p, t: (p > t).float()), "ones where"),
    (check.doors, (gated, lambda p, t: torch.maximum(p, t)), "lifted"),
    (check.doors, (gated, lambda p, t: p.relu()), "ignored"),
    (check.doors, (gated, lambda p, t: p * (p.abs() > t)), "far below 0"),
    (check.nested, (lambda x, f, W, b, w: (x - f @ W - b).square().sum(1).mean(),), "widest alone"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, b, w) / len(w),), "mean over the widths"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, b, w) / x.shape[1],), "mean over D"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, b, w) * len(x),), "over the batch"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, 0 * b, w),), "b_dec is missing"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, b, w).item(),), "no gradient"),
    (check.nested, (lambda x, f, W, b, w: nested(x, f, W, b, (2, 5, 9)),), "differs"),
    (check.refit, (lambda f, x: (torch.linalg.pinv(f) @ x, torch.zeros(x.shape[1])),), "no offset"),
    (
        check.refit,
        (lambda f, x: (torch.linalg.pinv(f - f.mean(0)) @ x, x.mean(0)),),
        "mean of x",
    ),
    (check.refit, (lambda f, x: torch.linalg.pinv(f) @ x,), "two tensors"),
    (check.refit, (lambda f, x: (refit(f, x)[0].T, refit(f, x)[1]),), "shape"),
    (check.refit, (lambda f, x: (refit(f, x)[0] * float("nan"), refit(f, x)[1]),), "not finite"),
    (check.refit, (lambda f, x: (0.9 * refit(f, x)[0], refit(f, x)[1]),), "times what the best"),
    (check.refit, (refit_overwrites,), "overwritten"),
    (check.edges, (lambda f, W, s: s @ W.T,), "slope alone"),
    (check.edges, (lambda f, W, s: edges(f, W, s).abs(),), "sign"),
    (check.edges, (lambda f, W, s: f * (W @ s.sum(0)),), "one slope"),
    (check.edges, (lambda f, W, s: edges(f, W, s).sum(0),), "has shape"),
    (check.edges, (lambda f, W, s: (f > 0) * (s @ W.T),), "how strongly"),
    (check.edges, (lambda f, W, s: -edges(f, W, s),), "other sign"),
    (
        check.edges,
        (lambda f, W, s: edges(f, torch.nn.functional.normalize(W, dim=1), s),),
        "length 1",
    ),
    (check.edges, (lambda f, W, s: edges(f.mul_(2), W, s),), "overwritten"),
    (check.architecture, (Again,), "TopK by another name"),
    (check.architecture, (AgainByBatch,), "BatchTopK by another name"),
    (check.architecture, (functools.partial(TopK, k=4),), "TopK by another name"),
    (check.architecture, (Plain,), "of the features are on"),
    (check.architecture, (functools.partial(BatchTopK, k=4),), "of the features are on"),
    (check.architecture, (Negative,), "from 0 up"),
    (check.architecture, (Cut,), "no gradient"),
    (check.architecture, (Drawn,), "other features"),
    (check.architecture, (Silent,), "0% of the features"),
    (check.architecture, (Transposed,), "has shape"),
    (check.architecture, (lambda d, f, seed: torch.zeros(d, f),), "stands on SAE"),
    *unreadable(check.predicted_left, 1, 0.85),  # noqa: F405
]
