"""OpenAI's `.pt` files: a state dict, and the name of its activation.

    f = activation(W (norm(x) - pre_bias) + latent_bias)    x_hat = (W' f + pre_bias) undone

Files whose activation is TopK take each row less its mean, divided by its standard deviation; that
cannot be folded, so the SAE does it as it runs. (Gao et al., 2024, "Scaling and evaluating sparse
autoencoders".)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from saelearn import artifacts
from saelearn.errors import Refusal
from saelearn.sae.formats.described import (
    WRONG,
    Published,
    check_settings,
    check_tensor,
    check_weights,
    short,
)

NAMES = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight",
         "b_dec": "pre_bias"}  # fmt: skip
TIED = "decoder.linear.weight"
"""In place of `decoder.weight`, if the decoder is the encoder turned round."""
OTHERS = {"activation", "activation_state_dict", "stats_last_nonzero", "latents_mean_square",
          "latents_activation_frequency", "encoder.weight", TIED}  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether this is a `.pt` file of nobody else, or a folder with nothing but one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    files = [path] if path.is_file() else sorted(path.glob("*.pt"))
    fitting = [file for file in files if file.suffix == ".pt" and file.name != "ae.pt"]
    return fitting[0] if len(fitting) == 1 else None


def read(path: Path, scale: float | None) -> Published:
    """The file's settings and weights; `formats.read` says what may be refused."""
    if scale is not None:
        raise Refusal("no scale for an SAE that takes raw activations", f"scale={scale!r}")
    file = _file(path)
    state = artifacts.read_pt(file)
    names = NAMES
    if isinstance(state, dict) and "decoder.weight" not in state and TIED in state:
        names = NAMES | {"W_dec": TIED}
    parts = set(names.values())
    if not isinstance(state, dict) or not parts <= set(state) or not set(state) <= parts | OTHERS:
        got = ", ".join(sorted(map(str, state))) if isinstance(state, dict) else short(state)
        wanted = f"an SAE in {file.name}: {', '.join(NAMES.values())}"
        raise Refusal(wanted, short(got or "nothing"))
    weights = {ours: _turned(theirs, state[theirs], file) for ours, theirs in names.items()}
    if weights["W_enc"].ndim != 2:
        raise Refusal(f"encoder.weight [F, D] in {file.name}", str(tuple(weights["W_enc"].shape)))
    settings = _settings(state, file, *weights["W_enc"].shape)
    check_settings(settings, file.name)
    check_weights(weights, settings, file.name)
    return Published(settings, weights)


def _turned(name: str, tensor: Any, file: Path) -> Tensor:
    """A linear layer's weight is [out, in], a matrix here [in, out]; a tied one is so already."""
    check_tensor(tensor, f"{name} in {file.name}")
    turn = name in ("encoder.weight", "decoder.weight") and tensor.ndim == 2
    return tensor.detach().T if turn else tensor.detach()


def _settings(state: dict[str, Any], file: Path, d_in: int, d_sae: int) -> dict[str, Any]:
    settings = {"d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": True, "metadata": {}}
    activation = state.get("activation", "ReLU")
    if activation == "ReLU":
        return settings | {"architecture": "standard", "normalize_activations": "none"}
    how = state.get("activation_state_dict")
    if activation != "TopK" or not isinstance(how, dict) or how.get("postact_fn") != "ReLU":
        said = f"{short(activation)}, {short(how)}"
        raise Refusal(f"ReLU, or TopK of ReLU, as the activation in {file.name}", said, WRONG)
    k = how.get("k")
    return settings | {"architecture": "topk", "k": k, "normalize_activations": "layer_norm"}
