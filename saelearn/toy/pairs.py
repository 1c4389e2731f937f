"""Planted features that come in pairs: correlated, or one implying the other. Lesson 10.

Shapes: B batch, D activation width, G planted features, of which 2 i and 2 i + 1 are a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_range, checked, number, whole


@dataclass(frozen=True)
class PlantedPairs:
    """Data made of known features in pairs; whether the second is on depends on the first.

        x = sum of amplitude * direction over the features that are on

    What one SAE makes of it and of its control, where pairs are independent but as frequent, is
    due to the correlation alone.

    Attributes:
        directions_GD: unit vectors.
        p: probability that the first of a pair is on.
        given, otherwise: probability that the second is on if the first is, and if not.
        amplitudes: they are uniform between these two.
    """

    directions_GD: Tensor
    p: float
    given: float
    otherwise: float
    amplitudes: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self):
        if self.directions_GD.ndim != 2 or len(self.directions_GD) % 2:
            shape = tuple(self.directions_GD.shape)
            raise Refusal("directions [G, D] of an even number of features", str(shape))
        for name in ("p", "given", "otherwise"):
            check_range(getattr(self, name), name, 0.0, 1.0)

    @classmethod
    @checked(
        n_pairs=whole(1),
        d_in=whole(1),
        p=number(0, 1),
        given=number(0, 1),
        otherwise=number(0, 1),
        seed=whole(0),
    )
    def make(
        cls,
        n_pairs: int = 16,
        d_in: int = 48,
        *,
        p: float = 0.125,
        given: float,
        otherwise: float | None = None,
        amplitudes: tuple[float, float] = (0.5, 1.5),
        seed: int = 0,
    ) -> PlantedPairs:
        """Random directions.

        Args:
            otherwise: None makes the second of a pair as frequent as the first, p.
        """
        # far from the seeds of SAEs, whose first weights are drawn in the same way
        generator = torch.Generator().manual_seed(2**31 + seed)
        directions_GD = torch.randn(2 * n_pairs, d_in, generator=generator)
        directions_GD /= directions_GD.norm(dim=1, keepdim=True)
        otherwise = p * (1 - given) / (1 - p) if otherwise is None else otherwise
        return cls(directions_GD, p, given, otherwise, amplitudes)

    def independent(self) -> PlantedPairs:
        """The control: the same directions, each on as often as here, no pair correlated."""
        second = self.p * self.given + (1 - self.p) * self.otherwise
        return PlantedPairs(self.directions_GD, self.p, second, second, self.amplitudes)

    @property
    def l0(self) -> float:
        """How many features are on in a row, on average."""
        second = self.p * self.given + (1 - self.p) * self.otherwise
        return len(self.directions_GD) / 2 * (self.p + second)

    @checked(n=whole(0))
    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`x_BD` and the amplitudes `f_BG` it was made of."""
        n_pairs = len(self.directions_GD) // 2
        first = torch.rand(n, n_pairs, generator=generator) < self.p
        chance = torch.where(first, self.given, self.otherwise)
        second = torch.rand(n, n_pairs, generator=generator) < chance
        on_BG = torch.stack([first, second], dim=-1).flatten(1)
        low, high = self.amplitudes
        f_BG = on_BG * (low + (high - low) * torch.rand(n, 2 * n_pairs, generator=generator))
        return f_BG @ self.directions_GD, f_BG

    @checked(batch_size=whole(1), seed=whole(0))
    def batches(self, batch_size: int, *, seed: int = 0) -> Iterator[Tensor]:
        """Fresh batches `x_BD` without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(batch_size, generator=generator)[0]
