"""Dead features get a new start where the SAE is bad (Bricken et al., 2023).

Shapes: B batch, D activation width, F features, I features that start anew.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from saelearn.sae import SAE
from saelearn.train.update import Adam


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A random stream for one purpose: what is drawn for another does not change it."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def resampling_steps(shares: Sequence[float], steps: int) -> tuple[set[int], set[int]]:
    """After which steps dead features start anew, and from which on it counts who is silent.

    The second lies halfway between two of the first.
    """
    resample_steps = sorted(round(share * steps) for share in shares)
    watch_steps = {(a + b) // 2 for a, b in itertools.pairwise([0, *resample_steps])}
    return set(resample_steps), watch_steps


@torch.no_grad()
def resample(
    sae: SAE,
    optimizer: Adam | torch.optim.Optimizer,
    dead_F: Tensor,
    x_BD: Tensor,
    *,
    generator: torch.Generator,
    target_BD: Tensor | None = None,
) -> int:
    """Give dead features a new start where the SAE is bad, and return how many there were.

    They read and write the direction of inputs drawn with probability proportional to the squared
    loss; how long rows and columns are and where all else starts, the architecture decides
    (`SAE.restart_`); and Adam forgets them. What is frozen stays (Bricken et al., 2023).

    Args:
        target_BD: what is reconstructed, if it is not the input.
    """
    dead_I = dead_F.nonzero().squeeze(1)
    target_BD = x_BD if target_BD is None else target_BD
    loss_B = (target_BD - sae(x_BD).x_hat).square().sum(-1)
    weight_B = loss_B.square().cpu()
    if len(dead_I) == 0 or not weight_B.any():  # nobody is dead, or nothing is left to explain
        return 0
    alive_F = ~dead_F if not dead_F.all() else torch.ones_like(dead_F)
    chosen_I = torch.multinomial(weight_B, len(dead_I), replacement=True, generator=generator)
    chosen_I = chosen_I.to(x_BD.device)
    writes_ID = _unit(target_BD[chosen_I] - sae.b_dec)
    reads_ID = _unit(x_BD[chosen_I]) if target_BD is not x_BD else writes_ID
    frozen = {p: p.clone() for p in sae.parameters() if not p.requires_grad}
    sae.restart_(dead_I, alive_F, reads_ID, writes_ID)
    for parameter, before in frozen.items():
        parameter.copy_(before)
    for name, axis in sae.feature_axis.items():
        for value in optimizer.state.get(getattr(sae, name), {}).values():
            if value.ndim:  # not the count of steps
                value.index_fill_(axis, dead_I, 0.0)
    return len(dead_I)


def _unit(rows_ID: Tensor) -> Tensor:
    return rows_ID / rows_ID.norm(dim=1, keepdim=True).clamp(min=1e-12)
