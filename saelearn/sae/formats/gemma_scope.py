"""Gemma Scope: `params.npz`, and Gemma Scope 2: `params.safetensors` with `config.json`.

JumpReLU SAEs and transcoders, which never subtract `b_dec` from their input. The first says in the
names of the folders above it alone which model and site it belongs to, so an SAE that was taken out
of them knows nothing of it; the second says it in its `config.json`. (Lieberum et al., 2024.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from saelearn import artifacts
from saelearn.errors import Refusal
from saelearn.sae.formats.described import Published, check_settings, check_tensor, check_weights

FILES = ("params.npz", "params.safetensors")
PARTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
SKIP = "affine_skip_connection"
"""Gemma Scope 2: `[D, O]`, a linear map past the features of a transcoder."""


def recognises(path: Path) -> bool:
    """Whether this is one of these files, or a folder with one."""
    return path.suffix == ".npz" or path.name in FILES or any((path / n).is_file() for n in FILES)


def read(path: Path, scale: float | None) -> Published:
    """The file's settings and weights; `formats.read` says what may be refused."""
    if scale is not None:
        raise Refusal("no scale for an SAE that takes raw activations", f"scale={scale!r}")
    file = path if path.is_file() else next(path / n for n in FILES if (path / n).is_file())
    npz = file.suffix == ".npz"
    arrays = artifacts.read_npz(file) if npz else artifacts.read_tensors(file)
    weights = {re.sub("^w_", "W_", name): tensor for name, tensor in arrays.items()}
    if missing := [name for name in PARTS if name not in weights]:
        raise Refusal(
            f"{', '.join(PARTS)} in {file.name}",
            f"none of {', '.join(missing)} among {', '.join(sorted(arrays)) or 'nothing'}",
        )
    for name, tensor in weights.items():
        check_tensor(tensor, f"{name} in {file.name}")
    sizes = [weights[name].shape for name in ("W_enc", "W_dec")]
    if any(len(size) != 2 for size in sizes):
        raise Refusal(f"two matrices in {file.name}", " and ".join(str(tuple(s)) for s in sizes))
    (d_in, d_sae), (_, d_out) = sizes
    settings = _settings(weights, file, d_in, d_sae, d_out)
    check_settings(settings, file.name)
    if SKIP in weights:
        weights["W_skip"] = weights.pop(SKIP).T
    check_weights(weights, settings, file.name)
    return Published(settings, weights)


def _settings(
    weights: dict[str, Tensor], file: Path, d_in: int, d_sae: int, d_out: int
) -> dict[str, Any]:
    place = file.absolute().parent.as_posix()
    about = _said(file.parent / "config.json") or _belongs(place)
    settings: dict[str, Any] = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": about,
    }
    if d_out != d_in or SKIP in weights or "transcoder" in place or "hook_name_out" in about:
        kind = "jumprelu_skip_transcoder" if SKIP in weights else "jumprelu_transcoder"
        settings |= {"architecture": kind, "d_out": d_out}
    return settings


_POINTS = {
    r"output": "hook_resid_post",
    r"self_attn\.o_proj\.input": "attn.hook_z",
    r"post_feedforward_layernorm\.output": "hook_mlp_out",
    r"pre_feedforward_layernorm\.output": "hook_mlp_in",
}
"""Where in a block Gemma Scope 2 looks, and SAELens' names for it."""


def _said(config: Path) -> dict[str, Any]:
    """What Gemma Scope 2 writes beside its weights; nothing if there is no such file."""
    if not config.is_file():
        return {}
    said = artifacts.read_json(config)
    if not isinstance(said, dict) or said.get("architecture", "jump_relu") != "jump_relu":
        kind = said.get("architecture") if isinstance(said, dict) else said
        raise Refusal(f'"architecture": "jump_relu" in {config}', f"{kind!r:.80}")
    about: dict[str, Any] = {"prepend_bos": True}
    if isinstance(model := said.get("model_name"), str):
        about["model_name"] = model.replace("-v3", "-3")
    for key, name in (("hf_hook_point_in", "hook_name"), ("hf_hook_point_out", "hook_name_out")):
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", str(said.get(key)))
        if found is None or (name == "hook_name_out" and said[key] == said.get("hf_hook_point_in")):
            continue
        where = next((hook for point, hook in _POINTS.items() if re.fullmatch(point, found[2])), "")
        if where:
            about[name] = f"blocks.{found[1]}.{where}"
        if name == "hook_name":
            path, side = said[key].rsplit(".", 1)
            about["site"] = f"{path}:{'in' if side == 'input' else 'out'}"
    return about


def _belongs(place: str) -> dict[str, Any]:
    """What the folders' names say: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`."""
    about: dict[str, Any] = {}
    if named := re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", place):
        size, tuned, part = named.groups()
        about["model_name"] = f"gemma-2-{size}" + ("-it" if tuned == "it" else "")
        layer = re.search(r"layer_(\d+)", place)
        hooks = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
        if layer:
            about["hook_name"] = f"blocks.{layer[1]}.{hooks[part]}"
        about["prepend_bos"] = True
        about["context_size"] = 1024
    return about
