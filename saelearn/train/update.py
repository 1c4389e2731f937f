"""One training step: loss and gradients, then the update; and what changes from step to step.
Layer 2. Lessons 05, 07.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam

from saelearn.sae import SAE, Loss
from saelearn.train.fast.kernels import Kernel, Stack


def step(
    sae: SAE,
    x_BD: Tensor,
    optimizer: Adam | torch.optim.Optimizer,
    *,
    l1_coefficient: float,
    decoder_norm: str = "weighted",
    clip_norm: float = 1.0,
    kernel: Kernel | None = None,
) -> tuple[Loss, Tensor]:
    """One step: forward, backward, update. A GPU is never waited for.

    Args:
        sae: the SAE, changed in place.
        x_BD: a batch on the SAE's device.
        optimizer: of the SAE's parameters.
        l1_coefficient: lambda of `sae.l1_loss`.
        decoder_norm: "weighted", "unit_norm" or "free".
        clip_norm: the gradient's norm is clipped at this.
        kernel: how loss and gradients are computed; a plain one by default.

    Returns:
        the loss before the update, and `count_F`: in how many of the batch's rows each feature
        was active.
    """
    kernel = kernel or Kernel()
    loss, count_F = kernel(sae, x_BD, l1_coefficient=l1_coefficient, decoder_norm=decoder_norm)
    stack, gradient = Stack.of(sae), Stack.of(sae, gradients=True)
    constrain_(stack, gradient, decoder_norm=decoder_norm, clip_norm=clip_norm)
    optimizer.step()
    if decoder_norm == "unit_norm":
        unit_rows_(stack)
    return loss, count_F


class Adam:
    """Adam (Kingma and Ba, 2015; betas 0.9 and 0.999) by PyTorch's fused update.

    That update takes a transposed matrix, as `W_enc` is one, three times as long as the same
    numbers seen row by row; and the first `torch.optim.Adam` of a process loads a compiler that
    nobody needs here, for most of a second. The bits that come out are the same.

    Args:
        parameters: what it moves.
        lr: the learning rate, which may change between steps.

    Attributes:
        state: for each parameter that was moved: "step", "exp_avg", "exp_avg_sq".
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float):
        self.parameters, self.lr = list(parameters), lr
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        moved = [p for p in self.parameters if p.grad is not None]
        for parameter in moved:
            if not self.state[parameter]:
                zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {n: torch.zeros_like(parameter) for n in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": zero, **moments}
        states = [self.state[p] for p in moved]
        adam(
            [_rows(p) for p in moved], [_rows(p.grad) for p in moved],
            *([_rows(state[n]) for state in states] for n in ("exp_avg", "exp_avg_sq")),
            [], [state["step"] for state in states], lr=self.lr, beta1=0.9, beta2=0.999,
            eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False, fused=True,
        )  # fmt: skip


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.is_contiguous() else matrix.T


@torch.no_grad()
def constrain_(sae: Stack, gradient: Stack, *, decoder_norm: str, clip_norm: float) -> None:
    """Clip each SAE's gradient, without what would only stretch decoder rows of length 1."""
    if decoder_norm == "unit_norm":
        along_KF1 = (gradient.W_dec_KFD * sae.W_dec_KFD).sum(2, keepdim=True)
        gradient.W_dec_KFD.addcmul_(sae.W_dec_KFD, along_KF1, value=-1)
    lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradient]
    length_K = torch.linalg.vector_norm(torch.stack(lengths), dim=0)
    factor_K = (clip_norm / (length_K + 1e-6)).clamp(max=1.0)
    if factor_K.device.type == "cpu" and factor_K.min() == 1:  # a GPU would have to be waited for
        return
    for slope in gradient:
        slope.mul_(factor_K.view(-1, *[1] * (slope.ndim - 1)))


@torch.no_grad()
def unit_rows_(sae: Stack) -> None:
    """Bring decoder rows back to length 1."""
    sae.W_dec_KFD.div_(sae.W_dec_KFD.norm(dim=2, keepdim=True))


def lr_factor(i: int, steps: int, *, warmup: float, decay: float) -> float:
    """The learning rate at step `i` as a share of its peak: rises, stays, falls, all linearly."""
    rise = (i + 1) / max(1, warmup * steps)
    fall = (steps - i) / max(1, decay * steps)
    return min(1.0, rise, fall)


def l1_factor(i: int, steps: int, *, warmup: float) -> float:
    """Lambda at step `i` as a share of its final value: rises linearly, then stays."""
    return min(1.0, (i + 1) / max(1, warmup * steps))
