"""What one place in a model carries: another value in its place, and what the model says then.

Lesson 06 builds both. `LM.logits` makes such edits at many sites at once; here stands the idea.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelearn.errors import checked
from saelearn.lm import LM


def swap(model: nn.Module, module: nn.Module, x: Tensor, edit: Callable[[Any], Any]) -> Any:
    """What `model(x)` returns if `edit(output)` takes the place of what `module` returns."""
    handle = module.register_forward_hook(lambda module, inputs, output: edit(output))
    try:
        return model(x)
    finally:
        handle.remove()


@checked()
def patch_map(
    lm: LM,
    donor_BT: Tensor,
    into_BT: Tensor,
    sites: Sequence[str],
    measure: Callable[[Tensor], float],
) -> Tensor:
    """Activation patching: `measured_LT`, one patch for each site and position.

    In each run on `into`, one vector is exchanged: at that site and position the donor's stands in
    its place. What the measure does then says whether this place carries the difference between
    both texts (Vig et al., 2020, "Causal Mediation Analysis"; Meng et al., 2022, ROME).

    Args:
        donor_BT, into_BT: token ids of as many documents, of one length.
        sites: L places.
        measure: logits `[B, T, V]` -> a number, such as a difference of two logits.
    """
    x = lm.capture(donor_BT, sites)
    measured_LT = torch.zeros(len(sites), donor_BT.shape[1])
    for row, site in enumerate(sites):
        for t in range(donor_BT.shape[1]):

            def edit(x_BTD: Tensor, positions_T: Tensor, site: str = site, t: int = t) -> Tensor:
                y_BTD = x_BTD.clone()
                y_BTD[:, t] = x[site][:, t]
                return y_BTD

            measured_LT[row, t] = float(measure(lm.logits(into_BT, {site: edit})))
    return measured_LT
