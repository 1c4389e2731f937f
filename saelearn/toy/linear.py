"""The linear autoencoder, and PCA to hold it against. Built in lesson 01.

Shapes: N rows of data, B batch, D width of the data, H numbers in the code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from saelearn.errors import (
    Refusal,
    check_activations,
    check_range,
    check_width,
    checked,
    number,
    whole,
)


class LinearAutoencoder(nn.Module):
    """Two matrices with a code between them, and nothing that bends.

        h     = (x - mean) W_enc        [B, H]
        x_hat = h W_dec + mean          [B, D]

    With H < D the code is a bottleneck. The best such pair projects onto the plane of the H
    principal components, whatever mixture of them its rows are (Baldi & Hornik, 1989).

    Args:
        d_in: width D of the data.
        d_hidden: numbers H in the code.
        seed: of the first weights, normal with standard deviation 0.1.
    """

    @checked(d_in=whole(1), d_hidden=whole(1), seed=whole(0))
    def __init__(self, d_in: int, d_hidden: int, *, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = nn.Parameter(0.1 * torch.randn(d_in, d_hidden, generator=generator))
        self.W_dec = nn.Parameter(0.1 * torch.randn(d_hidden, d_in, generator=generator))
        self.register_buffer("mean", torch.zeros(d_in))

    def encode(self, x_BD: Tensor) -> Tensor:
        """The code `h_BH`."""
        check_width(x_BD, len(self.mean))
        return (x_BD - self.mean) @ self.W_enc

    def decode(self, h_BH: Tensor) -> Tensor:
        """The reconstruction `x_hat_BD`."""
        check_width(h_BH, len(self.W_dec), name="codes")
        return h_BH @ self.W_dec + self.mean

    def forward(self, x_BD: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(x_BD))


@checked()
def reconstruction_loss(x_BD: Tensor, x_hat_BD: Tensor) -> Tensor:
    """Squared error, summed over D and averaged over the batch: one number."""
    return (x_BD - x_hat_BD).square().sum(-1).mean()


class LinearRun(NamedTuple):
    """A trained `model`, and the `losses` before each step, `[steps]`."""

    model: LinearAutoencoder
    losses: Tensor


@checked(d_hidden=whole(1), steps=whole(1), lr=number(0), seed=whole(0))
def train_linear(
    x_ND: Tensor, d_hidden: int, *, steps: int = 1_000, lr: float = 3e-2, seed: int = 0
) -> LinearRun:
    """Train a linear autoencoder on all rows at once: Adam, cosine decay of `lr` to 0.

    Args:
        x_ND: the data; their mean is taken out first.
        d_hidden: numbers H in the code.
        steps: optimizer steps.
        lr: learning rate at the start.
        seed: of the first weights.
    """
    check_activations(x_ND, name="data")
    model = LinearAutoencoder(x_ND.shape[1], d_hidden, seed=seed)
    model.mean = x_ND.mean(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        loss = reconstruction_loss(x_ND, model(x_ND))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return LinearRun(model, torch.stack(losses))


class PCA(NamedTuple):
    """Principal components: the flat picture that loses least.

    `components_DD`: unit rows, most variance first; `variance_D`: of the data along each;
    `mean_D`: where the plane is pinned.
    """

    components_DD: Tensor
    variance_D: Tensor
    mean_D: Tensor

    @checked(n_components=whole(0))
    def loss(self, n_components: int) -> float:
        """What the first n lose: the variance along all others (Eckart & Young, 1936)."""
        check_range(n_components, "n_components", 0, len(self.variance_D))
        return float(self.variance_D[n_components:].sum())


@torch.no_grad()
def pca(x_ND: Tensor) -> PCA:
    """The principal components of at least D rows (Pearson, 1901), by the data's SVD."""
    check_activations(x_ND, name="data")
    if len(x_ND) < x_ND.shape[1]:
        raise Refusal("at least as many rows as columns", f"shape {tuple(x_ND.shape)}")
    mean_D = x_ND.mean(0)
    _, scale_D, components_DD = torch.linalg.svd(x_ND - mean_D, full_matrices=False)
    return PCA(components_DD, scale_D.square() / len(x_ND), mean_D)


@torch.no_grad()
@checked()
def principal_cosines(a_HD: Tensor, b_GD: Tensor) -> Tensor:
    """Cosines of the principal angles between the planes that two sets of rows span, largest first.

    All 1: the planes are the same. A 0: a direction of one at right angles to all of the other.
    (Björck & Golub, 1973. Jordan, 1875, knew the angles.)
    """
    bases = [torch.linalg.qr(rows.detach().double().cpu().T).Q for rows in (a_HD, b_GD)]
    return torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1.0)
