"""The fast step behind `toy.train_toy`: data, gradient and Adam by hand. Lesson 02.

Mathematically the loop that lesson 02 builds with autograd, several times faster: rows in which
nothing is on are counted, not computed. Where numba is there and few features are on at a time, a
step is one compiled loop (`toy_loops`); else the products of all instances are done as one.
Shapes: K instances, B batch, N rows of a batch in which something is on, G true features, D hidden
dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from types import ModuleType

import torch
from torch import Tensor, nn

from saelearn.compiled import MISSING

WIDE = 64  # features from which the plain chain rule is faster than the Gram form; measured
# Up to so many features, and so many of them on at a time, loops are faster than products of
# matrices; measured. At 32 on they take the same time for one instance and a batch of 64, half of
# it else; with 128 features and 6 on 0.7 of it, with 5 features a third to a thirtieth.
MOST_FEATURES, MOST_ON = 128, 32


@cache
def loops() -> ModuleType | None:
    """The compiled loops, or None where numba is missing. Loaded by the first training."""
    try:
        from saelearn.toy import toy_loops
    except MISSING:
        return None
    return toy_loops


def busy_batches(
    batch_size: int,
    n_features: int,
    p: float | Tensor,
    *,
    generator: torch.Generator,
    correlated: bool = False,
) -> Iterator[Tensor]:
    """Batches of `toy.sample_features`' law without end, their empty rows left out: `f_NG`.

    One draw does for both coin and amplitude: u, uniform in [0, 1], is below p with probability p,
    and then u / p is uniform in [0, 1]. Many batches are drawn at once. (Random numbers come in
    steps of 2^-24, so amplitudes in steps of 2^-24 / p.)

    Args:
        batch_size: B; how many rows are left of it, N, differs from batch to batch.
        n_features, p, generator, correlated: as for `toy.sample_features`.
    """
    p = torch.as_tensor(p, dtype=torch.float32).clamp(min=1e-30)  # no 0 / 0
    n_batches = max(1, 2**18 // (batch_size * n_features))
    n = n_batches * batch_size
    while True:
        if correlated:  # partners share a coin, so their amplitudes are drawn for themselves
            first = p[::2] if p.ndim else p
            coins = torch.rand(n, (n_features + 1) // 2, generator=generator) >= first
            f_NG = torch.rand(n, n_features, generator=generator)
            f_NG += coins.repeat_interleave(2, dim=1)[:, :n_features]
        else:
            f_NG = torch.rand(n, n_features, generator=generator).div_(p)
        busy_N = f_NG.amin(1) < 1  # what is 1 or more is off
        f_NG = f_NG[busy_N]
        f_NG.masked_fill_(f_NG >= 1, 0)
        yield from f_NG.split(busy_N.view(n_batches, -1).sum(1).tolist())


def gradients(
    W_KGD: Tensor, b_KG: Tensor, f_NG: Tensor, importance_G: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Exact gradients of `toy.toy_loss`, summed over instances, by `W` [K, G, D] and `b` [K, G].

    With z = W^T W f + b and e the loss differentiated by z,

        e = 2 / (B G) * importance * (z - f)  where z > 0, else 0

    Args:
        f_NG: the rows of the batch in which something is on.
        batch_size: B; the B - N rows that are left out are 0, so their z is b.
    """
    scale_G = importance_G * (2 / (batch_size * f_NG.shape[1]))
    form = _chain_rule if f_NG.shape[1] > WIDE else _gram
    dW_KGD, db_KG = form(W_KGD, b_KG, f_NG, scale_G)
    return dW_KGD, db_KG + (batch_size - len(f_NG)) * scale_G * b_KG.relu()


def _gram(W_KGD: Tensor, b_KG: Tensor, f_NG: Tensor, scale_G: Tensor) -> tuple[Tensor, Tensor]:
    """Few features: the model sees its weights only as M = W W^T, so dW = (dM + dM^T) W.

    A column of ones beside f makes b one more row of M. The M of all instances stand side by side:
    every product over rows is one large one, z - f = f (M - 1) + b included.
    """
    n_instances, n_features, _ = W_KGD.shape
    f_NH = nn.functional.pad(f_NG, (0, 1), value=1.0)  # H = G + 1
    M_HKG = torch.cat([W_KGD @ W_KGD.mT, b_KG[:, None]], 1).transpose(0, 1).contiguous()
    positive = (f_NH @ M_HKG.flatten(1)).gt_(0)  # [N, K * G]
    M_HKG.diagonal(0, 0, 2).sub_(1)
    e = (f_NH @ M_HKG.flatten(1)).mul_(positive)
    dM_HKG = (f_NH.T @ e).unflatten(1, (n_instances, n_features)).mul_(scale_G)
    dM_KGG = dM_HKG[:-1].transpose(0, 1)
    return (dM_KGG + dM_KGG.mT) @ W_KGD, dM_HKG[-1]


def _chain_rule(
    W_KGD: Tensor, b_KG: Tensor, f_NG: Tensor, scale_G: Tensor
) -> tuple[Tensor, Tensor]:
    """Many features: down to the D hidden dimensions and back, dW = e^T h + f^T (e W)."""
    h_KND = f_NG @ W_KGD
    z_KNG = torch.baddbmm(b_KG[:, None], h_KND, W_KGD.mT)
    positive = z_KNG > 0
    e_KNG = z_KNG.sub_(f_NG).mul_(positive).mul_(scale_G)
    return e_KNG.mT @ h_KND + f_NG.T @ (e_KNG @ W_KGD), e_KNG.sum(1)


class Adam:
    """Adam (Kingma and Ba, 2015; betas 0.9 and 0.999) on all parameters as one row of numbers.

    The model's parameters become views of that row. torch's does the same at two to three times
    the cost where a step takes microseconds.
    """

    def __init__(self, model: nn.Module):
        parameters = list(model.parameters())
        self.flat = torch.cat([w.detach().flatten() for w in parameters])
        pieces = self.flat.split([w.numel() for w in parameters])
        for w, piece in zip(parameters, pieces, strict=True):
            w.data = piece.view_as(w)
        self.mean, self.square = torch.zeros(2, len(self.flat))
        self.n_steps = 0

    def next(self, lr: float) -> tuple[float, float]:
        """Count a step. It moves by  -rate * mean / (sqrt(square) + 1e-8 * root): rate and root."""
        self.n_steps += 1
        root = math.sqrt(1 - 0.999**self.n_steps)
        return lr * root / (1 - 0.9**self.n_steps), root

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Move the parameters, in place; one gradient for each, in their order."""
        rate, root = self.next(lr)
        g = torch.cat([gradient.flatten() for gradient in gradients])
        self.mean.lerp_(g, 0.1)
        self.square.mul_(0.999).addcmul_(g, g, value=0.001)
        size = self.square.sqrt().add_(1e-8 * root)
        self.flat.addcdiv_(self.mean, size, value=-rate)


class Training:
    """The steps of one training: they move `model`'s `W` [K, G, D] and `b` [K, G], in place.

    Args:
        importance_G, batch_size: as for `gradients`.
        p: how often features are on, one number or [G]: decides which way is the faster one.
    """

    def __init__(
        self, model: nn.Module, importance_G: Tensor, batch_size: int, p: float | Tensor
    ) -> None:
        self.model, self.importance_G, self.batch_size = model, importance_G, batch_size
        self.adam, n_features = Adam(model), len(importance_G)
        n_on = n_features * float(torch.as_tensor(p, dtype=torch.float32).mean())
        few = n_features <= MOST_FEATURES and n_on <= MOST_ON
        self._loops = loops() if few and self.adam.flat.dtype == torch.float32 else None

    @torch.no_grad()
    def step(self, f_NG: Tensor, lr: float) -> None:
        """Learn from the rows of a batch in which something is on."""
        if self._loops is None:
            how = self.importance_G, self.batch_size
            return self.adam.step(gradients(self.model.W, self.model.b, f_NG, *how), lr)
        left_out = self.batch_size - len(f_NG)
        self._loops.step(*self._arrays, f_NG.numpy(), left_out, *self.adam.next(lr))

    @cached_property
    def _arrays(self) -> tuple:
        """What a compiled step changes and what it needs, as numpy's views."""
        adam, scale = self.adam, 2 / (self.batch_size * len(self.importance_G))
        rows = adam.flat, adam.mean, adam.square, torch.empty_like(adam.flat)
        scale_G = (self.importance_G * scale).float()
        return *(t.numpy() for t in (*rows, scale_G)), tuple(self.model.W.shape)
