"""An objective that asks what the model makes of the reconstruction. Lesson 11.

Shapes: B documents, T positions, D activation width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from saelearn.errors import check_range
from saelearn.sae.base import SAE, SAEOutput
from saelearn.sae.objectives import AT_FULL, Loss, Now, Objective


@dataclass(frozen=True)
class EndToEnd(Objective):
    """How far the model's predictions move when the reconstruction takes the activations' place.

        mean over tokens of KL(model's next token || spliced model's)  +  the penalty's terms
            +  reconstruction * mean squared error

    Batches are documents of token ids: the model is run at each step, once as it is and once with
    the splice. The first position is left alone, as everywhere. (Braun et al., 2024, "Identifying
    Functionally Important Features with End-to-End Sparse Dictionary Learning".)

    Args:
        lm: the model, an `lm.LM`.
        site: where the SAE belongs.
        penalty: the objective whose other terms are added: `L1(5.0)`, or `Squared()` for an
            architecture that needs no penalty.
        reconstruction: weight of the squared error, which the penalty's own loss has with 1.
    """

    lm: Any
    site: str
    penalty: Objective
    reconstruction: float = 0.0
    reads_tokens = True

    def __post_init__(self):
        check_range(self.reconstruction, "reconstruction", 0.0)
        self.lm.find_site(self.site)
        object.__setattr__(self, "decoder_norm", self.penalty.decoder_norm)
        object.__setattr__(self, "dead_after", self.penalty.dead_after)

    def check(self, sae: SAE) -> None:
        self.penalty.check(sae)

    def activations(self, batch_BX: Tensor) -> Tensor:
        x_BTD = self.lm.capture(batch_BX, [self.site])[self.site]
        return x_BTD[:, 1:].flatten(0, 1).float()

    def __call__(self, sae: SAE, x_BD: Tensor, now: Now = AT_FULL) -> tuple[Loss, SAEOutput]:
        loss, output = self.penalty(sae, x_BD, now)
        x_hat_BD = output.x_hat / now.scale
        clean_BTV = self.lm.logits(now.batch)

        def splice(x_BTD: Tensor, positions_T: Tensor) -> Tensor:
            rest_BTD = x_hat_BD.view(len(x_BTD), -1, x_BTD.shape[-1]).to(x_BTD.dtype)
            return torch.cat([x_BTD[:, :1], rest_BTD], dim=1)

        with self.lm.editing({self.site: splice}), torch.enable_grad():
            spliced_BTV = self.lm.model(now.batch, use_cache=False).logits
        log_p_NV, log_q_NV = (
            logits_BTV[:, 1:].flatten(0, 1).float().log_softmax(-1)
            for logits_BTV in (clean_BTV, spliced_BTV)
        )
        kl = kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)
        others = loss.total - loss.terms["reconstruction"]
        total = kl + others + self.reconstruction * loss.terms["reconstruction"]
        return Loss(total, {"kl": kl, **loss.terms}), output

    def identity(self) -> dict[str, Any]:
        """Its own fields; the model counts by its configuration and first weights."""
        some = next(self.lm.model.parameters()).detach().flatten()[:64].double().sum().item()
        mine = {"site": self.site, "reconstruction": self.reconstruction, "model": some}
        return {"objective": "EndToEnd", **mine, "penalty": asdict(self.penalty)}
