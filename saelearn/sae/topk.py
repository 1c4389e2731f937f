"""Sparse autoencoders whose number of active features is chosen, not penalised. Lesson 11.

Shapes: B batch, F features, P processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saelearn.errors import check_whole
from saelearn.sae.base import SAE, needs
from saelearn.sae.jumprelu import JumpReLU


class TopK(SAE):
    """An SAE that keeps the k largest features of each input and silences the others.

        f = TopK(ReLU((x - b_dec) W_enc + b_enc))        [B, F]

    L0 is chosen instead of a coefficient, so nothing has to be penalised and nothing shrinks.
    (Makhzani & Frey, 2013, "k-Sparse Autoencoders"; Gao et al., 2024.)

    Args:
        k: how many features may be active at once.
        arguments: as for `SAE`.
    """

    any_axes = True
    architecture = "topk"
    accepted = SAE.accepted | {"activation_fn": ("topk", "relu")}  # of the k that are kept

    def __init__(self, d_in: int, d_sae: int, *, k: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        self.k = check_whole(k, "k", 1, d_sae)

    def activate(self, pre_BF: Tensor) -> Tensor:
        """At most k features above 0 in each row."""
        top = pre_BF.topk(self.k, dim=-1)
        return torch.zeros_like(pre_BF).scatter(-1, top.indices, top.values.relu())

    def own_config(self) -> dict[str, Any]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {"k": needs(config, "k")}


class BatchTopK(SAE):
    """An SAE that keeps the k B largest features of a batch of B inputs: k on average.

        f = f' where f' is among the k B largest of the batch, else 0;  f' = ReLU(pre)

    Rows that need more features get more. For one input alone there is no batch, so afterwards a
    threshold decides, the running mean of the batches' smallest active feature; `exported` it is
    the `JumpReLU` with that threshold. (Bussmann, Leask & Nanda, 2024, "BatchTopK Sparse
    Autoencoders".)

    Args:
        k: how many features are active on average.
        arguments: as for `SAE`.

    Attributes:
        threshold: what a feature has to exceed outside training; saved with a checkpoint.
    """

    any_axes = True
    architecture = "batchtopk"
    average_over = 100  # steps that the running mean looks back

    def __init__(self, d_in: int, d_sae: int, *, k: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        self.k = check_whole(k, "k", 1, d_sae)
        self.register_buffer("threshold", torch.zeros(()))

    def activate(self, pre_BF: Tensor) -> Tensor:
        return torch.relu(pre_BF) * (pre_BF > self.threshold)

    def activate_in_training(self, pre_BF: Tensor, now) -> Tensor:
        """The largest of the whole batch, whichever processes hold its rows."""
        f_BF = torch.relu(pre_BF)
        with torch.no_grad():
            n = self.k * int(now.gather(f_BF.new_tensor([f_BF.shape[0]])).sum())
            values = f_BF.detach().flatten()
            mine = values.topk(min(n, len(values)), sorted=False).values
            everyones = now.gather(mine)
            least = everyones.topk(min(n, len(everyones))).values[-1]
        return torch.where(f_BF >= least, f_BF, 0.0)

    def observe(self, f: Tensor) -> Tensor:
        """The smallest active feature; infinite if none is active."""
        active = torch.where(f > 0, f, torch.inf)
        return active.min() if active.numel() else f.new_tensor(torch.inf)

    @torch.no_grad()
    def after_step_(self, observed_P: Tensor | None) -> None:
        least = observed_P.min().to(self.threshold)
        first = self.threshold == 0
        moved = self.threshold + (least - self.threshold) / self.average_over
        seen = torch.where(first, least, moved)
        self.threshold.copy_(torch.where(least.isfinite(), seen, self.threshold))

    def exported(self) -> JumpReLU:
        arguments = {"apply_b_dec_to_input": self.apply_b_dec_to_input, "metadata": self.metadata}
        sae = JumpReLU(self.d_in, self.d_sae, **arguments).to(self.W_dec)
        state = {name: t for name, t in self.state_dict().items() if name != "threshold"}
        sae.load_state_dict(state | {"threshold": self.threshold.expand(self.d_sae)})
        return sae

    def own_config(self) -> dict[str, Any]:
        return {"k": self.k}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {"k": needs(config, "k")}
