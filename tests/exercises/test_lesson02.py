"""The checks of lesson 02: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from scipy.optimize import nnls

from saelearn import exercises
from saelearn.exercises import lesson02 as check


def coin(n, G, p, g):
    return torch.rand(n, G, generator=g) < p


def rand(n, G, g):
    return torch.rand(n, G, generator=g)


def rescaled_draw(n, n_features, p, *, generator):
    """One draw, rescaled where it is below p: the same law."""
    u = rand(n, n_features, generator)
    return torch.where(u < p, u / max(p, 1e-9), 0.0)


def numpy_sampler(n, n_features, p, *, generator):
    on = coin(n, n_features, p, generator).numpy()
    return on * rand(n, n_features, generator).numpy()


def divided_by_p(n, n_features, p, *, generator):
    """One draw, rescaled: right, but for p = 0."""
    u = rand(n, n_features, generator)
    return u / p * (u < p)


def frozen_seed(n, n_features, p, *, generator):
    return torch.rand(n, n_features) * coin(n, n_features, p, generator)


def own_seed(n, n_features, p, *, generator):
    own = torch.Generator().manual_seed(0)
    return rand(n, n_features, own) * coin(n, n_features, p, own)


def rewinding(n, n_features, p, *, generator):
    """Leaves the generator where it was: the next batch is this one again."""
    generator.manual_seed(generator.initial_seed())
    return rand(n, n_features, generator) * coin(n, n_features, p, generator)


def global_seed(n, n_features, p, *, generator):
    torch.manual_seed(generator.initial_seed())
    return torch.rand(n, n_features) * (torch.rand(n, n_features) < p)


def in_pairs(n, n_features, p, *, generator):
    on = coin(n, n_features, p, generator)[:, torch.arange(n_features) // 2]
    return on * rand(n, n_features, generator)


def only_a_tenth(n, n_features, p, *, generator):
    """Knows p = 0.1, 0 and 1 by heart."""
    p = p if p in (0, 1) else 0.1
    return rand(n, n_features, generator) * coin(n, n_features, p, generator)


def read_back(f, W, b):
    return torch.relu(f @ W @ W.T + b)


def read_back_in_place(f, W, b):
    return (f @ W @ W.T).add_(b).relu_()


def read_back_by_einsum(f, W, b):
    return torch.einsum("bg,gd,hd->bh", f, W, W).add(b).clamp(min=0)


def read_back_row_by_row(f, W, b):
    return torch.stack([torch.nn.functional.linear(W.T @ row, W, b).relu() for row in f])


def shifts_its_input(f, W, b):
    W -= 0.0
    return torch.relu((f.mul_(1.5) / 1.5) @ W @ W.T + b)


def spoils_the_weights(f, W, b):
    result = read_back(f, W, b)
    W.div_(W.norm(dim=1, keepdim=True))
    return result


def loss(f, h, i):
    return (i * (f - h).square()).mean()


def loss_in_place(f, h, i):
    return h.sub_(f).square_().mul(i).mean()


def offdiagonal(W):
    gram = W @ W.T
    return (gram - gram.diag().diag()).abs().max() > 0.1


def unit(W):
    return W / W.norm(dim=1, keepdim=True).clamp(min=1e-9)


def share_by_loops(W):
    out = []
    for w in W.double():
        norm = w.norm()
        out.append(norm**2 / sum((w @ h / norm) ** 2 for h in W.double()) if norm > 0 else 0.0)
    return torch.tensor(out)


def share_by_gram(W):
    gram = W @ W.T
    return torch.nan_to_num(gram.diag() ** 2 / gram.square().sum(1))


def share_of_the_first_six(W):
    return share_by_gram(W)[:6] if len(W) < 6 else share_by_loops(W[:6])


def share_in_place(W):
    norm = W.norm(dim=1)
    W /= norm.clamp(min=1e-9)[:, None]
    return norm.square() / (W @ (W * norm[:, None]).T).square().sum(1).clamp(min=1e-9)


def share_by_numpy(W):
    W = W.numpy().astype(float)
    length = np.linalg.norm(W, axis=1)
    overlap = ((W / np.maximum(length, 1e-12)[:, None]) @ W.T) ** 2
    return (length**2 / np.maximum(overlap.sum(1), 1e-12))[::-1][::-1]  # a negative stride, twice


def pairs_of(W):
    return [(i, j) for i in range(len(W)) for j in range(i)]


def by_pairs(h, W, *, choose=min):
    """Point by point: every pair's two numbers, and the least sum of those that are allowed."""
    inverses = [
        (i, j, torch.linalg.inv(W[[i, j]]))
        for i, j in pairs_of(W)
        if torch.linalg.det(W[[i, j]]).abs() > 1e-3
    ]
    out = torch.zeros(len(h), len(W))
    for row, point in zip(out, h, strict=True):
        allowed = [(i, j, point @ B) for i, j, B in inverses if (point @ B).min() > -1e-5]
        i, j, f = choose(allowed, key=lambda each: each[2].sum())
        row[i], row[j] = f
    return out


def by_neighbours(h, W):
    """Sorted by angle, a point lies between two."""
    angle, order = torch.atan2(W[:, 1], W[:, 0]).sort()
    above = torch.searchsorted(angle, torch.atan2(h[:, 1], h[:, 0])) % len(W)
    i, j = order[above - 1], order[above]
    f = torch.linalg.solve(torch.stack([W[i], W[j]], 1).mT, h[:, :, None])[..., 0]
    out, row = torch.zeros(len(h), len(W)), torch.arange(len(h))
    out[row, i], out[row, j] = f.T
    return out


def by_nnls(h, W):
    """Nonnegative least squares with a faint price, in NumPy."""
    stacked = np.vstack([W.numpy().T, np.full((1, len(W)), 1e-3)])
    return np.stack([nnls(stacked, np.append(point, 0))[0] for point in h.numpy()])


def only_the_nearest(h, W):
    unit_rows = unit(W)
    best = (h @ unit_rows.T).argmax(1)
    out = torch.zeros(len(h), len(W))
    out[torch.arange(len(h)), best] = ((h * unit_rows[best]).sum(1)) / W.norm(dim=1)[best]
    return out


def for_the_pentagon(h, W):
    """Right for five directions alone."""
    return by_neighbours(h, W) if len(W) == 5 else only_the_nearest(h, W)


def reads_and_turns(h, W):
    result = by_neighbours(h, W)
    h.mul_(0)
    return result


def many_kept(W):
    return (W.square().sum(1) > 0.25).sum() > W.shape[1]


def kept(W, bound):
    return (W.norm(dim=1) > bound).sum()


def a_sampler(of):
    """A sampler from its draws: on, amplitude, generator and the arguments."""
    return lambda n, G, p, *, generator: of(n, G, p, generator)


RIGHT = [
    (check.predicted_rarity, (0.01, 0.2)),
    (check.predicted_rarity, (0.2, 0.2)),
    (check.predicted_rarity, (torch.tensor(0.9), 0.2)),
    (check.bug, ("2 in 2, trained",)),
    (check.bug, ("2 in 2 trained",)),
    (check.bug, (" 2 in 2, Trained: True",)),
    (check.sampler, (a_sampler(lambda n, G, p, g: rand(n, G, g) * coin(n, G, p, g)),)),
    (check.sampler, (rescaled_draw,)),
    (check.sampler, (numpy_sampler,)),
    (check.model, (read_back, loss)),
    (check.model, (read_back_by_einsum, lambda f, h, i: ((h - f).square() @ i).sum() / f.numel())),
    (check.model, (read_back_in_place, lambda f, h, i: loss(f, h, i)[None])),
    (check.model, (read_back_row_by_row, lambda f, h, i: ((f - h) ** 2).mean(0) @ i / len(i))),
    (check.dimensionality, (share_by_loops,)),
    (check.dimensionality, (share_by_gram,)),
    (check.dimensionality, (share_by_numpy,)),
    (check.superposed, (many_kept,)),
    (check.superposed, (lambda W: sum(bool(w.norm() > 0.5) for w in W) > len(W[0]),)),
    (check.superposed, (lambda W: np.bool_(int((W.norm(dim=1) >= 0.5).sum()) > W.shape[1]),)),
    (check.superposed, (lambda W: many_kept(W)[None],)),
    (check.undo, (by_pairs,)),
    (check.undo, (by_neighbours,)),
    (check.undo, (by_nnls,)),
    (check.undo, (check.cheapest_pair,)),
]

WRONG = [
    *unreadable(check.predicted_rarity, 1, 0.2),  # noqa: F405
    (check.bug, ("5 in 2, trained",), "True is right"),
    (check.bug, ("2 in 2, by hand",), "False is right"),
    (check.bug, ("the first",), "one of the three names"),
    (check.bug, ("2",), "one of the three names"),
    (check.bug, ("2 in 2, trained or 5 in 2, trained",), "one of the three names"),
    (check.bug, ("not 2 in 2, trained",), "one of the three names"),
    (check.bug, (2,), "the model's name as text"),
    (check.sampler, (a_sampler(lambda n, G, p, g: rand(n, G, g)),), "share of 1.00"),
    (
        check.sampler,
        (a_sampler(lambda n, G, p, g: rand(n, G, g) * ~coin(n, G, p, g)),),
        "off that often",
    ),
    (check.sampler, (a_sampler(lambda n, G, p, g: coin(n, G, p, g)),), "same"),
    (check.sampler, (a_sampler(lambda n, G, p, g: rand(n, G, g) * coin(n, 1, p, g)),), "own coin"),
    (check.sampler, (in_pairs,), "own coin"),
    (check.sampler, (a_sampler(lambda n, G, p, g: (u := rand(n, G, g)) * (u < p)),), "second draw"),
    (
        check.sampler,
        (a_sampler(lambda n, G, p, g: (u := rand(n, G, g)) * (u > 1 - p)),),
        "second draw",
    ),
    (
        check.sampler,
        (a_sampler(lambda n, G, p, g: torch.randn(n, G) * coin(n, G, p, g)),),
        "between 0 and 1",
    ),
    (check.sampler, (divided_by_p,), "NaN in the sample for p = 0: is something divided by p"),
    (check.sampler, (frozen_seed,), "same seed"),
    (check.sampler, (own_seed,), "every seed"),
    (check.sampler, (rewinding,), "drawn before"),
    (check.sampler, (global_seed,), "drawn before"),
    (check.sampler, (only_a_tenth,), "asked for p = 0.35"),
    (
        check.sampler,
        (a_sampler(lambda n, G, p, g: rand(n, 1, g) * coin(n, G, p, g)),),
        "same amplitude",
    ),
    (check.sampler, (a_sampler(lambda n, G, p, g: rand(G, n, g)),), "shape"),
    (check.model, (lambda f, W, b: f @ W @ W.T + b, loss), "ReLU is missing"),
    (check.model, (lambda f, W, b: torch.relu(f @ W @ W.T), loss), "bias is missing"),
    (check.model, (lambda f, W, b: torch.relu(f @ W @ W.T) + b, loss), "before the ReLU"),
    (check.model, (lambda f, W, b: ((f @ W).relu() @ W.T + b).relu(), loss), "only at the end"),
    (check.model, (lambda f, W, b: torch.relu(f @ W), loss), "shape (6, 2)"),
    (check.model, (lambda f, W, b: f @ W.T @ W, loss), "f @ W goes down"),
    (check.model, (lambda f, W, b: torch.relu((f @ W + b) @ W.T), loss), "not in the plane"),
    (check.model, (lambda f, W, b: 0.9 * read_back(f, W, b), loss), "On our input at ["),
    (check.model, (lambda f, W, b: read_back(f, W, b).detach(), loss), "no gradient reaches W_GD"),
    (check.model, (lambda f, W, b: read_back(f, W, b.detach()), loss), "no gradient reaches b_G"),
    (check.model, (torch.no_grad()(read_back), loss), "no gradient reaches W_GD"),
    (
        check.model,
        (lambda f, W, b: np.maximum(0, f.numpy() @ (W @ W.T).numpy() + b.numpy()), loss),
        "NumPy knows no gradients",
    ),
    (check.model, (shifts_its_input, loss), "f_BG itself is overwritten"),
    (check.model, (spoils_the_weights, loss), "W_GD itself is overwritten"),
    (check.model, (lambda f, W, b: read_back(f, W[:, :2], b), loss), "On our input at ["),
    (check.model, (read_back, lambda f, h, i: torch.tensor(float("nan"))), "a NaN in the loss"),
    (check.model, (read_back, lambda f, h, i: (f - h).square().mean()), "importance is missing"),
    (check.model, (read_back, lambda f, h, i: (i * (f - h)).square().mean()), "squared too"),
    (check.model, (read_back, lambda f, h, i: (i * (f - h).square()).sum()), "batch size"),
    (check.model, (read_back, lambda f, h, i: len(i) * loss(f, h, i)), "summed over features"),
    (check.model, (read_back, lambda f, h, i: (i * (f - h).square()).mean(0)), "shape (4,)"),
    (check.model, (read_back, lambda f, h, i: (i * (f - h).abs()).mean()), "square the error"),
    (check.model, (read_back, lambda f, h, i: float(loss(f, h, i))), "no gradient reaches f_hat"),
    (check.model, (read_back, loss_in_place), "f_hat_BG itself is overwritten"),
    (check.model, (read_back, lambda f, h, i: (f - h).square()[:, :4] @ i[:4]), "shape (7,)"),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (W @ W.T).square().sum(1),),
        "its length",
    ),
    (
        check.dimensionality,
        (lambda W: 1 / (unit(W) @ unit(W).T).square().sum(1),),
        "lengths are lost",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).sum(1),),
        "squared before",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) / (unit(W) @ W.T).square().sum(1),),
        "not the length",
    ),
    (
        check.dimensionality,
        (lambda W: (W @ W.T).diag() ** 2 / (W @ W.T).square().sum(1),),
        "length 0",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).square().sum(0),),
        "last axis",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).sum(1) ** 2,),
        "one by one",
    ),
    (
        check.dimensionality,
        (lambda W: W.norm(dim=1) ** 2 / (unit(W) @ W.T).abs().sum(1),),
        "absolute value",
    ),
    (check.dimensionality, (lambda W: W.norm(dim=1).mean(),), "shape ()"),
    (check.dimensionality, (share_in_place,), "W_GD itself is overwritten"),
    (check.dimensionality, (lambda W: share_by_gram(W)[:6].expand(6),), "expand"),
    (check.dimensionality, (lambda W: share_by_gram(W) * (1 + (len(W) == 4)),), "On our input at"),
    (check.superposed, (lambda W: ((W.abs() > 0.2).sum(0) > 1).any(),), "nothing is shared"),
    (check.superposed, (lambda W: len(W) > W.shape[1],), "do not count"),
    (check.superposed, (lambda W: (W.norm(dim=1) > 0.5).sum() > 2,), "count the columns"),
    (check.superposed, (lambda W: False,), "five features"),
    (check.superposed, (lambda W: (W.abs().amax(1) > 0.5).sum() > W.shape[1],), "take the length"),
    (
        check.superposed,
        (lambda W: (W.square().sum(1) > 0.5).sum() > W.shape[1],),
        "take the length",
    ),
    (check.superposed, (offdiagonal,), "60 degrees"),
    (check.superposed, (lambda W: (W.norm(dim=1) > 0.5).sum(),), "not a count"),
    (check.superposed, (lambda W: W.norm(dim=1) > 0.5,), "one True or False"),
    (check.superposed, (lambda W: (W.abs().sum(1) > 0.5).sum() > W.shape[1],), "0.42 long"),
    (check.superposed, (lambda W: kept(W, 0.5) > torch.linalg.matrix_rank(W),), "on one line"),
    (check.superposed, (lambda W: kept(W, 0.1) > W.shape[1],), "the bound is 0.5"),
    (check.superposed, (lambda W: kept(W, 0.3) > W.shape[1],), "the bound is 0.5"),
    (check.superposed, (lambda W: kept(W.clamp_(-0.6, 0.6), 0.5) > W.shape[1],), "overwritten"),
    (check.superposed, (lambda W: many_kept(W) and W.shape[1] < 3,), "in 3 dimensions are longer"),
    (check.superposed, (lambda W: "yes",), "True or False is wanted, but this is 'yes'"),
    (check.superposed, (lambda W: float("nan"),), "True or False is wanted, but this is NaN"),
    (check.undo, (lambda h, W: h @ W.T,), "W itself in place of its dual"),
    (check.undo, (lambda h, W: (h @ W.T).relu(),), "ReLU alone keeps all echoes"),
    (check.undo, (lambda h, W: h @ torch.linalg.pinv(W),), "the shortest code spreads"),
    (check.undo, (only_the_nearest,), "belongs to both"),
    (check.undo, (lambda h, W: (h @ W.T - 0.2).relu(),), "A point on a direction belongs to it"),
    (check.undo, (lambda h, W: by_pairs(h, W, choose=max),), "A point on a direction belongs"),
    (check.undo, (for_the_pentagon,), "belongs to both"),
    (check.undo, (lambda h, W: torch.full((len(h), len(W)), torch.nan),), "a NaN in the reading"),
    (check.undo, (reads_and_turns,), "h_BD itself is overwritten"),
    (check.undo, (lambda h, W: by_neighbours(h, W).T,), "One row for each point"),
]

OPEN = [(check.bug, ("",)), (check.bug, ("...",))]


@pytest.mark.parametrize(
    ("guess", "words"),
    [(0.01, "sooner"), (0.2, "about right"), (torch.tensor(0.9), "rarer than that")],
)
def test_a_guess_of_the_rarity_is_answered(guess, words, monkeypatch):
    monkeypatch.setattr(exercises, "GRADING", True)
    verdict = check.predicted_rarity(guess, 0.2)
    assert verdict.state == "noted"
    assert words in verdict.message
