"""Sparse autoencoders that differ from the standard one in a few lines each. Lesson 11.

Shapes: B batch, D activation width, F features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import Refusal, check_range
from saelearn.sae.base import CONFIG_FILE, SAE, WEIGHTS_FILE


class TopK(SAE):
    """An SAE that keeps the k largest features of each input and silences the others.

        f = TopK(ReLU((x - b_dec) W_enc + b_enc))        [B, F]

    L0 is chosen instead of a coefficient, so nothing has to be penalised and nothing shrinks.
    (Makhzani & Frey, 2013, "k-Sparse Autoencoders"; Gao et al., 2024.)

    Args:
        k: how many features may be active at once.
        arguments: as for `SAE`.
    """

    def __init__(self, d_in: int, d_sae: int, *, k: int, **arguments):
        super().__init__(d_in, d_sae, **arguments)
        check_range(k, "k", 1, d_sae)
        self.k = k

    def encode(self, x_BD: Tensor) -> Tensor:
        """Features `f_BF`, at most k of them above 0 in each row."""
        f_BF = super().encode(x_BD)
        top = f_BF.topk(self.k, dim=-1)
        return torch.zeros_like(f_BF).scatter(-1, top.indices, top.values)

    def _config(self) -> dict:
        mine = {"architecture": "topk", "k": self.k, "rescale_acts_by_decoder_norm": False}
        return super()._config() | mine

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> TopK:
        """Read a TopK SAE in SAELens' v6 layout.

        Raises:
            ArtifactError: a file is missing or damaged.
            Refusal: another architecture, or weights that do not fit their settings.
        """
        config = artifacts.read_json(Path(folder) / CONFIG_FILE)
        for key, accepted in _ACCEPTED.items():
            if (value := config.get(key, accepted)) != accepted:
                raise Refusal(f"{key}={accepted!r} in {CONFIG_FILE}", repr(value))
        sae = cls(
            config["d_in"],
            config["d_sae"],
            k=config["k"],
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
            metadata=config.get("metadata", {}),
        ).to(device)
        try:
            sae.load_state_dict(artifacts.read_tensors(Path(folder) / WEIGHTS_FILE, device))
        except RuntimeError as error:
            raise Refusal(f"weights that fit {CONFIG_FILE}", str(error).splitlines()[-1]) from error
        return sae


_ACCEPTED = {
    "architecture": "topk",
    "rescale_acts_by_decoder_norm": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
}


def load(folder: str | Path, *, device: str = "cpu") -> SAE:
    """Read an SAE of whichever kind its settings name."""
    kind = artifacts.read_json(Path(folder) / CONFIG_FILE).get("architecture", "standard")
    return (TopK if kind == "topk" else SAE).load(folder, device=device)
