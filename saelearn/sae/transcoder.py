"""Transcoders: features of one site that reconstruct another. Lesson 11.

Shapes: B batch, D input width, O = d_out output width, F features.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from saelearn.errors import check_whole
from saelearn.sae.base import SAE, needs
from saelearn.sae.jumprelu import JumpReLU


class Transcoder(SAE):
    """Features of what enters a part of a model, that reconstruct what leaves it.

        f     = ReLU(x W_enc + b_enc)        [B, F]
        y_hat = f W_dec + b_dec              [B, O]

    An MLP's transcoder stands in for the MLP and shows which features in cause which out.
    (Dunefsky, Chlenski & Nanda, 2024, "Transcoders find interpretable LLM feature circuits".)

    Args:
        d_out: width of what is reconstructed; `d_in` by default.
        arguments: as for `SAE`.
    """

    any_axes = True
    architecture = "transcoder"
    accepted = SAE.accepted | {"apply_b_dec_to_input": (False,), "normalize_activations": ("none",)}

    def __init__(self, d_in: int, d_sae: int, *, d_out: int | None = None, **arguments):
        # the offset belongs to the output, so it is no centre of the input
        super().__init__(d_in, d_sae, **arguments | {"apply_b_dec_to_input": False})
        if d_out is not None and check_whole(d_out, "d_out", 1) != d_in:
            seed = arguments.get("seed", 0)
            rows_FO = torch.randn(d_sae, d_out, generator=torch.Generator().manual_seed(seed))
            rows_FO *= self.W_dec[0].norm().item() / rows_FO.norm(dim=1, keepdim=True)
            self.W_dec, self.b_dec = nn.Parameter(rows_FO), nn.Parameter(torch.zeros(d_out))

    def own_config(self) -> dict[str, Any]:
        return {"d_out": self.d_out}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {"d_out": needs(config, "d_out")}


class SkipTranscoder(Transcoder):
    """A transcoder beside which a linear map takes what is linear.

        y_hat = f W_dec + b_dec + x W_skip^T

    (Paulo, Shabalin & Belrose, 2025, "Transcoders Beat Sparse Autoencoders for Interpretability".)

    Args:
        arguments: as for `Transcoder`.
    """

    any_axes = True
    architecture = "skip_transcoder"

    def __init__(self, d_in: int, d_sae: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, d_in))

    def reconstruct(self, x_BD: Tensor, f_BF: Tensor) -> Tensor:
        return self.decode(f_BF) + x_BD @ self.W_skip.T

    @torch.no_grad()
    def fold_scale_(self, scale: float, target_scale: float | None = None) -> Self:
        super().fold_scale_(scale, target_scale)
        self.W_skip.mul_(scale / (scale if target_scale is None else target_scale))
        return self

    @torch.no_grad()
    def turn_(self, basis_DD: Tensor, target_basis_OO: Tensor | None = None) -> Self:
        super().turn_(basis_DD, target_basis_OO)
        written_OO = basis_DD if target_basis_OO is None else target_basis_OO
        self.W_skip.copy_(written_OO @ self.W_skip @ basis_DD.T)
        return self


class JumpReLUTranscoder(JumpReLU, Transcoder):
    """A transcoder whose features have to exceed a threshold.

        f = pre where pre > threshold, else 0;  pre = x W_enc + b_enc        [B, F]

    (Gemma Scope: Lieberum et al., 2024.)

    Args:
        arguments: as for `JumpReLU` and `Transcoder`.
    """

    any_axes = True
    architecture = "jumprelu_transcoder"
    accepted = Transcoder.accepted | {"activation_fn": JumpReLU.accepted["activation_fn"]}


class JumpReLUSkipTranscoder(JumpReLU, SkipTranscoder):
    """The same, beside a linear map. (Gemma Scope 2.)

    Args:
        arguments: as for `JumpReLU` and `SkipTranscoder`.
    """

    any_axes = True
    architecture = "jumprelu_skip_transcoder"
    accepted = JumpReLUTranscoder.accepted
