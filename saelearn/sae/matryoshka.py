"""Nested sparse autoencoders: the first features have to do for themselves. Lesson 11.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from saelearn.errors import Refusal, check_series, check_whole
from saelearn.sae.base import SAE, SAEOutput
from saelearn.sae.objectives import AT_FULL, Loss, Now, Squared, output_of, squared_error


@dataclass(frozen=True)
class Matryoshka(Squared):
    """Squared errors of nested SAEs, each made of the first features of the next.

        sum_m mean_B sum_D (x - x_hat_m)^2,    x_hat_m = sum of f_i W_dec_i over i < m, + b_dec

    over `widths` and the full width. Wide SAEs split and absorb general features; the narrow ones
    within must keep them, so general features come first and stay whole. On a `BatchTopK`, as it
    was published, or any other architecture. (Bussmann et al., 2025, "Learning Multi-Level
    Features with Matryoshka Sparse Autoencoders".)

    Args:
        widths: how many features the narrower SAEs have, rising; the full width is added.
        aux_k, aux_coefficient, dead_after, decoder_norm: as for `Squared`.
    """

    any_axes = True
    widths: Sequence[int] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(check_series(self.widths, "widths")))
        for width in self.widths:
            check_whole(width, "each of widths", 1)
        if not self.widths or any(a >= b for a, b in itertools.pairwise(self.widths)):
            raise Refusal("at least one of widths, each above the one before", repr(self.widths))

    def check(self, sae: SAE) -> None:
        super().check(sae)
        if self.widths[-1] >= sae.d_sae:
            raise Refusal(f"widths below d_sae, {sae.d_sae}", repr(self.widths))

    def __call__(self, sae: SAE, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        f_BF = output_of(sae, x_BD, now).f
        ends = [*self.widths, sae.d_sae]
        x_hat_BD = sae.reconstruct(x_BD, f_BF.new_zeros(()).expand_as(f_BF))
        terms = {}
        for low, high in itertools.pairwise([0, *ends]):
            x_hat_BD = x_hat_BD + f_BF[:, low:high] @ sae.W_dec[low:high]
            terms[f"reconstruction_{high}"] = squared_error(x_BD, x_hat_BD, now)
        total = sum(terms.values())
        terms = {"reconstruction": terms.pop(f"reconstruction_{sae.d_sae}"), **terms}
        target_BD = x_BD if now.target_BD is None else now.target_BD
        extra = self.auxiliary(sae, x_BD, target_BD - x_hat_BD.detach(), now)
        if extra is not None:
            terms["auxiliary"] = extra
            total = total + self.aux_coefficient * extra
        return Loss(total, terms), SAEOutput(x_hat_BD, f_BF)
