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
) -> int:
    """Give dead features a new start where the SAE is bad, and return how many there were.

    Their decoder rows point to inputs drawn with probability proportional to the squared loss;
    encoder columns get 0.2 times the mean norm of the living ones, biases 0, and Adam forgets
    them. Decoder rows keep the mean length of the living ones (Bricken et al., 2023).
    """
    dead_I = dead_F.nonzero().squeeze(1)
    if len(dead_I) == 0:
        return 0
    alive_F = ~dead_F if not dead_F.all() else torch.ones_like(dead_F)
    loss_B = (x_BD - sae(x_BD).x_hat).square().sum(-1)
    weight_B = loss_B.square().cpu()
    chosen_I = torch.multinomial(weight_B, len(dead_I), replacement=True, generator=generator)
    target_ID = x_BD[chosen_I.to(x_BD.device)] - sae.b_dec
    target_ID = target_ID / target_ID.norm(dim=1, keepdim=True).clamp(min=1e-12)
    sae.W_dec[dead_I] = target_ID * sae.W_dec[alive_F].norm(dim=1).mean()
    sae.W_enc[:, dead_I] = 0.2 * sae.W_enc[:, alive_F].norm(dim=0).mean() * target_ID.T
    sae.b_enc[dead_I] = 0.0
    for name, index in (("W_dec", dead_I), ("b_enc", dead_I), ("W_enc", (slice(None), dead_I))):
        state = optimizer.state.get(getattr(sae, name), {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][index] = 0.0
    return len(dead_I)
