"""dictionary_learning's folders: `ae.pt`, a state dict, and `config.json`.

Its classes name the same parts in four ways; which class a file is of stands in its settings.
Features are those of the file: its loader for `AutoEncoder` multiplies them by the lengths of the
decoder's columns where these are not 1. An input is never normalised: what training multiplied it
by is in the biases when the file is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal
from saelearn.sae.formats.described import (
    Published,
    check_settings,
    check_tensor,
    check_weights,
    short,
    whole,
)

WEIGHTS_FILE, CONFIG_FILE = "ae.pt", "config.json"


class _Class(NamedTuple):
    """What one of its classes is here: architecture, whether b_dec is subtracted, names."""

    architecture: str
    subtracts: bool
    names: dict[str, str]
    others: tuple[str, ...] = ()


_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_GATED = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias",
          "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}  # fmt: skip
CLASSES = {
    "AutoEncoder": _Class("standard", True, _LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": _Class("standard", False, _LINEAR | {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": _Class("gated", True, _GATED),
    "AutoEncoderTopK": _Class("topk", True, _LINEAR | {"b_dec": "b_dec"}, ("k", "threshold")),
    "BatchTopKSAE": _Class(
        "jumprelu", True, _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, ("k",)
    ),
    "MatryoshkaBatchTopKSAE": _Class(
        "jumprelu", True, _PLAIN | {"threshold": "threshold"}, ("k", "group_sizes")
    ),
    "JumpReluAutoEncoder": _Class("jumprelu", False, _PLAIN | {"threshold": "threshold"}),
}


def recognises(path: Path) -> bool:
    """Whether this is such a folder, or the state dict in one."""
    folder = path.parent if path.name == WEIGHTS_FILE else path
    return (folder / WEIGHTS_FILE).is_file()


def read(path: Path, scale: float | None) -> Published:
    """A folder's settings and weights; `formats.read` says what may be refused."""
    if scale is not None:
        raise Refusal("no scale for an SAE that takes raw activations", f"scale={scale!r}")
    folder = path.parent if path.name == WEIGHTS_FILE else path
    config = artifacts.read_json(folder / CONFIG_FILE)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict):
        raise ArtifactError(f'an object "trainer" in {CONFIG_FILE}', short(config))
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in CLASSES:
        raise Refusal(f"dict_class in {CONFIG_FILE} as one of {', '.join(CLASSES)}", short(name))
    kind = CLASSES[name]
    state = artifacts.read_pt(folder / WEIGHTS_FILE)
    if not isinstance(state, dict) or set(state) != {*kind.names.values(), *kind.others}:
        got = ", ".join(sorted(map(str, state))) if isinstance(state, dict) else short(state)
        wanted = ", ".join(sorted({*kind.names.values(), *kind.others}))
        raise Refusal(f"{wanted} in {WEIGHTS_FILE}, a {name}", got or "nothing")
    weights = {ours: _turned(ours, theirs, state[theirs]) for ours, theirs in kind.names.items()}
    settings = _settings(kind, trainer, config.get("buffer"))
    check_settings(settings, CONFIG_FILE)
    if kind.architecture == "topk":
        _same_k(settings, state)
    if kind.architecture == "jumprelu":
        # below 0, where it starts, a threshold lets through what ReLU does
        weights["threshold"] = weights["threshold"].clamp(min=0).float()
        if weights["threshold"].ndim == 0:
            weights["threshold"] = weights["threshold"].repeat(settings["d_sae"])
    check_weights(weights, settings, WEIGHTS_FILE)
    return Published(settings, weights)


def _turned(ours: str, theirs: str, tensor: Any) -> Tensor:
    """A linear layer's weight is [out, in]; here a matrix is [in, out]."""
    check_tensor(tensor, f"{theirs} in {WEIGHTS_FILE}")
    return tensor.detach().T if theirs.endswith(".weight") and tensor.ndim == 2 else tensor.detach()


def _settings(kind: _Class, trainer: dict[str, Any], buffer: Any) -> dict[str, Any]:
    sizes = {"d_in": trainer.get("activation_dim"), "d_sae": trainer.get("dict_size")}
    settings: dict[str, Any] = {
        "architecture": kind.architecture,
        **{name: value for name, value in sizes.items() if value is not None},
        "apply_b_dec_to_input": kind.subtracts,
        "normalize_activations": "none",
        "metadata": _belongs(trainer, buffer),
    }
    return settings | ({"k": trainer.get("k")} if kind.architecture == "topk" else {})


def _same_k(settings: dict[str, Any], state: dict[str, Any]) -> None:
    k = state["k"]
    if not isinstance(k, Tensor) or k.numel() != 1 or k.is_complex() or k.item() != settings["k"]:
        raise Refusal(f"k={settings['k']} in {WEIGHTS_FILE}, as in {CONFIG_FILE}", short(k))


def _belongs(trainer: dict[str, Any], buffer: Any) -> dict[str, Any]:
    """Model and site, as far as the settings say them."""
    about: dict[str, Any] = {}
    if isinstance(trainer.get("lm_name"), str):
        about["model_name"] = trainer["lm_name"]
    layer, part = trainer.get("layer"), trainer.get("submodule_name")
    if isinstance(part, str):
        about["submodule_name"] = part
    residual = part is None or (isinstance(part, str) and part.startswith("resid_post"))
    if residual and (layer == 0 or whole(layer)) and not isinstance(layer, bool):
        about["hook_name"] = f"blocks.{layer}.hook_resid_post"
    if isinstance(buffer, dict) and whole(buffer.get("ctx_len")):
        about["context_size"] = buffer["ctx_len"]
    return about
