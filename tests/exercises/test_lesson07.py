"""The checks of lesson 07: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403

from saelearn.exercises import lesson07 as check


def rows_by_loop(x):
    return torch.stack([row for document in x for row in document[1:]])


def scale_by_numpy(x):
    return math.sqrt(x.shape[1] / np.mean(np.sum(x.numpy() ** 2, axis=1)))


def sq(x, x_hat):
    return (x - x_hat).square()


def revived(
    *,
    weight=torch.square,
    same=False,
    centre=True,
    sign=1,
    factor=0.2,
    living=True,
    row=None,
    bias=0.0,
    everybody=False,
    own_draw=False,
    write="no_grad",
):
    """An answer with one thing done otherwise."""

    def answer(sae, dead_F, x_BD, generator):
        with torch.no_grad():
            dead_F = torch.ones_like(dead_F) if everybody else dead_F
            alive_F = torch.ones_like(dead_F) if everybody or not living else ~dead_F
            error_B = sq(x_BD, sae(x_BD).x_hat).sum(1)
            n = 1 if same else int(dead_F.sum())
            draw = None if own_draw else generator
            drawn = torch.multinomial(weight(error_B), n, replacement=True, generator=draw)
            way_ID = sign * (x_BD[drawn] - (sae.b_dec if centre else 0))
            way_ID = (way_ID / way_ID.norm(dim=1, keepdim=True)).expand(int(dead_F.sum()), -1)
            long = sae.W_dec[~dead_F if not everybody else dead_F].norm(dim=1).mean()
            column = factor * sae.W_enc[:, alive_F].norm(dim=0).mean()
            W_dec, W_enc, b_enc = sae.W_dec, sae.W_enc, sae.b_enc
            if write == "data":
                W_dec, W_enc, b_enc = W_dec.data, W_enc.data, b_enc.data
            W_dec[dead_F] = way_ID * (long if row is None else row)
            W_enc[:, dead_F] = column * way_ID.T
            if bias is not None:
                b_enc[dead_F] = bias
        return sae

    return answer


@torch.no_grad()
def revived_by_loop(sae, dead_F, x_BD, generator):
    error_B = sq(x_BD, sae.decode(sae.encode(x_BD))).sum(1)
    row = sae.W_dec[~dead_F].norm(dim=1).mean()
    column = sae.W_enc[:, ~dead_F].norm(dim=0).mean()
    for i in dead_F.nonzero()[:, 0].tolist():
        (b,) = torch.multinomial(error_B**2, 1, generator=generator).tolist()
        way_D = torch.nn.functional.normalize(x_BD[b] - sae.b_dec, dim=0)
        sae.W_dec[i], sae.W_enc[:, i], sae.b_enc[i] = row * way_D, column / 5 * way_D, 0
    return True


def revived_anew(sae, dead_F, x_BD, generator):
    revived()(sae, dead_F, x_BD, generator)
    sae.W_dec = torch.nn.Parameter(sae.W_dec.detach().clone())
    return sae


def revived_in_place(sae, dead_F, x_BD, generator):
    revived()(sae, dead_F, x_BD, generator)
    x_BD -= x_BD.mean(0)
    return sae


def explained_by_var(x, x_hat):
    return 1 - (x - x_hat).square().mean(0).sum() / x.var(0, correction=0).sum()


def mean_of_squares(x, x_hat):
    square = x.square().mean(0)
    return 1 - sq(x, x_hat).mean(0).sum() / (square - square.square()).sum()


def spread(x):
    return (x - x.mean(0)).square()


def weights(d, f):
    return 2 * d * f + d + f


RIGHT = [
    (check.predicted_survival, ((0.9, 0.3), 0.97, 0.35)),
    (check.predicted_survival, ([0.2, 0], 0.97, 0.35)),
    (check.predicted_survival, (torch.tensor([1.0, 0.9]), 0.97, 0.35)),
    (check.rows, (lambda x: x[:, 1:].flatten(0, 1),)),
    (check.rows, (lambda x: x[:, 1:].reshape(-1, x.shape[-1]).numpy(),)),
    (check.rows, (rows_by_loop,)),
    (check.scale, (lambda x: (x.shape[1] / x.square().sum(1).mean()).sqrt(),)),
    (check.scale, (lambda x: 1 / x.square().mean().sqrt(),)),
    (check.scale, (scale_by_numpy,)),
    (check.revive, (revived(),)),
    (check.revive, (revived_by_loop,)),
    (check.revive, (revived(write="data"),)),
    (check.recovered, (lambda clean, spliced, ablated: (ablated - spliced) / (ablated - clean),)),
    (check.recovered, (lambda c, s, a: 1 - (s - c) / (a - c),)),
    (check.recovered, (lambda c, s, a: torch.tensor((s - a) / (c - a)),)),
    (check.explained, (lambda x, y: 1 - sq(x, y).sum() / spread(x).sum(),)),
    (check.explained, (explained_by_var,)),
    (check.explained, (lambda x, y: 1 - sq(x, y).mean(0).sum() / x.var(0).sum(),)),
    (check.memory, (lambda d, f, n: 4 * (4 * weights(d, f) + n * d),)),
    (check.memory, (lambda d, f, n: 32 * d * f + 4 * n * d,)),  # biases are negligible
    (check.memory, (lambda d, f, n: np.int64(16) * weights(d, f) + np.int64(4) * n * d,)),
]

WRONG = [
    (check.predicted_survival, (0.5, 0.97, 0.35), "two numbers"),
    (check.predicted_survival, ((0.5, "much"), 0.97, 0.35), "a number here"),
    (check.predicted_survival, ((0.1, 0.2, 0.3), 0.97, 0.35), "two numbers"),
    (check.predicted_survival, ((90, 10), 0.97, 0.35), "between 0 and 1"),
    (check.predicted_survival, ((0.5, float("nan")), 0.97, 0.35), "between 0 and 1"),
    (check.predicted_survival, ((True, 0.1), 0.97, 0.35), "a bool"),
    (check.rows, (lambda x: x.flatten(0, 1),), "position 0 is still there"),
    (check.rows, (lambda x: x[:, :-1].flatten(0, 1),), "last position"),
    (check.rows, (lambda x: x[1:].flatten(0, 1),), "whole document"),
    (check.rows, (lambda x: x[:, 1:].transpose(0, 1).flatten(0, 1),), "each document's rows"),
    (check.rows, (lambda x: x[:, 1:],), "still two axes"),
    (check.rows, (lambda x: x[:, 1:].flatten(1),), "positions and dimensions were joined"),
    (check.rows, (lambda x: x[:, 1:].permute(2, 0, 1).reshape(-1, 4),), "not those"),
    (check.rows, (lambda x: x[0],), "shape (5, 4)"),
    (check.rows, (lambda x: x[:, 1:].reshape(12, 4),), "raised RuntimeError"),
    (check.rows, (lambda x: x.mul_(2)[:, 1:].flatten(0, 1) / 2,), "overwritten"),
    (check.scale, (lambda x: x.square_().sum(1).mean().rsqrt() * x.shape[1] ** 0.5,), "overwr"),
    (check.scale, (lambda x: (16 / x.square().sum(1).mean()).sqrt(),), "should be D"),
    (check.scale, (lambda x: x.shape[1] / x.square().sum(1).mean(),), "square root is missing"),
    (check.scale, (lambda x: (x.square().sum(1).mean() / x.shape[1]).sqrt(),), "upside down"),
    (check.scale, (lambda x: 1 / x.square().sum(1).mean().sqrt(),), "to 1"),
    (check.scale, (lambda x: x.shape[1] ** 0.5 / x.norm(dim=1).mean(),), "mean *norm*"),
    (check.scale, (lambda x: (16 / spread(x).sum(1).mean()).sqrt(),), "subtracted first"),
    (check.scale, (lambda x: 1 / x.std(),), "standard deviation"),
    (check.scale, (lambda x: 4 / x.norm(dim=1),), "not one for each row"),
    (check.revive, (revived(weight=lambda e: e),), "its square once more"),
    (check.revive, (revived(weight=torch.ones_like),), "whatever their error"),
    (check.revive, (revived(weight=lambda e: e**9),), "only the worst rows"),
    (check.revive, (revived(same=True),), "draw for each feature anew"),
    (check.revive, (revived(centre=False),), "x - b_dec"),
    (check.revive, (revived(sign=-1),), "the sign"),
    (check.revive, (revived(factor=1.0),), "the factor 0.2 is missing"),
    (check.revive, (revived(living=False),), "*living* columns"),
    (check.revive, (revived(row=1.0),), "as long as the living ones"),
    (check.revive, (revived(bias=None),), "b_enc of the dead"),
    (check.revive, (revived(everybody=True),), "only dead ones start"),
    (check.revive, (revived(own_draw=True),), "hand `generator` to multinomial"),
    (check.revive, (lambda sae, dead, x, generator: sae,), "nothing has changed"),
    (check.revive, (revived_in_place,), "x_BD itself is overwritten"),
    (check.recovered, (lambda c, s, a: (s - c) / (a - c),), "share that was lost"),
    (check.recovered, (lambda c, s, a: 1 - s / a,), "clean loss is missing"),
    (check.recovered, (lambda c, s, a: c / s,), "has no zero"),
    (check.recovered, (lambda c, s, a: 1 - (s - c) / c,), "Compare differences"),
    (check.recovered, (lambda c, s, a: (a - c) / (a - s),), "upside down"),
    (check.recovered, (lambda c, s, a: (s - a) / (a - c),), "sign"),
    (check.recovered, (lambda c, s, a: max(0, (a - s) / (a - c)),), "no clipping"),
    (check.recovered, (lambda c, s, a: a - s,), "1 if spliced equals clean"),
    (check.explained, (mean_of_squares,), "(mean of x²)²"),
    (
        check.explained,
        (lambda x, y: 1 - sq(x, y).sum() / x.square().sum(),),
        "nothing is subtracted",
    ),
    (
        check.explained,
        (lambda x, y: 1 - sq(x, y).sum() / sq(x, x.mean()).sum(),),
        "one mean for all",
    ),
    (
        check.explained,
        (lambda x, y: 1 - sq(x, y).sum() / sq(x, x.mean(1, keepdim=True)).sum(),),
        "mean of each row",
    ),
    (check.explained, (lambda x, y: (1 - sq(x, y).sum(0) / spread(x).sum(0)).mean(),), "dimension"),
    (check.explained, (lambda x, y: (1 - sq(x, y).sum(1) / spread(x).sum(1)).mean(),), "each row"),
    (check.explained, (lambda x, y: sq(x, y).sum() / spread(x).sum(),), "explained: 1 minus"),
    (check.explained, (lambda x, y: 1 - (x - y).var(0).sum() / x.var(0).sum(),), "always the same"),
    (check.memory, (lambda d, f, n: 4 * weights(d, f) + n * d,), "counts numbers"),
    (check.memory, (lambda d, f, n: 32 * (4 * weights(d, f) + n * d),), "counts bits"),
    (check.memory, (lambda d, f, n: 4 * (4 * weights(d, f) + n * d) / 1e9,), "not gigabytes"),
    (check.memory, (lambda d, f, n: 4 * (4 * weights(d, f) + n * d) / 2**30,), "not gigabytes"),
    (check.memory, (lambda d, f, n: 16 * weights(d, f),), "buffer of activations is missing"),
    (check.memory, (lambda d, f, n: 4 * (weights(d, f) + n * d),), "only the weights"),
    (check.memory, (lambda d, f, n: 4 * (3 * weights(d, f) + n * d),), "two moments, or"),
    (check.memory, (lambda d, f, n: 4 * (4 * d * f + n * d),), "one of the two matrices"),
    (check.memory, (lambda d, f, n: 4 * (4 * weights(d, f) + n * f),), "d_in wide"),
    (check.memory, (lambda d, f, n: 16 * (weights(d, f) + n * d),), "not learned"),
]


@pytest.mark.parametrize(
    ("guess", "words"),
    [
        ((0.9, 0.3), "trained: about right, 0.97; untrained: about right, 0.35."),
        ([0.2, 0], "trained: more than you thought, 0.97; untrained: more"),
        (torch.tensor([1.0, 0.9]), "untrained: less than you thought, 0.35."),
    ],
)
def test_a_prediction_is_answered_according_to_the_guess(guess, words):
    assert words in check.predicted_survival(guess, 0.97, 0.35).message


def test_units_must_not_matter():
    verdict = check.explained(
        lambda x, y: float(1 - sq(x, y).sum() / spread(x).sum()) if x.abs().max() < 50 else 0.5
    )
    assert "ten times" in verdict.message


def test_what_adam_does_not_know_is_refused():
    """Only where the SAE itself is at hand: over the wire nobody sees which tensor it is."""
    assert "Adam does not know" in check.revive(revived_anew).message
