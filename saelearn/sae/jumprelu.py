"""The sparse autoencoder that jumps: a threshold for each feature, learned. Lesson 11.

Shapes: B batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saelearn.errors import Refusal, check_range
from saelearn.sae.base import SAE, SAEOutput
from saelearn.sae.objectives import AT_FULL, Loss, Now, Objective, squared_error

BANDWIDTH = 0.05
GENTLY = 0.1
"""Share of its firmness with which a target for L0 is held until the learning rate falls."""


class _Jump(torch.autograd.Function):
    """z where z > threshold, else 0; or 1 there, if `step`.

    Neither has a useful derivative with respect to the threshold, so one is made up from the
    entries within half a bandwidth of it: -threshold / bandwidth for z, -1 / bandwidth for 1, as a
    kernel estimate of the derivative of the expectation would be (Rajamanoharan et al., 2024,
    appendix B). Towards z the first is differentiated as it stands, and the second not at all.
    """

    @staticmethod
    def forward(ctx, z_BF: Tensor, threshold_F: Tensor, bandwidth: float, step: bool) -> Tensor:
        ctx.save_for_backward(z_BF, threshold_F)
        ctx.bandwidth, ctx.step = bandwidth, step
        on_BF = z_BF > threshold_F
        return on_BF.to(z_BF.dtype) if step else z_BF * on_BF

    @staticmethod
    def backward(ctx, slope_BF: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        z_BF, threshold_F = ctx.saved_tensors
        near_BF = ((z_BF - threshold_F).abs() < ctx.bandwidth / 2).to(slope_BF.dtype)
        share_F = (slope_BF * near_BF).flatten(0, -2).sum(0) / ctx.bandwidth
        if ctx.step:
            return None, -share_F, None, None
        return slope_BF * (z_BF > threshold_F), -threshold_F * share_F, None, None


class JumpReLU(SAE):
    """A sparse autoencoder whose features have to exceed a threshold and are then not reduced.

        pre = (x - b_dec) W_enc + b_enc        [B, F]
        f   = pre where pre > threshold, else 0        (threshold >= 0)

    (Erichson et al., 2019; Rajamanoharan et al., 2024, "Jumping Ahead".)

    Args:
        init_threshold: of each feature at the start.
        bandwidth: how close to its threshold an entry must come to move it in training.
        arguments: as for `SAE`.
    """

    any_axes = True
    architecture = "jumprelu"
    feature_axis = SAE.feature_axis | {"threshold": 0}
    offsets = ("b_enc", "threshold")
    objectives = ("JumpL0",)
    accepted = SAE.accepted | {"activation_fn": ("jumprelu", "relu")}  # ReLU, and a threshold

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        init_threshold: float = 0.01,
        bandwidth: float = BANDWIDTH,
        **arguments,
    ):
        super().__init__(d_in, d_sae, **arguments)
        self.init_threshold = check_range(init_threshold, "init_threshold", 0.0)
        self.bandwidth = check_range(bandwidth, "bandwidth", 1e-12)
        self.threshold = nn.Parameter(torch.full((d_sae,), float(init_threshold)))

    def activate(self, pre_BF: Tensor) -> Tensor:
        return _Jump.apply(torch.relu(pre_BF), self.threshold, self.bandwidth, False)

    def is_on(self, pre_BF: Tensor) -> Tensor:
        """1 where a feature is active and 0 elsewhere, with a derivative for the threshold."""
        return _Jump.apply(torch.relu(pre_BF), self.threshold, self.bandwidth, True)

    @torch.no_grad()
    def after_step_(self, observed_P: Tensor | None) -> None:
        self.threshold.clamp_(min=0.0)

    @torch.no_grad()
    def restart_(self, dead_I: Tensor, *others: Tensor) -> None:
        super().restart_(dead_I, *others)
        self.threshold[dead_I] = self.init_threshold


@dataclass(frozen=True)
class JumpL0(Objective):
    """The loss of a JumpReLU SAE: squared error, and a penalty on how many features are active.

        mean_B sum_D (x - x_hat)^2  +  penalty  +  pre_act * mean_B sum_F ReLU(threshold - pre) |w|

    with one of three penalties, |w_i| the length of decoder row i and L0 the batch's mean number
    of active features, which is differentiated through the thresholds alone:

        coefficient * L0                                    sparsity="step"  (Rajamanoharan et al.)
        coefficient * 2 / target_l0 (L0 - target_l0)^2      with a `target_l0`  (Gemma Scope 2,
                                                            there for each row by itself)
        coefficient * mean_B sum_F tanh(c f |w|)            sparsity="tanh"  (Conerly et al., 2025)

    The last term pulls pre-activations of features that fall silent back up to their threshold.
    With a target the coefficient says how firmly it is held: L0 ends above it by a share of
    m / (4 coefficient), m being what one more active feature would take off the error. It is held
    with a tenth of that until the learning rate has fallen to a tenth (at a constant rate: to the
    end): batches differ in their L0, and a firm hold answers each by moving all thresholds up or
    down, so that none finds its own and many features die (benchmarks/README.md, *architectures*).

    Args:
        coefficient: of the penalty, in units of the activations' squared size.
        target_l0: the L0 to come to, in place of being as small as the coefficient makes it.
        sparsity: "step" or "tanh".
        tanh_scale: c.
        pre_act: of the last term.
    """

    any_axes = True
    coefficient: float = 10.0
    target_l0: float | None = None
    sparsity: str = "step"
    tanh_scale: float = 4.0
    pre_act: float = 0.0
    trains = (JumpReLU,)

    def __post_init__(self):
        check_range(self.coefficient, "coefficient", 0.0)
        check_range(self.tanh_scale, "tanh_scale", 1e-12)
        check_range(self.pre_act, "pre_act", 0.0)
        if self.sparsity not in ("step", "tanh"):
            raise Refusal("sparsity as one of step, tanh", repr(self.sparsity))
        if self.target_l0 is not None:
            if not check_range(self.target_l0, "target_l0", 0.0) > 0:
                raise Refusal("target_l0 above 0", repr(self.target_l0))
            if self.sparsity != "step":
                raise Refusal('sparsity="step" with a target_l0', repr(self.sparsity))

    def check(self, sae: SAE) -> None:
        super().check(sae)
        if self.target_l0 is not None:
            check_range(self.target_l0, "target_l0", 0.0, sae.d_sae)

    def __call__(self, sae: JumpReLU, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        pre_BF = sae.pre(x_BD)
        f_BF = sae.activate(pre_BF)
        output = SAEOutput(sae.reconstruct(x_BD, f_BF), f_BF)
        terms = {"reconstruction": squared_error(x_BD, output.x_hat, now)}
        length_F = sae.W_dec.norm(dim=1)
        if self.sparsity == "tanh":
            terms["sparsity"] = torch.tanh(self.tanh_scale * f_BF * length_F).sum(-1).mean()
        else:
            terms["sparsity"] = sae.is_on(pre_BF).sum(-1).mean()
        price = terms["sparsity"]
        if self.target_l0 is not None:
            over = _whole_mean(price, len(x_BD), now) - self.target_l0
            firmness = min(1.0, GENTLY / now.rate) if now.rate else 1.0
            price = firmness * 2 / self.target_l0 * over.square()
        total = terms["reconstruction"] + self.coefficient * now.warmup * price
        if self.pre_act:
            below_BF = torch.relu(sae.threshold - pre_BF) * length_F
            terms["pre_act"] = below_BF.sum(-1).mean()
            total = total + self.pre_act * now.warmup * terms["pre_act"]
        return Loss(total, terms), output


def _whole_mean(mean: Tensor, rows: int, now: Now) -> Tensor:
    """A mean over the rows of all processes, differentiated as if each had it alone.

    What processes do with a gradient is to average it over their rows, so the derivative with
    respect to the own mean has to be that of the whole.
    """
    rows_P = now.gather(mean.new_tensor([float(rows)]))
    means_P = now.gather(mean.detach()[None])
    everyones = (means_P * rows_P).sum() / rows_P.sum()
    return everyones + mean - mean.detach()
