"""One training step: an engine's loss and gradients (`autograd`; faster ones in `fast`), then the
update; and what changes from step to step. Lessons 05, 07.

Shapes: B batch, D activation width, F features, K SAEs side by side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from saelearn.errors import checked, number, whole
from saelearn.sae import SAE, Now, Objective
from saelearn.train.autograd import Autograd, Engine, Seen


def step(
    sae: SAE,
    x_BD: Tensor,
    optimizer: Adam | torch.optim.Optimizer,
    objective: Objective,
    *,
    now: Now = Now(),  # noqa: B008 (a tuple of constants)
    clip_norm: float = 1.0,
    engine: Engine | None = None,
) -> Seen:
    """One step: forward, backward, update. A GPU is never waited for.

    Args:
        sae: the SAE, changed in place.
        x_BD: a batch on the SAE's device.
        optimizer: of the SAE's parameters.
        objective: what is minimised.
        now: what the objective has to know of the moment.
        clip_norm: the gradient's norm is clipped at this.
        engine: how loss and gradients are computed; `Autograd` by default.

    Returns:
        the loss before the update, and how often each feature was active.
    """
    engine = engine or Autograd()
    seen = engine(sae, x_BD, objective, now)
    for parameter in sae.parameters():
        if not parameter.requires_grad:  # frozen
            parameter.grad = None
    unit_norm = objective.decoder_norm == "unit_norm" and sae.W_dec.grad is not None
    update = getattr(engine, "update", update_)
    update(sae, optimizer, clip_norm=clip_norm, unit_norm=unit_norm)
    sae.after_step_(seen.observed_P)
    return seen


def update_(
    sae: SAE, optimizer: Adam | torch.optim.Optimizer, *, clip_norm: float, unit_norm: bool
) -> None:
    """From the gradients in `.grad` to new weights.

    Args:
        clip_norm: the gradient's norm is clipped at this.
        unit_norm: rows of the decoder stay at length 1.
    """
    if unit_norm:
        keep_length_(sae.W_dec.detach(), sae.W_dec.grad)
    gradients = [rows_of(p.grad, p)[None] for p in sae.parameters() if p.grad is not None]
    clip_(gradients, clip_norm)
    optimizer.step()
    if unit_norm:
        unit_rows_(sae.W_dec)


class Adam:
    """Adam (Kingma and Ba, 2015; betas 0.9 and 0.999) by PyTorch's fused update.

    That update takes a transposed matrix, as `W_enc` is one, three times as long as the same
    numbers seen row by row; and the first `torch.optim.Adam` of a process loads a compiler that
    nobody needs here, for most of a second. The bits that come out are the same.

    Args:
        parameters: what it moves.
        lr: the learning rate, which may change between steps.
        factors: how many times that some of them are moved by; 1 if not named.

    Attributes:
        state: for each parameter that was moved: "step", "exp_avg", "exp_avg_sq".
        kept: what `fast.updates` keeps of them.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        factors: Mapping[Tensor, float] | None = None,
    ):
        self.parameters, self.lr, self._factors = list(parameters), lr, dict(factors or {})
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.kept: dict[Tensor, object] = {}

    def factor_of(self, parameter: Tensor) -> float:
        """How many times `lr` it is moved by."""
        return self._factors.get(parameter, 1.0)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Its count of steps and its moments, which begin at 0."""
        if not self.state[parameter]:
            zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {n: torch.zeros_like(parameter) for n in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": zero, **moments}
        return self.state[parameter]

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        moved = [p for p in self.parameters if p.grad is not None]
        for factor in dict.fromkeys(map(self.factor_of, moved)):
            group = [p for p in moved if self.factor_of(p) == factor]
            states = [self.state_of(p) for p in group]
            adam(
                [rows_of(p, p) for p in group], [rows_of(p.grad, p).contiguous() for p in group],
                *([rows_of(s[n], p) for s, p in zip(states, group, strict=True)]
                  for n in ("exp_avg", "exp_avg_sq")),
                [], [state["step"] for state in states], lr=self.lr * factor, beta1=0.9,
                beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False, fused=True,
            )  # fmt: skip


def rows_of(matrix: Tensor, parameter: Tensor) -> Tensor:
    """As the parameter lies in memory, by rows: the fused update goes by memory, not by index."""
    return matrix if parameter.is_contiguous() else matrix.T


@torch.no_grad()
def keep_length_(W_dec_FD: Tensor, gradient_FD: Tensor) -> None:
    """Take out of a gradient what would only stretch decoder rows of length 1."""
    along_F1 = (gradient_FD * W_dec_FD).sum(-1, keepdim=True)
    gradient_FD.addcmul_(W_dec_FD, along_F1, value=-1)


@torch.no_grad()
def clip_(gradients: Sequence[Tensor], clip_norm: float) -> None:
    """Shorten each SAE's gradient, all its parameters taken together, to `clip_norm`.

    Args:
        gradients: for each parameter those of K SAEs, `[K, ...]`.
    """
    lengths = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
    length_K = torch.linalg.vector_norm(torch.stack(lengths), dim=0)
    factor_K = (clip_norm / (length_K + 1e-6)).clamp(max=1.0)
    if factor_K.device.type == "cpu" and factor_K.min() == 1:  # a GPU would have to be waited for
        return
    for slope in gradients:
        slope.mul_(factor_K.view(-1, *[1] * (slope.ndim - 1)))


@torch.no_grad()
def unit_rows_(W_dec_FD: Tensor) -> None:
    """Bring decoder rows back to length 1."""
    W_dec_FD.div_(W_dec_FD.norm(dim=-1, keepdim=True))


@checked(batch_size=whole(1), d_in=whole(1))
def usual_lr(batch_size: int, d_in: int) -> float:
    """The peak learning rate that learned most from a few million rows (`benchmarks.recipe`).

    Adam moves every weight by about the rate: a row of D weights turns by sqrt(D) of it, and the
    mean over a batch is known sqrt(B) times as well.

    Args:
        batch_size: rows in a step, B.
        d_in: activation width, D.
    """
    return 4e-3 * math.sqrt(batch_size / 512 * 128 / d_in)


@checked(i=whole(0), steps=whole(1), warmup=number(0, 1), decay=number(0, 1))
def lr_factor(i: int, steps: int, *, warmup: float, decay: float) -> float:
    """The learning rate at step `i` as a share of its peak: rises in a line, stays, falls squared.

    What Adam's noise leaves is as large as the last rates, so the fall ends gently.
    """
    rise = (i + 1) / max(1, warmup * steps)
    fall = (steps - i) / max(1, decay * steps)
    return min(1.0, rise, fall**2)


@checked(i=whole(0), steps=whole(1), warmup=number(0, 1))
def l1_factor(i: int, steps: int, *, warmup: float) -> float:
    """A penalty at step `i` as a share of its final value: rises linearly, then stays."""
    return min(1.0, (i + 1) / max(1, warmup * steps))
