"""The gated sparse autoencoder: one path decides whether, another how much. Lesson 11.

Shapes: B batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from saelearn.errors import check_range
from saelearn.sae.base import SAE, SAEOutput
from saelearn.sae.objectives import AT_FULL, Loss, Now, Objective, squared_error


class Gated(SAE):
    """A sparse autoencoder that separates whether a feature is active from how much.

        input = x - b_dec
        gate  = input W_enc + b_gate                                [B, F]
        f     = (gate > 0) * ReLU(input W_enc * exp(r_mag) + b_mag)

    A penalty on the gate alone leaves the magnitude as large as it should be. (Rajamanoharan et
    al., 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".)

    Args:
        arguments: as for `SAE`.
    """

    any_axes = True
    architecture = "gated"
    feature_axis: ClassVar = {"W_enc": 1, "W_dec": 0, "b_gate": 0, "b_mag": 0, "r_mag": 0}
    offsets = ("b_gate", "b_mag")
    objectives = ("GatedL1",)

    def __init__(self, d_in: int, d_sae: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        del self.b_enc
        for name in ("b_gate", "b_mag", "r_mag"):
            self.register_parameter(name, nn.Parameter(torch.zeros(d_sae)))

    def pre(self, x_BD: Tensor) -> Tensor:
        """input W_enc, which both paths share."""
        return (x_BD - self.b_dec if self.apply_b_dec_to_input else x_BD) @ self.W_enc

    def activate(self, pre_BF: Tensor) -> Tensor:
        gate_BF = pre_BF + self.b_gate > 0
        return gate_BF * torch.relu(pre_BF * self.r_mag.exp() + self.b_mag)


@dataclass(frozen=True)
class GatedL1(Objective):
    """The loss of a gated SAE: the gate pays, and has to be able to reconstruct by itself.

        mean_B sum_D (x - x_hat)^2  +  coefficient * mean_B sum_F ReLU(gate)_i ||W_dec_i||
                                    +  mean_B sum_D (x - ReLU(gate) W_dec - b_dec)^2

    A comparison has no derivative, so the last two terms are what trains the gate. The paper keeps
    the last one from the decoder, whose rows it holds at length 1. Rows of free length have to
    feel it: else they shrink to nothing, so that an open gate costs nothing, and the magnitudes
    make up for it (planted features, coefficient 3: rows of 0.009, L0 12 in place of 1.2).

    Args:
        coefficient: lambda, in units of the activations' size.
    """

    any_axes = True
    coefficient: float
    trains = (Gated,)

    def __post_init__(self):
        check_range(self.coefficient, "coefficient", 0.0)

    def __call__(self, sae: Gated, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        pre_BF = sae.pre(x_BD)
        f_BF = sae.activate(pre_BF)
        output = SAEOutput(sae.reconstruct(x_BD, f_BF), f_BF)
        gate_BF = torch.relu(pre_BF + sae.b_gate)
        terms = {
            "reconstruction": squared_error(x_BD, output.x_hat, now),
            "sparsity": (gate_BF * sae.W_dec.norm(dim=1)).sum(-1).mean(),
            "auxiliary": squared_error(x_BD, sae.reconstruct(x_BD, gate_BF), now),
        }
        strength = self.coefficient * now.warmup
        total = terms["reconstruction"] + strength * terms["sparsity"] + terms["auxiliary"]
        return Loss(total, terms), output
