"""Names for places in a model.

A site is the path PyTorch gives a module, with `:in` or `:out`: `transformer.h.1:out` is the
residual stream after block 1 (without either, `:out`). The names that TransformerLens and SAELens
use (`blocks.1.hook_resid_post`) are understood too, for any model made of a list of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from saelearn.errors import Refusal

_LAYERS = ("transformer.h", "gpt_neox.layers", "model.layers", "model.decoder.layers")
_ATTENTION = ("attn", "attention", "self_attn")
_DOWN = ("mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj")  # their input: MLP neurons


def find(model: nn.Module, site: str) -> tuple[nn.Module, str]:
    """The module that a site names, and "in" or "out".

    Raises:
        Refusal: the model has no such module.
    """
    path, _, side = translate(model, site).partition(":")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if isinstance(module, nn.ModuleList | nn.ModuleDict):  # nothing ever passes through these
        module = None
    if module is None or not path or side not in ("", "in", "out"):
        near = [p for p, _ in model.named_modules() if p.split(".")[-1] == "mlp"][:2]
        raise Refusal(
            f"a site of this model, such as {', '.join([*residual(model)[:2], *near])}",
            repr(site),
            "lm.residual_sites() lists the usual ones; any module path with :in or :out works",
        )
    return module, side or "out"


def residual(model: nn.Module) -> list[str]:
    """The residual stream after each block, as site names."""
    path = _layers_path(model)
    return [f"{path}.{i}:out" for i in range(len(model.get_submodule(path)))]


def translate(model: nn.Module, site: str) -> str:
    """SAELens' and TransformerLens' names into module paths; others as they are."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
    if not match:
        return site
    block = f"{_layers_path(model)}.{match[1]}"
    modules = {path for path, _ in model.named_modules()}

    def first(names: Sequence[str]) -> str:
        return next((f"{block}.{n}" for n in names if f"{block}.{n}" in modules), "")

    known = {
        "hook_resid_pre": f"{block}:in",
        "hook_resid_post": f"{block}:out",
        "hook_mlp_out": f"{block}.mlp:out",
        "hook_attn_out": f"{first(_ATTENTION)}:out",
        "mlp.hook_post": f"{first(_DOWN)}:in",
    }
    return known.get(match[2], site)


def _layers_path(model: nn.Module) -> str:
    modules = dict(model.named_modules())
    for path in _LAYERS:
        if path in modules:
            return path
    lists = {path: m for path, m in modules.items() if isinstance(m, nn.ModuleList)}
    if not lists:
        raise Refusal("a model made of a list of blocks", type(model).__name__)
    return max(lists, key=lambda path: len(lists[path]))
