"""Toy models of superposition, and data whose true features are known. Lesson 02.

After Elhage et al. (2022), "Toy Models of Superposition". Shapes: K instances trained side by
side, B batch, G true features, D hidden dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from saelearn.errors import Refusal, brief, check_range, check_tensor, checked, number, whole
from saelearn.toy import toy_step


@checked(n=whole(0), n_features=whole(1))
def sample_features(
    n: int,
    n_features: int,
    p: float | Tensor,
    *,
    generator: torch.Generator,
    correlated: bool = False,
) -> Tensor:
    """Sparse feature vectors `f_BG`: each is 0 with probability 1 - p, else uniform in [0, 1].

    Args:
        n: how many vectors.
        n_features: G.
        p: probability that a feature is on (the papers' sparsity is S = 1 - p); a tensor [G]
            gives each feature its own.
        generator: source of randomness.
        correlated: neighbours (0, 1), (2, 3), ... are on or off together, as often as the first.
    """
    _check_probability(p, n_features)
    on_BG = torch.rand(n, n_features, generator=generator) < p
    if correlated:
        on_BG = on_BG[:, torch.arange(n_features) // 2 * 2]
    return torch.rand(n, n_features, generator=generator) * on_BG


def _check_probability(p: float | Tensor, n_features: int) -> None:
    if not isinstance(p, Tensor):
        return check_range(p, "p", 0.0, 1.0)
    if p.shape != (n_features,):
        raise Refusal(f"p as one number or of shape ({n_features},)", f"shape {tuple(p.shape)}")
    if p.is_complex() or not ((p >= 0) & (p <= 1)).all():
        raise Refusal("p between 0 and 1", brief(p), "pass probabilities, one for each feature")


class ToyModel(nn.Module):
    """K instances of  f_hat = ReLU(W^T W f + b),  trained side by side.

    `W` [K, G, D]: row g is the direction that feature g gets in the hidden space; `b` [K, G].

    Args:
        n_features: G, the number of things to be represented.
        d_hidden: D, the dimensions there are for them.
        n_instances: K.
        seed: seed of the initial weights (normal, scaled as Xavier's).
    """

    @checked(n_features=whole(1), d_hidden=whole(1), n_instances=whole(1), seed=whole(0))
    def __init__(self, n_features: int, d_hidden: int, *, n_instances: int = 1, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        W_KGD = torch.randn(n_instances, n_features, d_hidden, generator=generator)
        self.W = nn.Parameter(W_KGD * math.sqrt(2 / (n_features + d_hidden)))
        self.b = nn.Parameter(torch.zeros(n_instances, n_features))

    def forward(self, f_BG: Tensor) -> Tensor:
        """Reconstructions `f_hat_KBG` of the features, one for each instance."""
        h_KBD = f_BG @ self.W
        return torch.relu(torch.baddbmm(self.b[:, None], h_KBD, self.W.mT))


@checked()
def toy_loss(f_BG: Tensor, f_hat_KBG: Tensor, importance_G: Tensor) -> Tensor:
    """Mean over batch and features of importance * squared error, one number for each instance."""
    return (importance_G * (f_BG - f_hat_KBG).square()).mean(dim=(1, 2))


class ToyRun(NamedTuple):
    """Trained toy models: `W` [K, G, D], `b` [K, G], final `loss` [K], and the loss over time."""

    W: Tensor
    b: Tensor
    loss: Tensor
    history: list[tuple[int, float]]

    def best(self) -> int:
        """The instance with the lowest loss. Single runs end in poor optima; take the best of N."""
        return int(self.loss.argmin())


@checked(
    n_features=whole(1),
    d_hidden=whole(1),
    n_instances=whole(1),
    steps=whole(1),
    batch_size=whole(1),
    lr=number(0),
    seed=whole(0),
)
def train_toy(
    n_features: int = 5,
    d_hidden: int = 2,
    *,
    p: float | Tensor,
    importance_G: Tensor | None = None,
    n_instances: int = 8,
    steps: int = 2_000,
    batch_size: int = 1_024,
    lr: float = 1e-2,
    correlated: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> ToyRun:
    """Train `n_instances` toy models on the same stream of data; Adam with cosine decay to 0.

    The loop of lesson 02, its step made fast in `toy_step`.

    Args:
        importance_G: weight of each feature in the loss; all 1 if None.
        progress: show a progress bar.
        (others as for `ToyModel` and `sample_features`)

    Returns:
        the models with their loss over one large fresh batch.
    """
    importance_G = torch.ones(n_features) if importance_G is None else importance_G
    if importance_G.shape != (n_features,):
        raise Refusal(f"importance of shape ({n_features},)", f"shape {tuple(importance_G.shape)}")
    _check_probability(p, n_features)
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "correlated": correlated}
    model = ToyModel(n_features, d_hidden, n_instances=n_instances, seed=seed)
    batches = toy_step.busy_batches(batch_size, n_features, p, **draw)
    training = toy_step.Training(model, importance_G, batch_size, p)
    history = []
    with torch.no_grad():
        for step in tqdm(range(steps), desc="toy models", disable=not progress):
            f_NG = next(batches)
            if step % 100 == 0 or step == steps - 1:
                f_BG = nn.functional.pad(f_NG, (0, 0, 0, batch_size - len(f_NG)))
                loss_K = toy_loss(f_BG, model(f_BG), importance_G)
                history.append((step, loss_K.mean().item()))
            training.step(f_NG, lr * (1 + math.cos(math.pi * step / steps)) / 2)
        # in pieces that the processor's cache holds: all at once take two to four times as long
        pieces = sample_features(20_000, n_features, p, **draw).split(2_000)
        losses = [toy_loss(f_BG, model(f_BG), importance_G) for f_BG in pieces]
        final_K = torch.stack(losses).mean(0)
    return ToyRun(model.W.detach(), model.b.detach(), final_K, history)


def dimensionality(W_GD: Tensor) -> Tensor:
    """How much of a dimension each feature has to itself, `[G]`, between 0 and 1.

    D_g = ||W_g||^2 / sum_h (W_g . W_h / ||W_g||)^2: 1 for a feature alone, 1/2 for one of an
    antipodal pair, 2/5 in a pentagon (Elhage et al., 2022). A feature of norm 0 has 0.
    Several models at once, `[..., G, D]`, give `[..., G]`.
    """
    check_tensor(W_GD, "W_GD", "...GD")
    norm_G = W_GD.norm(dim=-1)
    unit_GD = W_GD / norm_G.clamp(min=1e-12)[..., None]
    overlap_G = (unit_GD @ W_GD.mT).square().sum(-1)
    return norm_G.square() / overlap_G.clamp(min=1e-12)


@dataclass(frozen=True)
class PlantedFeatures:
    """Data made of known features: x = sum of amplitude * direction over the features that are on.

    `directions_GD`: G unit vectors in D dimensions; `p`: probability that each is on; amplitudes
    are uniform in [0, 1]. (Sharkey et al., 2022, used such data to test SAEs first.)
    """

    directions_GD: Tensor
    p: float

    @classmethod
    @checked(n_features=whole(1), d_in=whole(1), p=number(0, 1), seed=whole(0))
    def make(
        cls, n_features: int = 64, d_in: int = 32, p: float = 3 / 64, *, seed: int = 0
    ) -> PlantedFeatures:
        """Random directions; the default is 64 features in 32 dimensions, 3 on at a time."""
        # far from the seeds of SAEs, whose first weights are drawn in the same way: with an equal
        # seed an SAE would start at the truth
        generator = torch.Generator().manual_seed(2**31 + seed)
        directions_GD = torch.randn(n_features, d_in, generator=generator)
        return cls(directions_GD / directions_GD.norm(dim=1, keepdim=True), p)

    @checked(n=whole(0))
    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`x_BD` and the amplitudes `f_BG` it was made of."""
        f_BG = sample_features(n, len(self.directions_GD), self.p, generator=generator)
        return f_BG @ self.directions_GD, f_BG

    @checked(batch_size=whole(1), seed=whole(0))
    def batches(self, batch_size: int, *, seed: int = 0) -> Iterator[Tensor]:
        """Fresh batches `x_BD` without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(batch_size, generator=generator)[0]
