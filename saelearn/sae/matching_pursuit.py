"""Features that come one after the other: matching pursuit, for SAEs that others trained.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from saelearn.errors import Refusal, check_range, check_whole
from saelearn.sae.base import SAE


class MatchingPursuit(SAE):
    """Each feature takes its part out of what is left, then the next one is looked for.

        r = x - b_dec;  again and again:  i = the largest of r W_dec^T,  a = ReLU(r . W_dec_i)
                                          f_i += a,  r -= a W_dec_i
        x_hat = f W_dec + b_dec

    until no row brings in a new feature, the rest is shorter than `residual_threshold`, or
    `max_iterations` were made. The encoder is the decoder, so there is no product that gives all
    features at once; such an SAE can be used here, not trained. With `apply_b_dec_to_input=False`
    there is no `b_dec` in either equation. (Mallat & Zhang, 1993; Costa et al., 2025, "From Flat to
    Hierarchical: Extracting Sparse Representations with Matching Pursuit".)

    Args:
        residual_threshold: length of the rest, in the activations' units; 0: never short enough.
        max_iterations: D, if None.
        stop_on_duplicate_support: end a row when no new feature came in.
        arguments: as for `SAE`.
    """

    architecture = "matching_pursuit"
    feature_axis: ClassVar = {"W_dec": 0}
    offsets = ()
    objectives = ("one of its own, which is not here",)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        residual_threshold: float = 1e-2,
        max_iterations: int | None = None,
        stop_on_duplicate_support: bool = True,
        **arguments,
    ):
        super().__init__(d_in, d_sae, **arguments)
        del self.W_enc, self.b_enc
        self.residual_threshold = check_range(residual_threshold, "residual_threshold", 0.0)
        self.max_iterations = max_iterations
        if max_iterations is not None:
            check_whole(max_iterations, "max_iterations", 1)
        if not isinstance(stop_on_duplicate_support, bool):
            wanted = "stop_on_duplicate_support as true or false"
            raise Refusal(wanted, repr(stop_on_duplicate_support))
        self.stop_on_duplicate_support = stop_on_duplicate_support

    @property
    def W_enc(self) -> Tensor:
        """What features look for is what they write."""
        return self.W_dec.T

    def pre(self, x_BD: Tensor) -> Tensor:
        """How much of each direction is in the input, before anything is taken out."""
        return (x_BD - self.b_dec if self.apply_b_dec_to_input else x_BD) @ self.W_enc

    def activate(self, pre_BF: Tensor) -> Tensor:
        """Not from `pre` alone: what is left is needed, too."""
        raise Refusal("activations", "products with them", f"{type(self).__name__}.encode")

    def encode(self, x_BD: Tensor) -> Tensor:
        self._check(x_BD)
        x_BD = self.normalized(x_BD)
        shape, rest_BD = x_BD.shape[:-1], x_BD.reshape(-1, self.d_in)
        if self.apply_b_dec_to_input:
            rest_BD = rest_BD - self.b_dec
        f_BF = rest_BD.new_zeros(len(rest_BD), self.d_sae)
        open_B1 = torch.ones(len(rest_BD), 1, dtype=torch.bool, device=rest_BD.device)
        for _ in range(self.max_iterations or self.d_in):
            best_B1 = (rest_BD @ self.W_enc).argmax(1, keepdim=True)
            row_BD = self.W_dec[best_B1[:, 0]]
            a_B1 = (rest_BD * row_BD).sum(1, keepdim=True).relu() * open_B1
            known_BF = f_BF != 0
            f_BF = f_BF.scatter_add(1, best_B1, a_B1)
            rest_BD = rest_BD - a_B1 * row_BD
            if self.stop_on_duplicate_support:
                open_B1 = open_B1 & ((f_BF != 0) != known_BF).any(1, keepdim=True)
            if self.residual_threshold > 0:
                open_B1 = open_B1 & (rest_BD.norm(dim=1, keepdim=True) >= self.residual_threshold)
            if not open_B1.any():
                break
        return f_BF.reshape(*shape, self.d_sae)

    def decode(self, f_BF: Tensor) -> Tensor:
        x_hat_BD = super().decode(f_BF)
        return x_hat_BD if self.apply_b_dec_to_input else x_hat_BD - self.b_dec

    def fold_scale_(self, scale: float, target_scale: float | None = None) -> Self:
        raise Refusal("an SAE that is trained here", type(self).__name__)

    def turn_(self, basis_DD: Tensor, target_basis_OO: Tensor | None = None) -> Self:
        raise Refusal("an SAE that is trained here", type(self).__name__)

    def own_config(self) -> dict[str, Any]:
        return {
            "residual_threshold": self.residual_threshold,
            "max_iterations": self.max_iterations,
            "stop_on_duplicate_support": self.stop_on_duplicate_support,
        }

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        names = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")
        return {name: config[name] for name in names if name in config}
