"""SAELens' folders, versions 2 to 6: `cfg.json` and `sae_weights.safetensors`.

Version 6 nests what is known of model and site in `metadata`; before, all lay side by side, and
names changed: `hook_point` became `hook_name`, `activation_fn_str` `activation_fn`. What earlier
versions did in other ways is said in today's, where that is exactly the same:

    TopK as an activation of "standard"     the architecture "topk"
    scaling_factor [F] (fine-tuning)        rows of W_dec, multiplied
    normalize_activations: true             expected_average_only_in, its factor folded
    rescale_acts_by_decoder_norm            rows of W_dec of length 1, a longer encoder
    "batchtopk", "matryoshka_batchtopk"     "jumprelu" with one threshold
    "abstopk", features of either sign      "topk", each feature's two signs as two features

`layer_norm` and `constant_norm_rescale` change with each row: the SAE does them as it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal
from saelearn.sae.formats.described import (
    WRONG,
    Published,
    check_settings,
    check_tensor,
    check_weights,
    number,
    short,
)

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
SCALER_FILE = "activation_scaler.json"
"""Beside a checkpoint: what its activations were multiplied by."""

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
ABOUT = (
    "model_name", "model_class_name", "hook_name", "hook_layer", "hook_head_index", "prepend_bos",
    "context_size", "dataset_path", "neuronpedia_id", "seqpos_slice", "exclude_special_tokens",
    "model_from_pretrained_kwargs", "sae_lens_training_version", "hook_name_out",
    "hook_head_index_out", "hf_hook_name", "hf_hook_name_out",
)  # fmt: skip
"""What a file before version 6 says of model and site, beside the settings."""

TELLING = ("architecture", "d_in", "d_sae", "d_out", "k", "apply_b_dec_to_input")
"""Settings that `null` does not leave open, as it does others."""
BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
BY_ROW = ("layer_norm", "constant_norm_rescale")
REFUSED = {
    "temporal": "its features depend on the positions before, and an SAE here sees one row",
}
"""Architectures that cannot be read, and why."""


def recognises(path: Path) -> bool:
    """Whether a folder is one of these."""
    return (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file()


def read(path: Path, scale: float | None) -> Published:
    """A folder's settings and weights; `formats.read` says what may be refused."""
    config = artifacts.read_json(path / CONFIG_FILE)
    if not isinstance(config, dict):
        raise ArtifactError(f"an SAE's settings in {CONFIG_FILE}", type(config).__name__)
    settings = in_todays_terms(config)
    check_settings(settings, CONFIG_FILE)
    if (name := settings["architecture"]) in REFUSED:
        raise Refusal(f"another architecture in {CONFIG_FILE}", repr(name), REFUSED[name])
    wanted = (settings["d_sae"], settings.get("d_out", settings["d_in"]))
    if (found := artifacts.shapes(path / WEIGHTS_FILE).get("W_dec")) != wanted:
        raise Refusal(
            f"weights with W_dec {wanted} in {WEIGHTS_FILE}",
            str(found),
            f"the file does not fit its {CONFIG_FILE}, or holds another kind of SAE",
        )
    weights = artifacts.read_tensors(path / WEIGHTS_FILE)
    published = Published(settings, weights)
    _fine_tuned(published)
    check_weights(published.weights, settings, WEIGHTS_FILE)
    _row_lengths(published)
    _threshold(published)
    _signs(published)
    _normalisation(published, path, scale)
    return published


def in_todays_terms(config: dict[str, Any]) -> dict[str, Any]:
    """Any version's settings as version 6 would have them."""
    settings = {RENAMED.get(name, name): value for name, value in config.items()}
    for old, new in RENAMED.items():
        if {old, new} <= config.keys() and config[old] != config[new]:
            said = f"{old}={short(config[old])}, {new}={short(config[new])}"
            raise Refusal(f"one value for {new} in {CONFIG_FILE}", said)
    settings = {n: v for n, v in settings.items() if v is not None or n in TELLING}
    about = {name: settings.pop(name) for name in ABOUT if name in settings}
    nested = settings.get("metadata", {})
    if isinstance(nested, dict):
        settings["metadata"] = about | nested
        settings["metadata"].pop("sae_lens_version", None)  # `SAE.config` says how it is saved
    normalize = settings.get("normalize_activations", False)
    if isinstance(normalize, bool):
        settings["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if "architecture" not in settings and not {"k", "d_out"} & settings.keys():
        settings["architecture"] = "standard"  # once it was the only one
    settings.setdefault("apply_b_dec_to_input", True)
    _top_k(settings)
    return settings


def _top_k(settings: dict[str, Any]) -> None:
    """Before version 5 TopK was an activation function, with arguments of its own."""
    arguments = settings.pop("activation_fn_kwargs", {})
    if not isinstance(arguments, dict):
        raise Refusal(f"activation_fn_kwargs in {CONFIG_FILE} as an object", short(arguments))
    if settings.get("activation_fn") == "topk" and settings.get("architecture") == "standard":
        settings["architecture"] = "topk"
    if settings.get("architecture") == "topk" and "k" in arguments:
        settings.setdefault("k", arguments["k"])
    others = {name: value for name, value in arguments.items() if name != "k" and value}
    if others:
        wanted = f"no argument of the activation but k in {CONFIG_FILE}"
        raise Refusal(wanted, short(others), WRONG)


def _fine_tuned(published: Published) -> None:
    """f * s W_dec is f (s W_dec): what fine-tuning multiplied features by belongs to their rows."""
    flag = published.settings.pop("finetuning_scaling_factor", None)
    weights = published.weights
    factor = weights.pop("scaling_factor", weights.pop("finetuning_scaling_factor", None))
    if factor is None:
        return
    if (check_tensor(factor, f"scaling_factor in {WEIGHTS_FILE}") == 1).all():
        return
    if flag is False:
        raise Refusal(
            f"finetuning_scaling_factor true in {CONFIG_FILE}, as {WEIGHTS_FILE} has such factors",
            "false",
            "the two contradict each other, and only who wrote them knows which is right",
        )
    if "W_dec" not in weights or factor.shape != weights["W_dec"].shape[:1]:
        raise Refusal("one scaling_factor for each feature", str(tuple(factor.shape)))
    weights["W_dec"] = weights["W_dec"] * factor[:, None]


def _threshold(published: Published) -> None:
    """A training that chose by batch has one threshold for all features."""
    settings, weights = published.settings, published.weights
    if settings["architecture"] in BY_BATCH and "topk_threshold" in weights:
        value = weights.pop("topk_threshold")
        if value.numel() != 1:
            raise Refusal("one topk_threshold", str(tuple(value.shape)))
        settings["architecture"] = "jumprelu"
        weights["threshold"] = value.reshape(1).repeat(settings["d_sae"])


def _row_lengths(published: Published) -> None:
    """Features multiplied by their rows' lengths before they are compared, divided afterwards: the
    same as rows of length 1 and an encoder that is as much longer."""
    rescaled = published.settings.pop("rescale_acts_by_decoder_norm", False)
    if not rescaled or published.settings["architecture"] not in ("topk", "abstopk", *BY_BATCH):
        return
    weights = published.weights
    norm_F = weights["W_dec"].norm(dim=1)
    for name in {"W_enc", "b_enc"} & weights.keys():
        weights[name] = weights[name] * norm_F
    weights["W_dec"] = weights["W_dec"] / (norm_F + (norm_F == 0))[:, None]


def _signs(published: Published) -> None:
    """The k largest of |pre| are the k largest of pre and -pre, at least as many as are above 0."""
    settings, weights = published.settings, published.weights
    if settings["architecture"] != "abstopk":
        return
    settings |= {"architecture": "topk", "d_sae": 2 * settings["d_sae"]}
    settings["metadata"]["signs"] = "feature i + d_sae / 2 is feature i below 0"
    both: dict[str, int] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    for name, axis in both.items():
        if name in weights:
            weights[name] = torch.cat([weights[name], -weights[name]], axis)


def _normalisation(published: Published, path: Path, scale: float | None) -> None:
    """A scalar is folded; what differs for each row is kept; the rest is refused."""
    settings = published.settings
    way = settings["normalize_activations"]
    if way == "expected_average_only_in":
        fold(published, _scale(path) if scale is None else scale)
        settings["normalize_activations"] = "none"
        return
    if scale is not None:
        raise Refusal("no scale for an SAE that takes raw activations", f"scale={scale!r}")
    if way not in ("none", *BY_ROW) or (way != "none" and "transcoder" in settings["architecture"]):
        raise Refusal(
            f"normalize_activations in {CONFIG_FILE} that can be folded or done row by row",
            f"{way!r} of {settings['architecture']!r}",
            WRONG,
        )


def _scale(path: Path) -> float:
    """What the activations were multiplied by, if a checkpoint remembers it."""
    if (path / SCALER_FILE).is_file():
        told = artifacts.read_json(path / SCALER_FILE)
        if isinstance(told, dict) and number(told.get("scaling_factor")):
            return told["scaling_factor"]
        raise ArtifactError(f"a scaling_factor above 0 in {SCALER_FILE}", short(told))
    raise Refusal(
        "an SAE of raw activations, or what its activations were multiplied by",
        f"normalize_activations='expected_average_only_in' in {CONFIG_FILE}, whose factor is in no "
        "file: it was measured on the activations",
        "load(..., scale=s), s = sqrt(d_in) / mean length of the site's activations; else features "
        "would be wrong without an error",
    )


def fold(published: Published, scale: float) -> None:
    """An SAE of `scale * x` as the same SAE of raw x: `SAE.fold_scale_` on a file's weights."""
    if not number(scale):
        raise Refusal("a finite scale above 0", repr(scale))
    weights: dict[str, Tensor] = published.weights
    if "W_enc" not in weights:
        name = published.settings["architecture"]
        raise Refusal("an architecture with an encoder that a scale can be folded into", name)
    weights["W_enc"] = weights["W_enc"] * scale
    for name in {"W_dec", "b_dec"} & weights.keys():
        weights[name] = weights[name] / scale
